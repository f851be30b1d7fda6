"""Flow is what moves, and is read back as it was computed."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from kinoscope.data import flow
from kinoscope.data.flow import DIS, METHODS, TVL1, Farneback, FlowKeeper, FlowMethod, FlowSource
from kinoscope.data.keeping import keeper, kept_file
from kinoscope.data.lists.listing import VideoEntry, listing
from kinoscope.data.manifest import SCHEMA, Manifest, write
from kinoscope.errors import DecodeError

HEIGHT, WIDTH = 60, 80
METHOD_IDS = {"argvalues": [Farneback(), DIS(), TVL1()], "ids": list(METHODS)}


def texture(shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """A smooth pattern (HEIGHT, WIDTH) that has moved by (x, y) pixels."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    x, y = x - shift[0], y - shift[1]
    waves = [np.cos(a * x + b * y + c) for a, b, c in rng.uniform((-0.5, -0.5, 0), (0.5, 0.5, 6.3), (12, 3))]
    total = np.sum(waves, axis=0)
    return (127 + 127 * total / 8).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", **METHOD_IDS)
def test_a_shift_is_found_with_its_sign(method: FlowMethod) -> None:
    assert method.unusable() == ""
    field = method(texture(), texture((2.0, -1.0)))  # right and up
    inner = field[12:-12, 12:-12]
    assert field.shape == (HEIGHT, WIDTH, 2)
    assert field.dtype == np.float32
    assert np.abs(np.median(inner, axis=(0, 1)) - (2.0, -1.0)).max() < 0.25, np.median(inner, axis=(0, 1))


@pytest.mark.parametrize("method", **METHOD_IDS)
def test_no_pair_remembers_the_one_before(method: FlowMethod) -> None:
    fresh = method(texture(), texture((1.0, 1.0)))
    method(texture(), texture((-3.0, 0.0)))
    assert np.array_equal(method(texture(), texture((1.0, 1.0))), fresh)


def test_bytes_keep_a_displacement_to_half_a_step_and_standing_still_exactly() -> None:
    field = np.random.default_rng(0).normal(0, 3, (7, 9, 2)).astype(np.float32)
    field[0, 0] = 0
    planes, bound = flow.encode(field)
    assert bound == pytest.approx(np.abs(field).max())
    back = (planes.astype(float) - 128) * bound / 127
    assert np.abs(back - field.transpose(2, 0, 1)).max() <= bound / 254 * 1.001
    assert (back[:, 0, 0] == 0).all()
    assert planes.min() >= 1  # symmetric: 0 would be a displacement that has no opposite


def test_a_fixed_bound_cuts_off_and_is_recorded() -> None:
    planes, bound = flow.encode(np.array([[[40.0, -40.0], [10.0, 0.0]]], np.float32), bound=20.0)
    assert bound == 20.0
    assert planes[:, 0].tolist() == [[255, 192], [1, 128]]  # 192 = 128 + round(63.5), rounded to even


def test_a_field_without_motion_or_with_nonsense_is_stored_as_standing_still() -> None:
    still, bound = flow.encode(np.zeros((3, 4, 2), np.float32))
    assert bound == 0
    assert (still == 128).all()
    broken, bound = flow.encode(np.array([[[np.nan, np.inf], [1.0, 0.0]]], np.float32))
    assert bound == 1
    assert broken.tolist() == [[[128, 255]], [[128, 128]]]


def made(**changes: object) -> FlowKeeper:
    parameters = {"method": "farneback", "settings": {"levels": 1}, **changes}
    return FlowKeeper(**parameters)  # pyright: ignore[reportArgumentType]


def kept(keeping: FlowKeeper, folder: Path, frames: int = 5) -> tuple[FlowSource, list[np.ndarray]]:
    """A video of moving texture kept so: its source, and the grey frames that were seen."""
    keeping.folder = folder
    manifest = folder / "manifest.arrow"
    table = listing([VideoEntry("Class/v.avi", 0, "g", "train")])
    rest = {f.name: pa.array([f.type.to_pandas_dtype()()], f.type) for f in list(SCHEMA)[len(table.schema) :]}
    write(pa.table([*table.columns, *rest.values()], SCHEMA.names), manifest, "pyav")
    source = FlowSource(folder, Manifest.open(manifest), keeping.backward)
    target = source.path(0)
    assert target == kept_file(keeping, "Class/v.avi")
    target.parent.mkdir(parents=True)
    sink = keeping.begin(target, HEIGHT, WIDTH, 25.0)
    pictures = [texture((1.5 * t, 0.5 * t)) for t in range(frames)]
    for picture in pictures:
        sink.add(av.VideoFrame.from_ndarray(picture, format="gray"))
    sink.close()
    return source, pictures


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_kept_is_what_was_computed(tmp_path: Path, backward: bool) -> None:
    keeping = made(backward=backward)
    source, frames = kept(keeping, tmp_path)
    pairs = np.array([3, 0, 2, 3])
    back = np.array([False, True, True, True]) & backward
    planes, bounds = source.read(0, pairs, back)
    for place, (k, reverse) in enumerate(zip(pairs, back, strict=True)):
        first, second = (frames[k + 1], frames[k]) if reverse else (frames[k], frames[k + 1])
        expected, bound = flow.encode(keeping.method(first, second))
        assert np.array_equal(planes[place], expected)
        assert bounds[place] == np.float32(bound)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 40), (45, 61)])
