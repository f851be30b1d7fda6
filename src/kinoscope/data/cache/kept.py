"""What the caches have in common: the file of one video's frames, how it is made, and how it is read.

    frames    one behind the other, as the cache codes them
    table     of each frame: where it ends, and the checksum of its bytes; none where frames are bare pixels
    footer    the cache and its version, number and size of the frames, the table's checksum, the frames' bytes

The footer is written last and adds up to the file's size, so a file that was cut short is known at once. It imports no
torch, since it is imported where videos are prepared.
"""

from __future__ import annotations

import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kinoscope.data.decode import target_size
from kinoscope.data.decoders.pyav import Scaler
from kinoscope.errors import DecodeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from kinoscope.data.manifest import Manifest
    from kinoscope.data.sources import Box

Resize = int | Sequence[int] | None  # short side, (height, width), or a video's own size
Coder = Callable[[NDArray[np.uint8]], "bytes | memoryview"]  # (H, W, 3), RGB → what is kept of it

FOOTER = struct.Struct("<16sIIIIQ")  # cache and version, frames, height, width, checksum of the table, bytes of frames
ENTRY = np.dtype([("end", "<u8"), ("checksum", "<u4")])
CHUNK = 1 << 20  # bytes to gather before they are written


class FrameKeeper(ABC):
    """Keeps all frames of every video, resized as a decoder resizes them; see `kinoscope.data.keeping.Keeper`.

    Args:
        resize: short side, or [height, width]; None: the video's own size.

    Attributes:
        kind: the cache's name in configs.
        suffix: of its files.
        version: of its files; to be raised when the same frames would be kept as other bytes.
        indexed: whether a file has a table: frames differ in size, and their checksums are kept.
    """

    kind: str
    suffix: str
    version = 1
    indexed = True
    folder: Path

    def __init__(self, resize: Resize = None) -> None:
        self.resize = resize if resize is None or isinstance(resize, int) else [int(side) for side in resize]

    def parameters(self) -> dict[str, Any]:
        return {"kind": self.kind, "resize": self.resize}

    def begin(self, partial: Path, height: int, width: int, fps: float) -> FrameSink:
        size = target_size(height, width, self.resize)
        own = (height, width) if self.resize is None else None
        return FrameSink(Writer(partial, type(self), size), Scaler(size), self.coder(*size), own)

    def bytes_for(self, frames: int, height: int, width: int) -> int:
        high, wide = target_size(height, width, self.resize)
        return frames * (self.bytes_of_frame(high, wide) + ENTRY.itemsize) + FOOTER.size

    @abstractmethod
    def coder(self, height: int, width: int) -> Coder:
        """What codes the frames of one video, of this size, one after the other."""

    @abstractmethod
    def bytes_of_frame(self, height: int, width: int) -> int:
        """At most, for videos of the world; pure noise may take more."""


class FrameSink:
    """Takes the frames of one video.

    Args:
        writer: of the file.
        scale: makes pixels of a frame.
        code: makes bytes of the pixels.
        own: the size that every frame has to have, where none is scaled.
    """

    def __init__(self, writer: Writer, scale: Scaler, code: Coder, own: tuple[int, int] | None) -> None:
        self.writer, self.scale, self.code, self.own = writer, scale, code, own

    def add(self, frame: VideoFrame) -> None:
        if self.own not in (None, (frame.height, frame.width)):
            raise DecodeError("its frames change in size; give data.resize both height and width.")
        self.writer.add(self.code(self.scale(frame)))

    def close(self) -> None:
        self.writer.close()


class Writer:
    """Writes the file of one video. It holds no open file, so one that is dropped in the middle needs no end."""

    def __init__(self, partial: Path, cache: type[FrameKeeper], size: tuple[int, int]) -> None:
        self.partial, self.cache, self.size = partial, cache, size
        self.frames = self.bytes = self.gathered = 0
        self.pending: list[bytes | memoryview] = []
        self.entries: list[tuple[int, int]] = []
        partial.write_bytes(b"")

    def add(self, frame: bytes | memoryview) -> None:
        """Adds what is kept of the next frame."""
        size = memoryview(frame).nbytes
        self.frames, self.bytes, self.gathered = self.frames + 1, self.bytes + size, self.gathered + size
        self.pending.append(frame)
        if self.cache.indexed:
            self.entries.append((self.bytes, zlib.crc32(frame)))
        if self.gathered >= CHUNK:
            self._flush()

    def close(self) -> None:
        """Adds table and footer."""
        table = np.array(self.entries, ENTRY).tobytes()
        footer = FOOTER.pack(_label(self.cache), self.frames, *self.size, zlib.crc32(table), self.bytes)
        self.pending += [table, footer]
        self._flush()

    def _flush(self) -> None:
        with self.partial.open("ab") as file:
            file.write(b"".join(self.pending))
        self.pending, self.gathered = [], 0


