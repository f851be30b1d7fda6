"""The embedded data set: what single frames tell and what they do not, and how the folder comes to be.

The classifiers here are linear (ridge regression on one-hot labels). A classifier that knows nothing scores a
binomial share of its n test samples, with standard error sqrt(p(1 − p)/n) at chance p; the bound is 4 of them, which
chance alone exceeds in 6 of 100,000 cases, and as every draw is keyed, a test that passes goes on passing.
"""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from kinoscope.data import motion, motion_scenes
from kinoscope.data.lists import ucf101
from kinoscope.data.motion import MotionParameters
from kinoscope.data.motion_scenes import CLASSES, MOVEMENTS, SHAPES, Task
from kinoscope.errors import KinoscopeError, Refusal

SMALL = MotionParameters(groups=4, clips_per_group=2, size=32, length=12)


def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """Test accuracy of ridge regression from features (N, D) to one-hot labels."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    x = np.c_[(train - mean) / scale, np.ones(len(train))]
    weights = np.linalg.solve(x.T @ x + len(x) * 0.1 * np.eye(x.shape[1]), x.T @ np.eye(labels.max() + 1)[labels])
    return float((np.c_[(test - mean) / scale, np.ones(len(test))] @ weights).argmax(1).__eq__(truth).mean())


def looks(frames: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) → features: the means of 8×8 blocks, where things are, and all brightnesses in order, how much."""
    side = frames.shape[1] // 8
    blocks = frames.reshape(len(frames), 8, side, 8, side, 3).mean((2, 4))
    brightness = np.sort(frames.mean(-1).reshape(len(frames), -1))[:, :: side * side]
    return np.c_[blocks.reshape(len(frames), -1), brightness]


def encoded(video: np.ndarray) -> np.ndarray:
    """The video as a decoder returns it."""
    scaler = VideoReformatter()
    with av.open(io.BytesIO(motion.encode(video, 25)), "r") as container:
        return np.stack([scaler.reformat(f, format="rgb24").to_ndarray() for f in container.decode(video=0)])


def sample(task: Task, clips: int, parameters: MotionParameters, through_codec: bool) -> tuple[list[np.ndarray], ...]:
    """Videos and labels of groups 3 to 6 for training and 1 and 2 for test, ``clips`` of each class in each group."""
    parts: tuple[list, ...] = ([], [], [], [])
    for label in range(len(CLASSES[task])):
        for group in range(1, 7):
            for clip in range(clips):
                video = motion.render(parameters, label, group, clip)
                videos, labels = parts[2:] if group <= 2 else parts[:2]
                videos.append(encoded(video) if through_codec else video)
                labels.append(label)
    return parts


@pytest.mark.parametrize("through_codec", [False, True])
@pytest.mark.parametrize("task", ["local_motion", "appearance"])
def test_a_single_frame_decides_appearance_only(task: Task, through_codec: bool) -> None:
    # The last frame, where a movement has had all its time; 6 classes × 2 groups × 15 = 180 test frames.
    parameters = MotionParameters(task=task, size=32, length=8)
    train, labels, test, truth = sample(task, 15, parameters, through_codec)
    score = accuracy(
        looks(np.stack([video[-1] for video in train])),
        np.array(labels),
        looks(np.stack([video[-1] for video in test])),
        np.array(truth),
    )
    chance = 1 / 6
    bound = 4 * np.sqrt(chance * (1 - chance) / len(truth))  # 0.11
    if task == "appearance":
        assert score > chance + 2 * bound
    else:
        assert abs(score - chance) < bound


@pytest.mark.parametrize("through_codec", [False, True])
def test_order_is_hidden_from_frames_and_clips_but_not_from_the_video(through_codec: bool) -> None:
    # 2 classes × 2 groups × 25 = 100 test videos, of each one frame and one clip of 16 at random.
    parameters = MotionParameters(task="order", size=32, length=92, noise=0)
    train, labels, test, truth = sample("order", 25, parameters, through_codec)
    draw = np.random.default_rng(0)
    bound = 4 * np.sqrt(0.25 / len(truth))  # 0.2

    def clip(video: np.ndarray) -> np.ndarray:
        """What a clip shows, with its course in time: the means of its colours in each of its frames."""
        start = draw.integers(0, len(video) - 16 + 1)
        return video[start : start + 16].mean((1, 2)).ravel()

    def halves(video: np.ndarray) -> np.ndarray:
        first, second = np.split(video.mean((1, 2)), 2)
        return np.r_[first.mean(0), second.mean(0)]

    def score(features: list[np.ndarray], test_features: list[np.ndarray]) -> float:
        return accuracy(np.stack(features), np.array(labels), np.stack(test_features), np.array(truth))

    frames = [looks(video[draw.integers(len(video))][None])[0] for video in train]
    test_frames = [looks(video[draw.integers(len(video))][None])[0] for video in test]
    assert abs(score(frames, test_frames) - 0.5) < bound
    assert abs(score([clip(video) for video in train], [clip(video) for video in test]) - 0.5) < bound
    assert score([halves(video) for video in train], [halves(video) for video in test]) > 0.9


