"""What is kept of a video is the video: the very frames where nothing is lost, and in no cache ever another one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import encoded
import numpy as np
import pyarrow as pa
import pytest
import torch
from encoded import FRAMES, KINDS

from kinoscope.data import decode
from kinoscope.data.cache import make_source
from kinoscope.data.cache.kept import CHUNK, ENTRY, FOOTER, FrameKeeper
from kinoscope.data.cache.reencode import SPACING
from kinoscope.data.datasets import Motion
from kinoscope.data.keeping import keeper, kept_file
from kinoscope.data.manifest import SCHEMA, Manifest, write
from kinoscope.data.sources import Files
from kinoscope.errors import DecodeError

CACHES = ["raw", "jpeg", "reencode"]
LOSSY = ["jpeg", "reencode"]
SIZES = {"own": None, "short": 40, "exact": (50, 72)}
LEAST = 30.0  # dB, of what a lossy cache gives back of the pictures of `encoded`


class Kept:
    """Some videos with a manifest, and caches of them, made as `prepare` makes them.

    Args:
        folder: for all of it.
        videos: paths.
    """

    def __init__(self, folder: Path, videos: list[Path]) -> None:
        self.folder, self.videos = folder, videos
        infos = [decode.probe(video) for video in videos]
        columns: dict[str, list[Any]] = {field.name: [""] * len(videos) for field in SCHEMA}
        for name in ("frames", "fps", "width", "height", "key_frame_spacing", "damaged", "random_access"):
            columns[name] = [getattr(info, name) for info in infos]
        columns |= {"path": [video.name for video in videos], "labels": [[0]] * len(videos)}
        columns |= {name: [0] * len(videos) for name in ("bytes", "modified")}
        write(pa.table(columns, SCHEMA), folder / "manifest.arrow", "pyav")
        self.manifest = Manifest.open(folder / "manifest.arrow")

    @functools.cache  # noqa: B019 - as long as the module's tests
    def keeper(self, kind: Any, resize: Any) -> FrameKeeper:
        """The keeper that has kept all videos."""
        made: Any = keeper(kind, self.folder, self.folder, resize=resize)
        for video in self.videos:
            keep(made, video, kept_file(made, video.name))
        return made

    def source(self, kind: Any, resize: Any) -> Any:
        if kind == "none":
            return Files(self.folder, self.manifest, resize)
        return make_source(kind, self.keeper(kind, resize).folder, self.folder, self.manifest, resize)

    def whole(self, kind: str, resize: Any, row: int) -> np.ndarray:
        return self.source(kind, resize).read(row, np.arange(self.manifest.column("frames")[row]))


def keep(keeper: Any, video: Path, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    sinks = []
    decode.probe(video, each=lambda frame: sinks[0].add(frame), begin=lambda *of: sinks.append(keeper.begin(file, *of)))
    sinks[0].close()
    return file


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    return Kept(folder, [encoded.write(folder / f"{name}{kind.suffix}", kind) for name, kind in KINDS.items()])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2)))


def index_lists(draws: np.random.Generator) -> list[np.ndarray]:
    """A clip, one with a stride, one frame, the last ones, any ones; sorted or not, with repeats."""
    start = int(draws.integers(0, FRAMES - 48))
    lists = [range(start, start + 16), range(start, start + 48, 3), [start], [FRAMES - 1, FRAMES - 2], [9, 9, 9]]
    return [np.array(indices) for indices in [*lists, draws.integers(0, FRAMES, 12)]]


@pytest.mark.parametrize("resize", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", KINDS)
def test_raw_gives_what_decoding_gives_to_the_bit(kept: Kept, name: str, resize: Any) -> None:
    row = list(KINDS).index(name)
    source, files = kept.source("raw", resize), kept.source("none", resize)
    draws = np.random.default_rng(row)
    height, width = decode.target_size(*KINDS[name].size, resize)
    for indices in index_lists(draws):
        assert np.array_equal(source.read(row, indices), files.read(row, indices)), indices
        high, wide = int(draws.integers(1, height + 1)), int(draws.integers(1, width + 1))
        box = int(draws.integers(height - high + 1)), int(draws.integers(width - wide + 1)), high, wide
        assert np.array_equal(source.read(row, indices, box), files.read(row, indices, box)), (indices, box)


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("name", KINDS)
def test_a_lossy_cache_holds_every_frame_at_its_number(kept: Kept, name: str, kind: str) -> None:
    row = list(KINDS).index(name)
    whole = kept.whole(kind, None, row)
    exact = kept.whole("raw", None, row)
    assert whole.shape == exact.shape == (FRAMES, *KINDS[name].size, 3)
    assert encoded.numbers(whole) == list(range(KINDS[name].first, KINDS[name].first + FRAMES))
    worst = min(psnr(*pair) for pair in zip(whole, exact, strict=True))
    assert worst > LEAST, f"{worst:.1f} dB"


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("resize", SIZES.values(), ids=SIZES)
def test_a_frame_is_the_same_however_it_is_asked_for(kept: Kept, kind: str, resize: Any) -> None:
    draws = np.random.default_rng(3)
    for name in ("mpeg4-odd", "h264-72-wide"):
        row = list(KINDS).index(name)
        source, whole = kept.source(kind, resize), kept.whole(kind, resize, row)
        assert whole.shape[1:3] == decode.target_size(*KINDS[name].size, resize)
        for indices in [*index_lists(draws), *([np.array([number]) for number in range(2 * SPACING)])]:
            assert np.array_equal(source.read(row, indices), whole[indices]), indices
        for _ in range(10):
            top, left = int(draws.integers(0, 20)), int(draws.integers(0, 20))
            high, wide = int(draws.integers(1, 21)), int(draws.integers(1, 21))
            cut = source.read(row, np.arange(3, 12), (top, left, high, wide))
            assert np.array_equal(cut, whole[3:12, top : top + high, left : left + wide])


@pytest.mark.parametrize("kind", CACHES)
def test_the_same_video_is_kept_as_the_same_bytes_by_a_keeper_made_of_its_parameters(kept: Kept, kind: str) -> None:
    first = kept.keeper(kind, 40)
    again: Any = keeper(**json.loads(json.dumps(first.parameters())))
    assert again.parameters() == first.parameters()
    for video in kept.videos[:3]:
        file = keep(again, video, kept.folder / f"again{again.suffix}")
        assert file.read_bytes() == kept_file(first, video.name).read_bytes()


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("resize", SIZES.values(), ids=SIZES)
def test_a_kept_file_is_no_larger_than_predicted(kept: Kept, kind: str, resize: Any) -> None:
    made = kept.keeper(kind, resize)
    for video, spec in zip(kept.videos, KINDS.values(), strict=True):
        size = kept_file(made, video.name).stat().st_size
        bound = made.bytes_for(FRAMES, *spec.size)
        assert size <= bound
        if kind == "raw":
            height, width = decode.target_size(*spec.size, resize)
            assert size == FRAMES * height * width * 3 + FOOTER.size


@pytest.mark.parametrize("kind", CACHES)
def test_a_file_of_several_chunks_is_whole(kind: str, tmp_path: Path) -> None:
    """Noise is large in every cache; what is written in parts is read as one."""
    draws = np.random.default_rng(0)
    count = 3 * CHUNK // (192 * 256)  # a byte a pixel, or nearly
    pictures = draws.integers(0, 256, (count, 192, 256, 1), dtype=np.uint8).repeat(3, axis=-1)
    made: Any = keeper(kind)
    sink = made.begin(tmp_path / f"noise.avi{made.suffix}", 192, 256, 25.0)
    for picture in pictures:
        sink.add(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    sink.close()
    assert (tmp_path / f"noise.avi{made.suffix}").stat().st_size > 2 * CHUNK
    source = make_source(kind, tmp_path, tmp_path, _manifest(tmp_path, count, 192, 256), None)  # type: ignore[arg-type]
    frames = source.read(0, np.arange(count))
    if kind == "raw":
        assert np.array_equal(frames, pictures)
    else:  # two frames of noise are 7.6 dB apart
        assert min(psnr(*pair) for pair in zip(frames, pictures, strict=True)) > 25


def _manifest(folder: Path, frames: int, height: int, width: int) -> Manifest:
    columns: dict[str, list[Any]] = {field.name: [""] for field in SCHEMA}
    columns |= {"path": ["noise.avi"], "labels": [[0]], "frames": [frames], "height": [height], "width": [width]}
    columns |= {name: [0] for name in ("fps", "key_frame_spacing", "damaged", "bytes", "modified")}
    write(pa.table({**columns, "random_access": [True]}, SCHEMA), folder / "manifest.arrow", "pyav")
    return Manifest.open(folder / "manifest.arrow")


@pytest.mark.parametrize("kind", CACHES)
def test_a_damaged_file_is_named_and_never_gives_a_wrong_frame(kept: Kept, kind: Any) -> None:
    row = list(KINDS).index("mpeg4-odd")
    source, whole = kept.source(kind, 40), kept.whole(kind, 40, row)
    file = kept_file(kept.keeper(kind, 40), kept.videos[row].name)
    sound = file.read_bytes()
    draws = np.random.default_rng(0)
    end = len(sound) - FOOTER.size
    table = end - (ENTRY.itemsize * FRAMES if kind != "raw" else 0)
    flips = [*draws.integers(table, len(sound), 40)] + ([] if kind == "raw" else [*draws.integers(0, table, 40)])
    damages = [sound[:cut] for cut in (0, 1, FOOTER.size, len(sound) // 2, *draws.integers(0, len(sound), 20))]
    damages += [sound[:-1], sound + b"\0", sound[1:], bytes(len(sound)), b"no cache at all"]
    damages += [sound[: len(sound) // 2] + sound[len(sound) // 2 + 1 :]]
    damages += [sound[:at] + bytes([sound[at] ^ 1 << int(draws.integers(8))]) + sound[at + 1 :] for at in flips]
    other = kept.videos[list(KINDS).index("h264-b")]  # of another size
    damages += [kept_file(kept.keeper(kind, 40), other.name).read_bytes()]
    damages += [kept_file(kept.keeper("jpeg" if kind == "raw" else "raw", 40), kept.videos[row].name).read_bytes()]
    refused = 0
    try:
        for damaged in damages:
            file.write_bytes(damaged)
            with pytest.raises(DecodeError) as error:  # some frame of all is the damaged one
                source.read(row, np.arange(FRAMES))
            assert str(error.value).startswith(f"{file}: ")
            assert str(error.value).endswith("remove it and run kinoscope prepare again.")
            for start in range(0, FRAMES, 14):
                indices = np.arange(start, start + 14)
                try:
                    assert np.array_equal(source.read(row, indices), whole[indices])
                except DecodeError:
                    refused += 1
        file.unlink()
        with pytest.raises(DecodeError, match=r"cannot be read .*; run kinoscope prepare\."):
            source.read(row, np.arange(3))
    finally:
        file.write_bytes(sound)
    assert refused < 5 * len(damages) or kind == "raw", "a damaged frame spoils no others but those made from it"
    assert np.array_equal(source.read(row, np.arange(FRAMES)), whole)


def test_a_read_that_the_system_gives_in_parts_is_whole(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux does above 2 GiB."""
    row, whole, parts = 0, kept.whole("raw", 40, 0), []

    def some(descriptor: int, memory: list[memoryview], place: int) -> int:
        parts.append(place)
        return preadv(descriptor, [memory[0][:10_000]], place)

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", some)
    assert np.array_equal(kept.source("raw", 40).read(row, np.arange(FRAMES)), whole)
    assert len(parts) > 10


