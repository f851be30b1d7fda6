"""Optical flow: three ways to compute it, and how it is kept, one file per video, while `prepare` decodes the video.

Field k is where the pixels of frame k are in frame k + 1: displacements (x, y) in pixels of the resized frames, x to
the right and y down. A video of n frames has n − 1 fields; with ``backward`` there is a second one for each pair, from
frame k + 1 to frame k. A field is stored as two planes of bytes (Simonyan and Zisserman 2014, §4.1, store it so too),

    byte = 128 + round(127 · displacement / bound),

with the bound beside it: the field's own largest displacement, so that nothing is cut off and the step is as fine as
can be, or one for all. Standing still is stored exactly. A file:

    fields     each row less the one above it, compressed for each field alone, so that a stack is read without the rest
    offsets    int64 (fields + 1,)
    bounds     float32 (fields,)
    tail       magic, height, width, fields

Nothing here imports torch: `prepare` runs it in processes that have to start at once.

Shape legend: n fields, h height, w width of the resized frames.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kinoscope.data.decode import target_size
from kinoscope.data.manifest import Manifest
from kinoscope.errors import DecodeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

MAGIC = b"kinoflow"
CODEC = "zstd"
TAIL = struct.Struct("<8sIIQ")  # magic, height, width, fields
STILL = 128  # the byte of no displacement
STEPS = 127  # from there to the bound, either way
INSTALL = "pip install kinoscope[flow]"

Grey = NDArray[np.uint8]  # (h, w)
Field = NDArray[np.float32]  # (h, w, 2): x to the right, y down


class FlowMethod(Protocol):
    """Flow from one grey frame to another. Its fields are all its settings, plain numbers and words."""

    name: ClassVar[str]

    def unusable(self) -> str:
        """Why this machine cannot compute it, one sentence, or nothing."""
        ...

    def __call__(self, first: Grey, second: Grey) -> Field:
        """Where the pixels of ``first`` are in ``second``."""
        ...


@dataclass(frozen=True)
class Farneback:
    """Farnebäck, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003, as OpenCV has it.

    Args:
        pyramid_scale: size of a level of the pyramid relative to the one below, between 0 and 1.
        levels: of the pyramid.
        window: side of the averaging window in pixels.
        iterations: per level.
        neighbourhood: side of the polynomials' neighbourhood in pixels: 5 or 7.
        sigma: of the Gaussian in it: 1.1 for 5, 1.5 for 7.
    """

    pyramid_scale: float = 0.5
    levels: int = 3
    window: int = 15
    iterations: int = 3
    neighbourhood: int = 5
    sigma: float = 1.1
    name: ClassVar[str] = "farneback"

    def __post_init__(self) -> None:
        _at_least_one(self, "levels", "window", "iterations", "neighbourhood")
        if not 0 < self.pyramid_scale < 1 or self.sigma <= 0:
            raise ValueError(
                "data.flow.method: of Farneback, pyramid_scale is between 0 and 1 and sigma above 0, got "
                f"{self.pyramid_scale} and {self.sigma}"
            )

    def unusable(self) -> str:
        return _without_opencv(self.name)

    def __call__(self, first: Grey, second: Grey) -> Field:
        import cv2

        start = np.zeros((*first.shape, 2), np.float32)
        settings = (self.pyramid_scale, self.levels, self.window, self.iterations, self.neighbourhood, self.sigma)
        return np.asarray(cv2.calcOpticalFlowFarneback(first, second, start, *settings, 0), np.float32)


@dataclass(frozen=True)
class DIS:
    """Kroeger, Timofte, Dai, Van Gool, "Fast Optical Flow using Dense Inverse Search", ECCV 2016, as OpenCV has it.

    Args:
        preset: how much time it may take: ultrafast, fast or medium.
    """

    preset: Literal["ultrafast", "fast", "medium"] = "medium"
    name: ClassVar[str] = "dis"
    SMALLEST: ClassVar[int] = 16  # pixels: smaller frames have no pyramid

    def unusable(self) -> str:
        return _without_opencv(self.name)

    def __call__(self, first: Grey, second: Grey) -> Field:
        import cv2

        if min(first.shape) < self.SMALLEST:
            raise DecodeError(f"DIS flow needs frames of {self.SMALLEST} pixels, got {first.shape[0]}×{first.shape[1]}")
        presets = {"ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
                   "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}  # fmt: skip
        # Anew for each pair: it would begin at what it found for the last one.
        search: Any = cv2.DISOpticalFlow.create(presets[self.preset])
        return np.asarray(search.calc(first, second, None), np.float32)


@dataclass(frozen=True)
class TVL1:
    """Zach, Pock, Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", DAGM 2007, as OpenCV has it.

    Args:
        tau: time step of the numerical scheme.
        weight: λ of the data term; smaller is smoother.
        theta: tightness of the coupling.
        scales: of the pyramid.
        warps: per scale.
        epsilon: where the iteration stops.
    """

    tau: float = 0.25
    weight: float = 0.15
    theta: float = 0.3
    scales: int = 5
    warps: int = 5
    epsilon: float = 0.01
    name: ClassVar[str] = "tvl1"

    def __post_init__(self) -> None:
        _at_least_one(self, "scales", "warps")
        if min(self.tau, self.weight, self.theta, self.epsilon) <= 0:
            raise ValueError("data.flow.method: tau, weight, theta and epsilon of TVL1 are above 0")

    def unusable(self) -> str:
        if missing := _without_opencv(self.name):
            return missing
        import cv2

        if hasattr(cv2, "optflow"):
            return ""
        return (
            "data.flow.method: TV-L1 is only in OpenCV's contrib build: pip uninstall opencv-python "
            f"opencv-python-headless, then {INSTALL}"
        )

    def __call__(self, first: Grey, second: Grey) -> Field:
        import cv2

        library: Any = cv2
        solver = library.optflow.DualTVL1OpticalFlow_create(
            self.tau, self.weight, self.theta, self.scales, self.warps, self.epsilon
        )
        return np.asarray(solver.calc(first, second, None), np.float32)


METHODS: dict[str, type[FlowMethod]] = {method.name: method for method in (Farneback, DIS, TVL1)}


def encode(field: Field, bound: float | None = None) -> tuple[NDArray[np.uint8], float]:
    """A field (h, w, 2) as planes (2, h, w) of bytes, with its bound: the given one, or its own largest displacement.

    What lies beyond the bound becomes the bound. A displacement that is no finite number counts as none.
    """
    field = np.nan_to_num(field, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(np.abs(field).max()) if bound is None else bound
    scaled = np.rint(field * (STEPS / (largest or 1.0)))
    planes = (scaled.clip(-STEPS, STEPS) + STILL).astype(np.uint8).transpose(2, 0, 1)
    return np.ascontiguousarray(planes), largest


class FlowKeeper:
    """Keeps the flow of every video that is decoded, see `kinoscope.data.keeping`.

    Args:
        method: one of `METHODS`, what computes it.
        settings: of the method.
        resize: of the frames before: a short side, (height, width) or None, as in the data set.
        bound: largest displacement that can be stored, in pixels; None: each field's own.
        backward: computes the flow of each pair in both directions.
    """

    suffix = ".flow"
    folder: Path

    def __init__(
        self,
        method: str,
        settings: Mapping[str, Any],
        resize: int | Sequence[int] | None = None,
        bound: float | None = None,
        backward: bool = False,
    ) -> None:
        self.method, self.settings = METHODS[method](**settings), dict(settings)
        self.resize = list(resize) if isinstance(resize, Sequence) else resize
        self.bound, self.backward = bound, backward

    def parameters(self) -> dict[str, Any]:
        return {
            "kind": "flow", "method": self.method.name, "settings": self.settings, "resize": self.resize,
            "bound": self.bound, "backward": self.backward,
        }  # fmt: skip

    def begin(self, partial: Path, height: int, width: int, fps: float) -> FlowSink:
        return FlowSink(partial, self, *target_size(height, width, self.resize))

    def bytes_for(self, frames: int, height: int, width: int) -> int:
        high, wide = target_size(height, width, self.resize)
        field = 2 * high * wide
        worst = field + field // 128 + 128  # what zstd makes of noise
        return max(0, frames - 1) * (1 + self.backward) * (worst + 12) + 8 + TAIL.size


class FlowSink:
    """One video's flow on its way to the file.

    Args:
        partial: the file.
        keeper: says how.
        height: of the resized frames.
        width: likewise.
    """

    def __init__(self, partial: Path, keeper: FlowKeeper, height: int, width: int) -> None:
        import cv2
        from av.video.reformatter import VideoReformatter

        cv2.setNumThreads(1)  # every core has a process of its own
        self.keeper, self.height, self.width = keeper, height, width
        self.scaler = VideoReformatter()
        self.file = partial.open("wb")
        self.offsets, self.bounds = [0], []
        self.last: Grey | None = None

    def add(self, frame: VideoFrame) -> None:
        luma = self.scaler.reformat(frame, self.width, self.height, "gray", interpolation="BILINEAR", threads=1)
        grey = np.ascontiguousarray(luma.to_ndarray(), np.uint8)  # FFmpeg's rows are padded
        if self.last is not None:
            self._keep(self._between(self.last, grey))
            if self.keeper.backward:
                self._keep(self._between(grey, self.last))
        self.last = grey

    def _between(self, first: Grey, second: Grey) -> Field:
        import cv2

        try:
            return self.keeper.method(first, second)
        except cv2.error as error:
            raise DecodeError(f"no {self.keeper.method.name} flow of {self.height}×{self.width}: {error.err}") from None

    def _keep(self, field: Field) -> None:
        planes, bound = encode(field, self.keeper.bound)
        steps = np.diff(planes, axis=1, prepend=np.uint8(0))  # modulo 256
        size = self.file.write(pa.compress(steps.tobytes(), codec=CODEC, asbytes=True))
        self.offsets.append(self.offsets[-1] + size)
        self.bounds.append(bound)

    def close(self) -> None:
        with self.file:
            self.file.write(np.array(self.offsets, "<i8").tobytes())
            self.file.write(np.array(self.bounds, "<f4").tobytes())
            self.file.write(TAIL.pack(MAGIC, self.height, self.width, len(self.bounds)))


class FlowSource:
    """Kept flow, by the manifest's row and the number of the field. Only rows whose files are valid may be asked for.

    Args:
        folder: the keeper's.
        manifest: the videos.
        backward: whether each pair of frames has a second field.
    """

    def __init__(self, folder: Path, manifest: Manifest, backward: bool = False) -> None:
        self.folder, self.manifest, self.directions = folder, manifest, 1 + backward

    def path(self, row: int) -> Path:
        """The file of a video's flow."""
        return self.folder / f"{self.manifest.path(row)}{FlowKeeper.suffix}"

    def read(
        self, row: int, pairs: NDArray[np.int64], backward: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Fields of one video.

        Args:
            row: of the manifest.
            pairs: (n,) number k of frames k and k + 1.
            backward: (n,) which of them from frame k + 1 to frame k; None: none.

        Returns:
            planes (n, 2, h, w), x and y, and bounds (n,): the displacement is (byte − 128) · bound / 127.

        Raises:
            DecodeError: the file cannot be read, is damaged, or has no such field.
        """
        fields = np.asarray(pairs) * self.directions + (0 if backward is None else backward)
        path = self.path(row)
        try:
            with path.open("rb") as file:
                return _read(file, fields, path.stat().st_size)
        except OSError as error:
            raise DecodeError(f"{path}: {error.strerror or error}; run kinoscope prepare again.") from None
        except (ValueError, struct.error) as error:
            raise DecodeError(f"{path}: is damaged ({error}); remove it and run kinoscope prepare.") from None


def _read(file: Any, fields: NDArray[np.int64], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    file.seek(max(0, size - TAIL.size))
    magic, height, width, count = TAIL.unpack(file.read(TAIL.size))
    tables = 8 * (count + 1) + 4 * count
    if magic != MAGIC or tables + TAIL.size > size:
        raise ValueError("it has no tail")
    file.seek(size - TAIL.size - tables)
    raw = file.read(tables)
    offsets, bounds = np.frombuffer(raw, "<i8", count + 1), np.frombuffer(raw, "<f4", count, 8 * (count + 1))
    if fields.min() < 0 or fields.max() >= count:
        raise ValueError(f"field {fields.max()} was asked for, it holds {count}")
    low, high = int(offsets[fields.min()]), int(offsets[fields.max() + 1])  # neighbours, so one read for all
    if not 0 <= low <= high <= size - TAIL.size - tables:
        raise ValueError("its table leads out of it")
    file.seek(low)
    block = memoryview(file.read(high - low))
    planes = np.empty((len(fields), 2, height, width), np.uint8)
    for place, field in enumerate(fields.tolist()):
        part = block[int(offsets[field]) - low : int(offsets[field + 1]) - low]
        steps = pa.decompress(part, planes[place].nbytes, codec=CODEC, asbytes=True)
        np.frombuffer(steps, np.uint8).reshape(planes.shape[1:]).cumsum(axis=1, dtype=np.uint8, out=planes[place])
    return planes, bounds[fields]


def _without_opencv(name: str) -> str:
    if importlib.util.find_spec("cv2") is not None:
        return ""
    return f"data.flow.method: {name} flow is computed by OpenCV, which is not installed: {INSTALL}"


def _at_least_one(method: Any, *names: str) -> None:
    for name in names:
        if getattr(method, name) < 1:
            raise ValueError(
                f"data.flow.method: {name} of {type(method).__name__} is at least 1, got {getattr(method, name)}"
            )