class Kept:
    """The file of one video, open to be read.

    Args:
        file: of the video.
        cache: what kind of file it is.
        frames: that it must hold.
        size: (height, width) that they must have.

    Raises:
        DecodeError: it is missing, damaged, or another one.
    """

    def __init__(self, file: str, cache: type[FrameKeeper], frames: int, size: tuple[int, int]) -> None:
        self.file, self.count, self.size = file, frames, size
        try:
            self.descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise DecodeError(f"{file}: cannot be read ({error.strerror}); run kinoscope prepare.") from None
        try:
            self._check(cache)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _check(self, cache: type[FrameKeeper]) -> None:
        entries = self.count if cache.indexed else 0
        length = ENTRY.itemsize * entries
        whole = os.fstat(self.descriptor).st_size
        start = whole - length - FOOTER.size  # of the table, if all is well
        tail = os.pread(self.descriptor, length + FOOTER.size, max(start, 0))
        if start < 0 or len(tail) < length + FOOTER.size:
            raise self.damaged("is cut short")
        label, count, *size, checksum, payload = FOOTER.unpack_from(tail, length)
        if label != _label(cache):
            raise self.damaged(f"is no file of this version for data.cache={cache.kind}, or is damaged")
        if (count, *size) != (self.count, *self.size):
            raise self.damaged(f"holds {_frames(count, *size)}, not {_frames(self.count, *self.size)}")
        if payload != start or checksum != zlib.crc32(tail[:length]):
            raise self.damaged("is damaged")
        self.entries = np.frombuffer(tail, ENTRY, entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    def packet(self, number: int) -> bytes:
        """What is kept of one frame. Raises `DecodeError` where its bytes are not those that were written."""
        end, checksum = self.entries[number].item()
        begin = self.entries["end"][number - 1].item() if number else 0
        data = os.pread(self.descriptor, end - begin, begin)
        if zlib.crc32(data) != checksum:
            raise self.damaged(f"is damaged in frame {number}")
        return data

    def fill(self, memory: Any, place: int) -> None:
        """Fills ``memory``, an array, with the bytes from ``place`` on."""
        rest = memoryview(memory).cast("B")
        while rest:
            read = os.preadv(self.descriptor, [rest], place)  # Linux reads 2 GiB at a time
            if not read:
                raise self.damaged("is cut short")
            rest, place = rest[read:], place + read

    def damaged(self, what: str) -> DecodeError:
        """That this file cannot be used, and the cure."""
        return DecodeError(f"{self.file}: {what}; remove it and run kinoscope prepare again.")


class KeptFrames(ABC):
    """Frames from a cache; see `kinoscope.data.sources.FrameSource`. Pickles small: nothing is open between reads.

    Args:
        folder: of the cache.
        root: the data set's folder.
        manifest: the videos.
        resize: what frames were resized to.
    """

    cache: type[FrameKeeper]

    def __init__(self, folder: Path, root: Path, manifest: Manifest, resize: Resize) -> None:
        self.folder, self.root, self.manifest, self.resize = folder, root, manifest, resize
        self.counts = manifest.column("frames")
        self.heights, self.widths = manifest.column("height"), manifest.column("width")

    def path(self, row: int) -> Path:
        return self.root / self.manifest.path(row)

    def read(self, row: int, indices: NDArray[np.int64], box: Box | None = None) -> NDArray[np.uint8]:
        file = f"{self.folder}/{self.manifest.path(row)}{self.cache.suffix}"  # a Path takes longer than the opening
        count = int(self.counts[row])
        size = target_size(int(self.heights[row]), int(self.widths[row]), self.resize)
        indices = np.asarray(indices, np.int64)
        if indices.min() < 0 or indices.max() >= count:
            outside = indices[(indices < 0) | (indices >= count)][0]
            raise DecodeError(f"{self.path(row)}: frame {outside} was asked for; it has {count} frames, from 0 on.")
        with Kept(file, self.cache, count, size) as kept:
            return self.frames(kept, indices, box or (0, 0, *size))

    @abstractmethod
    def frames(self, kept: Kept, indices: NDArray[np.int64], box: Box) -> NDArray[np.uint8]:
        """The frames at ``indices`` (n,) of a file, cut to ``box``: (n, h, w, 3)."""


class CodedFrames(KeptFrames):
    """Frames that have to be decoded: each that is wanted once, in order."""

    def frames(self, kept: Kept, indices: NDArray[np.int64], box: Box) -> NDArray[np.uint8]:
        wanted, back = np.unique(indices, return_inverse=True)
        pixels = np.empty((len(wanted), *box[2:], 3), np.uint8)
        for place, frame in enumerate(self.decoded(kept, wanted.tolist(), box)):
            pixels[place] = frame
        return pixels if np.array_equal(back, np.arange(len(wanted))) else pixels[back]

    @abstractmethod
    def decoded(self, kept: Kept, wanted: Sequence[int], box: Box) -> Iterator[NDArray[np.uint8]]:
        """The frames of these numbers, which are sorted, cut to ``box``: (h, w, 3) each, good until the next."""


def _frames(count: int, height: int, width: int) -> str:
    return f"{count} frames of {height}×{width}"


def _label(cache: type[FrameKeeper]) -> bytes:
    return f"{cache.kind} {cache.version}".encode().ljust(16, b"\0")