@pytest.mark.parametrize("kind", CACHES)
def test_a_frame_that_is_not_there_is_an_error(kept: Kept, kind: str) -> None:
    source = kept.source(kind, 40)
    for number in (-1, FRAMES):
        with pytest.raises(DecodeError, match=f"frame {number} was asked for; it has {FRAMES} frames"):
            source.read(0, np.array([0, number]))
    assert source.path(0) == kept.videos[0]


@pytest.mark.parametrize("kind", CACHES)
def test_frames_that_change_in_size_are_kept_only_where_they_are_resized(kind: str, tmp_path: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8)) for size in ((48, 64), (32, 64))]
    own: Any = keeper(kind)
    sink = own.begin(tmp_path / "own", 48, 64, 25.0)
    sink.add(frames[0])
    with pytest.raises(DecodeError, match=r"change in size; give data\.resize both height and width"):
        sink.add(frames[1])
    resized: Any = keeper(kind, resize=(32, 40))
    sink = resized.begin(tmp_path / f"noise.avi{resized.suffix}", 48, 64, 25.0)
    for frame in frames:
        sink.add(frame)
    sink.close()
    source = make_source(kind, tmp_path, tmp_path, _manifest(tmp_path, 2, 48, 64), (32, 40))  # type: ignore[arg-type]
    assert np.abs(source.read(0, np.arange(2)).astype(int) - 90).max() <= 2


