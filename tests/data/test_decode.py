"""Exact frames from the decoders, and clear errors, on videos encoded here and on real ones."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from kinoscope.data import decode, motion
from kinoscope.data.decode import Decoder
from kinoscope.errors import DecodeError

DECODERS: tuple[Decoder, ...] = ("decord", "pyav")
FRAMES = 30


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 grey frames of 48×64 pixels, frame k of level 8k: what is read says which frame it is."""
    levels = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * 8
    frames = np.broadcast_to(levels, (FRAMES, 48, 64, 3)).copy()
    path = tmp_path_factory.mktemp("decode") / "counter.avi"
    path.write_bytes(motion.encode(frames, 25))
    return path


def cut(path: Path, frames: int) -> bytes:
    """The file as an interrupted copy leaves it, in the middle of the chunk of one frame."""
    whole = path.read_bytes()
    position = whole.index(b"movi")
    for _ in range(frames + 1):
        position = whole.index(b"00dc", position) + 4
    return whole[: position + 8]


def numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames.mean((1, 2, 3)) / 8).astype(int).tolist()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("wanted", [[0], [29], [11, 12, 13], [0, 29], [17, 3, 3, 28, 0], list(range(FRAMES))])
def test_frames_come_in_the_order_asked_for(counter: Path, decoder: Decoder, wanted: list[int]) -> None:
    frames = decode.decode(counter, wanted, decoder=decoder)
    assert frames.shape == (len(wanted), 48, 64, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames) == wanted


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("size", "shape"), [(24, (24, 32)), (96, (96, 128)), ((20, 30), (20, 30)), (None, (48, 64))])
def test_size_is_the_short_side_or_exact(
    counter: Path, decoder: Decoder, size: decode.Size | None, shape: tuple[int, int]
) -> None:
    frames = decode.decode(counter, [5, 25], size, decoder)
    assert frames.shape[1:3] == shape
    assert numbers(frames) == [5, 25]


def test_a_short_side_keeps_the_proportions() -> None:
    assert decode.fit(320, 240, 120) == (120, 160)
    assert decode.fit(240, 320, 120) == (160, 120)
    assert decode.fit(320, 240, 128) == (128, 171)
    assert decode.fit(320, 240, (112, 112)) == (112, 112)
    for size in (0, (3,), (0, 3)):
        with pytest.raises(ValueError, match="size"):
            decode.fit(320, 240, size)


def test_probe_counts_what_can_be_decoded(counter: Path) -> None:
    assert decode.probe(counter) == decode.VideoInfo(
        frames=FRAMES, fps=25, width=64, height=48, key_frame_spacing=12, damaged=0, claimed=FRAMES, random_access=True
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_both_decoders_agree_on_motion(tmp_path: Path, decoder: Decoder) -> None:
    parameters = motion.MotionParameters(size=32)
    rendered = motion.render(parameters, label=1, group=3, clip=2)
    path = tmp_path / "motion.avi"
    path.write_bytes(motion.encode(rendered, 25))
    frames = decode.decode(path, range(24), decoder=decoder)
    assert np.array_equal(frames, decode.decode(path, range(24), decoder="pyav"))
    # The colours lose half their resolution, the brightness next to nothing: noise alone has 2 levels of 255.
    assert np.abs(frames.mean(-1) - rendered.mean(-1)).mean() < 3


@pytest.mark.parametrize("decoder", DECODERS)
def test_bad_files_give_one_sentence(
    counter: Path, tmp_path: Path, decoder: Decoder, capfd: pytest.CaptureFixture
) -> None:
    faults = {
        "missing.avi": (None, "no such file"),
        "empty.avi": (b"", "empty"),
        "text.avi": (b"these are words\n" * 300, "is not a video"),
        "half.avi": (cut(counter, 15), "frame 29 was asked for, but only"),
    }
    for name, (content, reason) in faults.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for size in (None, 24):
            with pytest.raises(DecodeError, match=reason) as caught:
                decode.decode(path, [0, 29], size, decoder)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
        if name != "half.avi":
            with pytest.raises(DecodeError):
                decode.probe(path)
    with pytest.raises(DecodeError, match="only 30 frames"):
        decode.decode(counter, [30], decoder=decoder)
    with pytest.raises(DecodeError, match="numbered from 0"):
        decode.decode(counter, [-1], decoder=decoder)
    printed = [line for line in capfd.readouterr().err.splitlines() if "ERROR opening" not in line]
    assert not printed


def test_a_truncated_video_is_counted_honestly(counter: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.avi"
    path.write_bytes(cut(counter, 15))
    info = decode.probe(path)
    assert info.claimed == FRAMES
    assert 15 <= info.frames <= 16  # the frame that was cut in two may be patched up
    assert numbers(decode.decode(path, [0, 5], decoder="pyav")) == [0, 5]


def test_a_reader_is_closed_at_once(counter: Path, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("open files are counted through /proc")
    path = tmp_path / "alone.avi"  # of which no earlier test's traceback can hold a reader
    path.write_bytes(counter.read_bytes())

    def opened() -> int:
        found = 0
        for descriptor in list(descriptors.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another thread's, or that of the listing
                found += descriptor.readlink() == path
        return found

    with path.open("rb"):
        assert opened() == 1
    for _ in range(20):
        for decoder in DECODERS:
            decode.decode(path, [0, 20], 24, decoder)
            assert opened() == 0


@pytest.mark.parametrize("folder", ["ucf101", "ucf101-mp4"])
def test_decoders_agree_on_real_videos(datasets: Path, folder: str) -> None:
    files = sorted((datasets / folder / "UCF-101").glob("*/*"))[::25]
    # These hold packed B-frames and one key frame.
    files += sorted((datasets / folder / "UCF-101").glob("BabyCrawling/*_g08_c0[23].avi"))
    for file in files:
        info = decode.probe(file)
        assert info.random_access
        last = info.frames - 1
        wanted = [last, 0, last // 2, last - 1, 7, last]
        counted = decode.decode(file, wanted, (60, 80), sequential=True)
        assert np.array_equal(decode.decode(file, wanted, (60, 80), "pyav"), counted)
        # A neighbouring frame differs by several grey levels; the scalers of two FFmpeg versions by a fraction of one.
        decord = decode.decode(file, wanted, (60, 80), "decord")
        assert np.abs(decord.astype(int) - counted).mean((1, 2, 3)).max() < 0.6, file
