"""The embedded data set ``motion``: small encoded videos, in UCF101's layout, generated in seconds and for good.

Three tasks ask whether a network needs space *and* time:

    appearance     a single frame decides
    local_motion   direction, rotation and scaling decide; every single frame is at chance
    order          two events, seconds apart, in one order or the other; a clip of 16 frames is at chance

    <data_dir>/motion/<task>-<digest>/UCF-101/<Class>/v_<Class>_gGG_cCC.avi
    <data_dir>/motion/<task>-<digest>/ucfTrainTestlist/…

What the videos show is in ``motion_scenes``. The folder is written under a lock to a temporary name and renamed when
it is complete, so it is there in full or not at all, and any number of processes may ask for it at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from kinoscope.data import motion_scenes
from kinoscope.data.children import in_children
from kinoscope.data.lists.ucf101 import LISTS, SPLITS
from kinoscope.data.motion_scenes import CLASSES, Task
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.launch.processes import cores

# Raise this whenever the same parameters would give other videos.
VERSION = 2
LENGTHS: dict[str, int] = {"appearance": 24, "local_motion": 24, "order": 100}
CLIPS_PER_GROUP = {"appearance": 10, "local_motion": 10, "order": 29}  # 7 groups × 6 or 2 classes: 420 or 406 tests


@dataclass(frozen=True)
class MotionParameters:
    """All that shapes the videos.

    Args:
        task: what has to be told apart, see the module's head.
        seed: of every draw.
        groups: scenes; each class has clips in all of them, and a split tests 7 in 25 of them.
        clips_per_group: videos of each class in each group; by default as many as make 400 test videos in split 1.
        size: side of the square frame in pixels.
        length: frames per video; by default 24, and 100 for ``order``.
        fps: frames per second.
        noise: standard deviation of the pixel noise, in grey levels of 0…255.

    Raises:
        Refusal: a value is out of its range.
    """

    task: Task = "local_motion"
    seed: int = 0
    groups: int = 25
    clips_per_group: int | None = None
    size: int = 64
    length: int | None = None
    fps: int = 25
    noise: float = 2.0

    def __post_init__(self) -> None:
        class_names(self.task)  # refuses an unknown task
        if self.length is None:
            object.__setattr__(self, "length", LENGTHS[self.task])
        if self.clips_per_group is None:
            object.__setattr__(self, "clips_per_group", CLIPS_PER_GROUP[self.task])
        object.__setattr__(self, "noise", float(self.noise))  # 2 and 2.0 are one data set
        shortest = motion_scenes.shortest(self.task)
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("groups", 4, 99),
            ("clips_per_group", 1, 99),
            ("size", 32, 512),
            ("length", shortest, 10_000),
            ("fps", 1, 240),
            ("noise", 0, 255),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise Refusal(f"motion: {name} must lie between {low} and {high} for task {self.task}, got {value}.")
        if self.size % 2:
            raise Refusal(
                f"motion: size must be even, as the video's colours have half its resolution, got {self.size}."
            )

    @property
    def clips(self) -> int:
        """Videos of each class in each group."""
        assert self.clips_per_group is not None
        return self.clips_per_group

    @property
    def digest(self) -> str:
        """8 hex digits that name these parameters and the generator's version."""
        content = json.dumps({**dataclasses.asdict(self), "version": VERSION}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:8]