def test_mpeg4_refuses_what_it_cannot_code(tmp_path: Path) -> None:
    made = keeper("reencode")
    sink = made.begin(tmp_path / "wide", 16, 9000, 25.0)  # it counts to 8191
    with pytest.raises(DecodeError, match="cannot be coded as MPEG-4"):
        sink.add(av.VideoFrame.from_ndarray(np.zeros((16, 9000, 3), np.uint8)))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
@pytest.mark.parametrize("kind", CACHES)
def test_reading_leaves_nothing_open(kept: Kept, kind: str) -> None:
    source = pickle.loads(pickle.dumps(kept.source(kind, 40)))
    views = [source.read(0, np.arange(8)) for _ in range(3)]
    assert np.array_equal(views[0], views[2])
    del views

    def opened() -> int:
        """Of the folder's files: other threads open and close their own."""
        found = 0
        for descriptor in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):
                found += descriptor.readlink().is_relative_to(kept.folder)
        return found

    with kept.videos[0].open("rb"):
        assert opened() > 0
    open_files = opened()
    for number in range(200):
        source.read(0, np.arange(number % 50, number % 50 + 8)).sum()
    assert opened() <= open_files


def test_children_that_prepare_wait_for_no_torch() -> None:
    program = (
        "import sys; from kinoscope.data.keeping import keeper; "
        "[keeper(kind, resize=8).begin(__import__('pathlib').Path('/dev/null'), 16, 16, 25.0) "
        f"for kind in {CACHES}]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_training_reads_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same clips as without one, to the bit where nothing is lost; the videos themselves are not opened."""

    def first(cache: Any) -> torch.Tensor:
        data = Motion(data_dir=str(tmp_path), groups=4, clips_per_group=1, batch_size=8, workers=0, cache=cache)
        data.prepare_data()
        with monkeypatch.context() as patched:
            if cache != "none":
                patched.setattr("kinoscope.data.sources.decode", None)
            data.setup()
            return next(iter(data.train_dataloader()))["video"]

    decoded = first("none")
    assert torch.equal(decoded, first("raw"))
    for kind in LOSSY:
        assert psnr(decoded.numpy(), first(kind).numpy()) > LEAST
