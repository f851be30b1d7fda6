"""Every decoder against counting from the start, on every way of coding of `encoded`."""

from __future__ import annotations

from pathlib import Path

import encoded
import numpy as np
import pytest
from encoded import KINDS

from kinoscope.data import decode
from kinoscope.data.decode import READERS, SAME, Decoder
from kinoscope.data.decoders import Astray, pyav, torchcodec
from kinoscope.errors import KinoscopeError

NO_TORCHCODEC = decode.unusable("torchcodec")
IF_TORCHCODEC = pytest.mark.skipif(NO_TORCHCODEC != "", reason=NO_TORCHCODEC)
DECODERS: list = ["pyav", "decord", pytest.param("torchcodec", marks=IF_TORCHCODEC)]
# Streams whose stamps follow from the frame's number, whatever else they hold.
STEADY = sorted(set(KINDS) - {"h264-varying-rate", "h264-gaps", "h264-refresh", "h264-avi"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    for name, kind in KINDS.items():
        encoded.write(folder / f"{name}{kind.suffix}", kind)
    return folder


def counted(path: Path) -> np.ndarray:
    return pyav.count(path, range(encoded.FRAMES), None)


def index_lists(name: str) -> list[list[int]]:
    """Clips, single frames, sparse ones; sorted or not, with repeats."""
    draws = np.random.default_rng(sum(map(ord, name)))
    last = encoded.FRAMES - 1
    lists = [draws.integers(0, last + 1, 5).tolist() for _ in range(8)]
    starts = draws.integers(0, last - 15, 4).tolist()
    lists += [list(range(start, start + 16)) for start in starts] + [list(range(last - 15, last + 1))]
    lists += [[0], [last], [last, 0, last], [1, 11, 12, 13, 24, 36], [40, 3, 3, 41, 8]]
    return [*lists, list(range(0, last + 1, 7))]


@pytest.mark.parametrize("name", KINDS)
def test_counting_finds_every_frame(folder: Path, name: str) -> None:
    kind = KINDS[name]
    frames = counted(folder / f"{name}{kind.suffix}")
    assert frames.shape == (encoded.FRAMES, *kind.size, 3)
    assert encoded.numbers(frames) == list(range(kind.first, kind.first + encoded.FRAMES))
    # What was drawn is what is seen: the wrong picture under the right number would be far off.
    drawn = np.stack([encoded.picture(kind.first + number, kind.size) for number in range(encoded.FRAMES)])
    assert np.abs(frames.mean(-1) - drawn.mean(-1)).mean() < 6


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", KINDS)
def test_frames_are_exact_by_whatever_way_probe_found_right(folder: Path, name: str, decoder: Decoder) -> None:
    path = folder / f"{name}{KINDS[name].suffix}"
    info = decode.probe(path, decoder)
    assert (info.frames, info.damaged) == (encoded.FRAMES, 0)
    truth = counted(path)
    for wanted in index_lists(name):
        frames = decode.decode(path, wanted, None, decoder, sequential=not info.random_access)
        assert encoded.numbers(frames) == encoded.numbers(truth[wanted]), (wanted, info.random_access)
        # Two FFmpeg versions may round a pixel differently, by one level; a neighbour is some ten levels away.
        assert np.abs(frames.astype(int) - truth[wanted]).mean((1, 2, 3)).max() <= SAME[decoder]
        small = decode.decode(path, wanted, (36, 44), decoder, sequential=not info.random_access)
        assert encoded.numbers(small) == encoded.numbers(truth[wanted])


@pytest.mark.parametrize("name", STEADY)
def test_pyav_seeks_wherever_stamps_are_steady(folder: Path, name: str) -> None:
    path = folder / f"{name}{KINDS[name].suffix}"
    assert decode.probe(path, "pyav").random_access
    truth = counted(path)
    for wanted in index_lists(name):
        asked = sorted(set(wanted))
        assert np.array_equal(pyav.read(path, asked, None), truth[asked])  # without the help of counting


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("mpeg4-b", "decord"), ("mpeg4-packed", "decord"), ("h264-trimmed", "decord"), ("h264-gaps", "pyav"),
     ("h264-varying-rate", "pyav"), ("h264-refresh", "pyav")],
)  # fmt: skip
def test_seeks_that_mislead_are_found_out(folder: Path, name: str, decoder: Decoder) -> None:
    path = folder / f"{name}{KINDS[name].suffix}"
    truth, wrong = counted(path), 0
    for wanted in range(0, encoded.FRAMES - 1, 2):
        try:
            wrong += not np.array_equal(READERS[decoder](path, [wanted], None)[0], truth[wanted])
        except Astray:
            continue
    assert wrong > 3  # otherwise there is nothing to find
    assert not decode.probe(path, decoder).random_access


def test_decord_s_last_frame_is_never_the_one_before(folder: Path) -> None:
    path = folder / "mpeg4-b-one-key.avi"
    last = encoded.FRAMES - 1
    for _ in range(20):  # its race is lost every few times
        assert encoded.numbers(decode.decode(path, [last], None, "decord")) == [last]


@pytest.mark.parametrize(("name", "jumps"), [("mpeg4", 2), ("h264-b", 2), ("mpeg4-packed-one-key", 1)])
def test_a_seek_is_made_where_it_saves_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, jumps: int
) -> None:
    runs: list[int] = []
    run = pyav._Seeker._run
    monkeypatch.setattr(pyav._Seeker, "_run", lambda seeker, *how: runs.append(how[0]) or run(seeker, *how))
    path = folder / f"{name}{KINDS[name].suffix}"
    pyav.read(path, range(encoded.FRAMES), None)  # past every key frame
    assert len(runs) == 1
    runs.clear()
    pyav.read(path, [3, 4, 5, 65, 66], None)
    assert len(runs) == jumps


def test_who_needs_all_frames_is_handed_them_by_probe(folder: Path) -> None:
    seen: list[int] = []
    shrink = pyav.Scaler(None)
    decode.probe(folder / "mpeg4.avi", each=lambda frame: seen.extend(encoded.numbers(shrink(frame)[None])))
    assert seen == list(range(encoded.FRAMES))


@pytest.mark.skipif(NO_TORCHCODEC == "", reason="torchcodec works here")
def test_a_decoder_that_is_not_there_is_one_sentence(folder: Path) -> None:
    torchcodec.library.cache_clear()
    with pytest.raises(KinoscopeError, match=r"^data.decoder=torchcodec [^.\n]*(install|take pyav)"):
        decode.decode(folder / "mpeg4.avi", [0], None, "torchcodec")