def test_no_clip_of_16_frames_shows_both_events() -> None:
    for clip in range(50):
        draw = np.random.default_rng(clip)
        name = CLASSES["order"][clip % 2]
        disc, cross = motion_scenes._events(draw, 64, 100, name)
        seen = {thing.shape: np.flatnonzero(thing.opacity) for thing in (disc, cross)}
        first, second = sorted(seen.values(), key=lambda frames: frames[0])
        assert (seen["disc"][0] < seen["cross"][0]) == (name == "DiscThenCross")
        assert second[0] - first[-1] > 16
        # So that clips find the first event at each phase as often as the second: 16 frames on either side of both.
        assert first[0] >= 16
        assert 99 - second[-1] >= 16


@pytest.mark.parametrize("movement", MOVEMENTS)
def test_every_state_stays_uniform(movement: str) -> None:
    # Kolmogorov-Smirnov: with n = 2000 the largest distance exceeds 1.95/sqrt(n) = 0.044 in one case of a thousand.
    n, size, length = 2000, 64, 24
    draw = np.random.default_rng(3)
    things = [motion_scenes._moving(draw, size, length, movement, "hook", 0.0) for _ in range(n)]
    low, high = np.log(motion_scenes.RADII)
    for frame in (0, length - 1):
        states = {
            "x": [thing.x[frame] / size for thing in things],
            "y": [thing.y[frame] / size for thing in things],
            "angle": [thing.angle[frame] / (2 * np.pi) % 1 for thing in things],
            "scale": [(np.log(thing.radius[frame] / size) - low) / (high - low) for thing in things],
        }
        for name, state in states.items():
            distance = np.abs(np.sort(state) - (np.arange(n) + 0.5) / n).max()
            assert distance < 1.95 / np.sqrt(n), name


def test_movements_go_where_their_names_say() -> None:
    size = 64

    def steps(movement: str) -> dict[str, np.ndarray]:
        thing = motion_scenes._moving(np.random.default_rng(1), size, 12, movement, "arrow", 0.0)
        wrapped = (np.diff(thing.x) + size / 2) % size - size / 2
        return {
            "x": wrapped,
            "angle": np.diff(thing.angle),
            "scale": np.diff(np.log(thing.radius)),
            "y": np.diff(thing.y),
        }

    for movement, state, sign in (
        ("MoveLeft", "x", -1),
        ("MoveRight", "x", 1),
        ("RotateClockwise", "angle", 1),
        ("RotateCounterclockwise", "angle", -1),
        ("Grow", "scale", 1),
        ("Shrink", "scale", -1),
    ):
        found = steps(movement)
        against = (sign * found.pop(state) <= 0).sum()
        assert against <= (2 if state == "scale" else 0)  # the scale jumps back when it has gone round
        assert all((other == 0).all() for other in found.values())


def painted(shape: str, angle: float, x: float = 32.5, y: float = 32.5, radius: float = 20) -> np.ndarray:
    """Coverage (64, 64) in 0…1 of a white shape on black."""
    frames = np.zeros((1, 64, 64, 3), dtype=np.float32)
    state = {"x": x, "y": y, "angle": angle, "radius": radius, "opacity": 1.0}
    white = np.ones(3, dtype=np.float32)
    motion_scenes._paint(frames, motion_scenes.Thing(shape, white, **{k: np.array([v]) for k, v in state.items()}))
    return frames[0, :, :, 0]


def test_a_growing_angle_turns_clockwise_on_the_screen() -> None:
    for angle, (row, column) in ((0, (32, 50)), (np.pi / 2, (50, 32)), (np.pi, (32, 14)), (-np.pi / 2, (14, 32))):
        arrow = painted("arrow", angle)
        assert arrow[row, column] > 0.9  # the tip: right, down, left, up
        # The head is a triangle of base 1.5 and height 1, the shaft a bar of 1 × 0.56 radii.
        assert arrow.sum() == pytest.approx((0.75 + 0.56) * 20**2, rel=0.03)