def test_frames_of_any_size_are_kept_or_named_as_impossible(tmp_path: Path, method: str, size: tuple[int, int]) -> None:
    """45 × 61 is no multiple of what FFmpeg pads rows to, which OpenCV's DIS once did not take."""
    keeping = made(method=method, settings={})
    sink = keeping.begin(tmp_path / "v.flow", *size, 25.0)
    rng = np.random.default_rng(0)
    try:
        for _ in range(2):
            sink.add(av.VideoFrame.from_ndarray(rng.integers(256, size=(*size, 3), dtype=np.uint8), format="rgb24"))
    except DecodeError as error:
        sink.file.close()
        assert min(size) < 45
        assert f"{size[0]}×{size[1]}" in str(error)
    else:
        sink.close()
        assert (tmp_path / "v.flow").stat().st_size <= keeping.bytes_for(2, *size)


def test_frames_are_resized_before_and_a_file_is_no_larger_than_foretold(tmp_path: Path) -> None:
    keeping = made(resize=[30, 40], backward=True)
    source, _ = kept(keeping, tmp_path)
    planes, bounds = source.read(0, np.array([1]))
    assert planes.shape == (1, 2, 30, 40)
    assert 0.5 < bounds[0] < 2.5  # pixels of the resized frames
    assert source.path(0).stat().st_size <= keeping.bytes_for(5, HEIGHT, WIDTH)


def test_the_foretold_size_holds_for_noise(tmp_path: Path) -> None:
    sink = made().begin(tmp_path / "v.flow", HEIGHT, WIDTH, 25.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        sink._keep(rng.uniform(-1, 1, (HEIGHT, WIDTH, 2)).astype(np.float32))
    sink.close()
    assert 0.9 < (tmp_path / "v.flow").stat().st_size / made().bytes_for(4, HEIGHT, WIDTH) <= 1


def test_a_keeper_is_made_anew_from_json(tmp_path: Path) -> None:
    first = keeper("flow", tmp_path, "root", method="tvl1", settings={"warps": 2}, resize=(30, 40), bound=20.0)
    parameters = json.loads(json.dumps(first.parameters()))
    second = keeper(parameters.pop("kind"), tmp_path, "root", **parameters)
    assert second.folder == first.folder
    assert second.parameters() == first.parameters()
    other = keeper("flow", tmp_path, "root", **{**parameters, "settings": {"warps": 3}})
    assert other.folder != first.folder


@pytest.mark.parametrize("damage", ["cut", "zeroed", "text", "missing", "empty"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    source, _ = kept(made(), tmp_path)
    path = source.path(0)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(whole) // 2
        damaged = {
            "cut": whole[:middle],
            "zeroed": bytes(middle) + whole[middle:],
            "text": b"flow " * 100,
            "empty": b"",
        }
        path.write_bytes(damaged[damage])
    with pytest.raises(DecodeError, match=r"v\.avi\.flow: .*run kinoscope prepare"):
        source.read(0, np.arange(4))


def test_a_field_beyond_the_last_frame_is_an_error(tmp_path: Path) -> None:
    source, _ = kept(made(), tmp_path)
    assert len(source.read(0, np.array([3]))[0]) == 1
    with pytest.raises(DecodeError, match="it holds 4"):
        source.read(0, np.array([4]))
    with pytest.raises(DecodeError):
        source.read(0, np.array([-1]))


def test_a_stack_is_read_without_the_rest(tmp_path: Path) -> None:
    source, _ = kept(made(), tmp_path)
    expected = source.read(0, np.array([1]))
    whole = bytearray(source.path(0).read_bytes())
    sizes = np.frombuffer(bytes(whole), "<i8", 5, len(whole) - flow.TAIL.size - 4 * 4 - 5 * 8)
    whole[: sizes[1]] = bytes(int(sizes[1]))  # field 0 is gone
    source.path(0).write_bytes(whole)
    assert np.array_equal(source.read(0, np.array([1]))[0], expected[0])
    with pytest.raises(DecodeError):
        source.read(0, np.array([0]))


@pytest.mark.parametrize(
    "make", [lambda: Farneback(levels=0), lambda: Farneback(pyramid_scale=1.0), lambda: TVL1(tau=0)]
)
def test_settings_that_cannot_be_are_named(make: object) -> None:
    with pytest.raises(ValueError, match=r"data\.flow\.method"):
        make()  # pyright: ignore[reportCallIssue]


def test_without_opencv_or_its_contrib_build_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.delattr(cv2, "optflow")
    assert "contrib" in TVL1().unusable()
    assert Farneback().unusable() == ""
    monkeypatch.setattr(flow.importlib.util, "find_spec", lambda name: None)
    for method in (Farneback(), DIS(), TVL1()):
        assert "kinoscope[flow]" in method.unusable()


def test_frames_too_small_for_dis_are_an_error_not_a_crash() -> None:
    with pytest.raises(DecodeError, match="16 pixels"):
        DIS()(texture()[:10], texture()[:10])