def class_names(task: str) -> list[str]:
    """The classes of a task in label order.

    Raises:
        Refusal: there is no such task.
    """
    if task not in CLASSES:
        close = difflib.get_close_matches(str(task), CLASSES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise Refusal(f"data.task is one of {', '.join(get_args(Task))}, got {task!r}{hint}")
    return list(CLASSES[task])


def folder(data_dir: str | Path, parameters: MotionParameters) -> Path:
    """Where the videos of these parameters live; an existing folder is complete."""
    return Path(data_dir) / "motion" / f"{parameters.task}-{parameters.digest}"


def generate(data_dir: str | Path, parameters: MotionParameters, progress: bool = True) -> Path:
    """Generates the videos and lists unless they are there, and returns their folder.

    Args:
        data_dir: folder for data sets; created where absent.
        parameters: what to generate.
        progress: shows a bar on stderr.

    Raises:
        KinoscopeError: the folder cannot be written.
    """
    target = folder(data_dir, parameters)
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.is_dir():  # another process wrote it while this one waited
                return target
            # Only a killed process leaves this behind: whoever holds the lock is the only writer.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _write_lists(partial, parameters)
                _write_videos(partial, parameters, progress)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise KinoscopeError(f"motion cannot be written to {target}: {error.strerror or error}.") from error
    return target


def _video_path(name: str, group: int, clip: int) -> str:
    return f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"


def _test_groups(groups: int, split: int) -> range:
    """Seven groups of 25 for each split: 1–7, 8–14, 15–21."""
    count = max(1, groups * 7 // 25)
    return range((split - 1) * count + 1, split * count + 1)


def _write_lists(root: Path, parameters: MotionParameters) -> None:
    names = class_names(parameters.task)
    lists = root / LISTS
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    for split in SPLITS:
        test = _test_groups(parameters.groups, split)
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for number, name in enumerate(names, 1):
            for group in range(1, parameters.groups + 1):
                for clip in range(1, parameters.clips + 1):
                    path = _video_path(name, group, clip)
                    if group in test:
                        lines["test"].append(f"{path}\n")
                    else:
                        lines["train"].append(f"{path} {number}\n")
        for subset, content in lines.items():
            (lists / f"{subset}list{split:02d}.txt").write_text("".join(content))


def _write_videos(root: Path, parameters: MotionParameters, progress: bool) -> None:
    names = class_names(parameters.task)
    for name in names:
        (root / "UCF-101" / name).mkdir(parents=True)
    values = dataclasses.asdict(parameters)
    calls = [
        (str(root), values, label, group) for group in range(1, parameters.groups + 1) for label in range(len(names))
    ]
    total = len(calls) * parameters.clips
    with tqdm(total=total, desc=f"generating motion/{parameters.task}", unit="video", disable=not progress) as bar:
        for outcome in in_children("kinoscope.data.motion:_write_group", calls, workers=cores()):
            if outcome.fault is not None:
                raise KinoscopeError(f"motion: writing group {calls[outcome.call][3]} {outcome.fault}.")
            bar.update(parameters.clips)


def _write_group(root: str, values: dict, label: int, group: int) -> None:
    """Renders and writes one class's videos of one group; runs in a child process."""
    parameters = MotionParameters(**values)
    name = class_names(parameters.task)[label]
    for clip in range(1, parameters.clips + 1):
        path = Path(root) / "UCF-101" / _video_path(name, group, clip)
        try:
            path.write_bytes(encode(render(parameters, label, group, clip), parameters.fps))
        except OSError as error:
            raise KinoscopeError(f"motion cannot be written to {path.parent}: {error.strerror or error}.") from error


def render(parameters: MotionParameters, label: int, group: int, clip: int) -> np.ndarray:
    """One video before encoding, (T, S, S, 3) uint8."""
    assert parameters.length is not None
    return motion_scenes.video(
        parameters.task, label, group, clip, parameters.seed, parameters.size, parameters.length, parameters.noise
    )


def encode(frames: np.ndarray, fps: int) -> bytes:
    """(T, H, W, 3) uint8 → a MPEG-4 AVI, the same bytes for the same frames.

    No B-frames, since decoders disagree about their packing in AVI. A key frame in 12, as in most of UCF101, and none
    for a sudden change, and a constant, fine quantiser: how a frame is coded must not tell what came before it.
    """
    import av  # not at the top: the names of the classes are asked for where nothing is encoded

    options = {"flags": "+bitexact", "qmin": "2", "qmax": "2", "bf": "0", "g": "12", "sc_threshold": "1000000000"}
    file = io.BytesIO()
    with av.open(file, "w", format="avi", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