@pytest.mark.parametrize("shape", [*SHAPES, "disc", "cross"])
def test_shapes_fit_their_window_and_wrap_round(shape: str) -> None:
    u, v = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-2, 2, 201))
    assert motion_scenes._distance(shape, u, v)[np.hypot(u, v) > 1.1].min() > 0
    # The frame is a torus: moved by whole pixels, the picture is rolled.
    centred = painted(shape, 0.7)
    assert np.allclose(painted(shape, 0.7, x=2.5, y=60.5), np.roll(centred, (28, -30), (0, 1)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rotation_always_shows(shape: str) -> None:
    still = painted(shape, 0)
    for angle in np.arange(0.2, 2 * np.pi - 0.2, 0.1):
        turned = painted(shape, angle)
        assert np.minimum(still, turned).sum() < 0.93 * still.sum()


def test_the_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.*"))}

    first = content(motion.generate(tmp_path / "a", SMALL, progress=False))
    second = content(motion.generate(tmp_path / "b", SMALL, progress=False))
    assert first == second
    assert len(first) == 6 * 4 * 2 + 7
    videos = [data for name, data in first.items() if name.endswith(".avi")]
    assert len(set(videos)) == len(videos)
    one = motion.render(SMALL, 0, 1, 1)
    assert np.array_equal(one, motion.render(SMALL, 0, 1, 1))
    assert not np.array_equal(one, motion.render(dataclasses.replace(SMALL, seed=1), 0, 1, 1))


def test_the_digest_names_the_parameters() -> None:
    digests = {SMALL.digest}
    for change in (
        {"task": "appearance"}, {"seed": 1}, {"groups": 5}, {"clips_per_group": 3}, {"size": 34}, {"length": 13},
        {"fps": 24}, {"noise": 3},
    ):  # fmt: skip
        digests.add(dataclasses.replace(SMALL, **change).digest)
    assert len(digests) == 9
    assert all(len(digest) == 8 and int(digest, 16) >= 0 for digest in digests)
    assert MotionParameters(noise=2).digest == MotionParameters(noise=2.0, length=24).digest
    folder = motion.folder("data", MotionParameters())
    assert folder == Path("data/motion") / f"local_motion-{MotionParameters().digest}"


def test_the_lists_are_ucf101s(tmp_path: Path) -> None:
    root = motion.generate(tmp_path, SMALL, progress=False)
    assert ucf101.class_names(root) == motion.class_names("local_motion")
    tested = set()
    for split in (1, 2, 3):
        entries = ucf101.read_split(root, split, validation=0, missing="error")
        assert len(entries) == 6 * 4 * 2
        groups = {subset: {e.group[-3:] for e in entries if e.subset == subset} for subset in ("train", "test")}
        assert groups["test"] == {f"g{split:02d}"}
        assert not groups["train"] & groups["test"]
        tested |= groups["test"]
    assert len(tested) == 3


def test_the_default_tests_420_videos_of_seven_groups(tmp_path: Path) -> None:
    motion._write_lists(tmp_path, MotionParameters())
    for split, groups in ((1, range(1, 8)), (2, range(8, 15)), (3, range(15, 22))):
        lines = (tmp_path / ucf101.LISTS / f"testlist{split:02d}.txt").read_text().splitlines()
        assert len(lines) == 420
        assert {line.split("_g")[1][:2] for line in lines} == {f"{group:02d}" for group in groups}
        assert len((tmp_path / ucf101.LISTS / f"trainlist{split:02d}.txt").read_text().splitlines()) == 1080


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = motion.in_children

    def interrupted(*arguments, **options):
        yield from list(original(*arguments, **options))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(motion, "in_children", interrupted)
    with pytest.raises(KeyboardInterrupt):
        motion.generate(tmp_path, SMALL, progress=False)
    assert not [file for file in tmp_path.rglob("*") if not file.name.endswith(".lock") and file.name != "motion"]
    monkeypatch.undo()
    # A killed process could not clean up; what it left is not taken for a video.
    target = motion.folder(tmp_path, SMALL)
    leftover = target.with_name(f".{target.name}.partial") / "UCF-101" / "Grow" / "v_Grow_g99_c01.avi"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a video")
    root = motion.generate(tmp_path, SMALL, progress=False)
    assert len(list(root.rglob("*.avi"))) == 48
    assert not list(root.rglob("*_g99_*"))
    assert not leftover.exists()


def test_two_processes_at_once_generate_once(tmp_path: Path) -> None:
    script = (
        "import sys; from kinoscope.data import motion\n"
        "p = motion.MotionParameters(groups=4, clips_per_group=2, size=32, length=12)\n"
        "write = motion._write_videos\n"
        "motion._write_videos = lambda *a: (print('generating'), write(*a))\n"
        "print(motion.generate(sys.argv[1], p, progress=False).name)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=400)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum("generating" in output for output in outputs) == 1
    assert {output[-1] for output in outputs} == {motion.folder(tmp_path, SMALL).name}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(KinoscopeError, match="motion cannot be written to") as caught:
        motion.generate(tmp_path / "file", SMALL, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(KinoscopeError, match=r"motion cannot be written to .*No such file"):
        motion._write_group(str(tmp_path), dataclasses.asdict(SMALL), 0, 1)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"task": "local_motoin"}, "did you mean 'local_motion'"),
        ({"groups": 3}, "groups must lie between 4 and 99"),
        ({"clips_per_group": 0}, "clips_per_group"),
        ({"size": 63}, "even"),
        ({"size": 16}, "size must lie"),
        ({"task": "order", "length": 40}, "length must lie between 88"),
        ({"noise": -1}, "noise"),
        ({"fps": 0}, "fps"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_parameters_are_refused(values: dict, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        MotionParameters(**values)


def test_the_encoding_is_plain() -> None:
    video = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)  # every frame a sudden change
    with av.open(io.BytesIO(motion.encode(video, 25)), "r") as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.codec_context.name == "mpeg4"
        assert stream.average_rate == 25
    kinds = [PictureType(frame.pict_type).name for frame in frames]
    assert kinds == (["I", *["P"] * 11] * 3)[:30]
