"""PyAV: counting frames from the start, which is right by definition, and seeking, which is fast.

Where a frame lies in time follows from its number only in streams with a constant rate whose stamps say so; ``probe``
finds out which do. Seeking goes to the key frame before a wanted frame and decodes on from there, leaving out those
frames that neither are wanted nor serve to predict others (most B-frames): no pixel of a wanted one depends on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kinoscope.data.decoders import Astray, Box, Target
from kinoscope.errors import DecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# A header may claim any size, and a decoder asks for that much memory. 8K video has 33 million pixels.
MOST_PIXELS = 1 << 26
# Frames to go back by where the key frame that a seek led to is shown after the wanted one (an open group of pictures).
REACHES = (0, 8, 64, 512)
WORTH = 4  # frames: a seek that passes over fewer costs more than it saves, since the decoder has to be filled anew


def count(path: str | Path, wanted: Sequence[int], target: Target, box: Box = None) -> np.ndarray:
    """Frames found by counting from the start.

    Raises:
        DecodeError: the file is no video, or has no such frame.
    """
    shrink = Scaler(target, box)
    frames: list[np.ndarray] = []
    seen = 0
    with opened(path) as (container, stream):
        for seen, frame in enumerate(InOrder(container, stream), 1):
            if seen - 1 == wanted[len(frames)]:
                frames.append(shrink(frame))
                if len(frames) == len(wanted):
                    return _stacked(path, frames)
    raise DecodeError(f"{path}: frame {wanted[len(frames)]} was asked for, but only {seen} frames can be decoded.")


def read(path: str | Path, wanted: Sequence[int], target: Target, box: Box = None) -> np.ndarray:
    """Frames found by seeking.

    Raises:
        Astray: the stream's time stamps do not lead to them.
        DecodeError: the file is no video.
    """
    import av

    shrink = Scaler(target, box)
    with opened(path) as (container, stream):
        try:
            return _stacked(path, [shrink(frame) for frame in _Seeker(container, stream).frames(wanted)])
        except av.FFmpegError as error:
            raise Astray(reason(error)) from None


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its first video stream, to be decoded with one thread.

    Raises:
        DecodeError: the file cannot be opened, or holds no video.
    """
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DecodeError(f"{path}: is not a video, or is cut off before its index ({reason(error)}).") from None
    with container:
        if not container.streams.video:
            raise DecodeError(f"{path}: holds no video stream.")
        stream = container.streams.video[0]
        if not stream.codec_context:
            raise DecodeError(f"{path}: holds a video stream that no decoder here can read.")
        if stream.width * stream.height > MOST_PIXELS:
            raise DecodeError(f"{path}: claims frames of {stream.height}×{stream.width} pixels; the file is damaged.")
        stream.codec_context.thread_count = 1
        yield container, stream


class InOrder:
    """The frames of a stream up to its end or to where decoding breaks off: what can be decoded is what can be counted.

    Args:
        container: just opened.
        stream: its video stream.

    Attributes:
        key_packets: positions of the packets that are said to hold key frames, among all that are shown.
        broken: why decoding broke off, or empty.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.key_packets: list[int] = []
        self.broken = ""

    def __iter__(self) -> Iterator[VideoFrame]:
        import av

        packets = 0
        try:
            for packet in self.container.demux(self.stream):
                shown = packet.size > 0 and not packet.is_discard
                if packet.is_keyframe and shown:
                    self.key_packets.append(packets)
                packets += shown
                for frame in packet.decode():
                    if frame.width * frame.height > MOST_PIXELS:
                        self.broken = f"a frame of {frame.height}×{frame.width} pixels"
                        return
                    yield frame
        except av.FFmpegError as error:
            self.broken = reason(error)


class Scaler:
    """Frames to RGB arrays (H, W, 3) uint8, bilinearly where they are scaled, cut to a box thereafter."""

    def __init__(self, target: Target, box: Box = None) -> None:
        from av.video.reformatter import VideoReformatter

        self.height, self.width = target or (None, None)
        self.box = box
        self.first: tuple[int, int] | None = None  # the size of the first frame that is cut
        self.scaler = VideoReformatter()  # one for all frames: it keeps its tables

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        # By default it starts a thread per core, which costs a worker more than it brings.
        scaled = self.scaler.reformat(frame, self.width, self.height, "rgb24", interpolation="BILINEAR", threads=1)
        self.first = self.first or (scaled.height, scaled.width)
        if self.box is None or (scaled.height, scaled.width) != self.first:
            return scaled.to_ndarray()
        top, left, height, width = self.box
        plane: Any = scaled.planes[0]  # a buffer, which its type does not say
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # no copy; what is cut out is one
        part = rows[top : min(top + height, scaled.height), 3 * left : 3 * min(left + width, scaled.width)]
        return part.reshape(len(part), -1, 3)


class Stamps:
    """Which number a frame has by its time stamp, in a stream of a constant rate.

    AVI stores no times, but one packet per frame in the order of decoding: there the stamp is the packet's position,
    and a stream with B-frames gives a frame out when the packet behind it goes in.
    """

    def __init__(self, step: float, origin: int, by_position: bool) -> None:
        self.step, self.origin, self.by_position = step, origin, by_position

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream) -> Stamps | None:
        """The stamps of a stream that was just opened; None where it has no frame rate."""
        if not stream.average_rate or not stream.time_base:
            return None
        by_position = container.format.name == "avi"
        origin = int(stream.codec_context.has_b_frames) if by_position else stream.start_time or 0
        return cls(float(1 / (stream.average_rate * stream.time_base)), origin, by_position)

    def number(self, stamp: int) -> int:
        """Of the frame with this stamp."""
        return round((stamp - self.origin) / self.step)

    def place(self, number: int) -> int:
        """Where in time to seek for a frame."""
        return int((0 if self.by_position else self.origin) + number * self.step)

    def fits(self, frame: VideoFrame, number: int) -> bool:
        """Whether a frame is stamped with its number; the last of an AVI need not be stamped at all."""
        stamp = frame.dts if self.by_position else frame.pts
        return self.by_position if stamp is None else self.number(stamp) == number


class _Seeker:
    """Frames of a stream by number, found through their stamps."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream, self.codec = container, stream, stream.codec_context
        stamps = Stamps.of(container, stream)
        if stamps is None:
            raise Astray("the stream has no frame rate")
        self.stamps = stamps
        self.fed: int | None = None  # decoding stamp of the last packet that went in

    def frames(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """The wanted frames, which are sorted. Raises `Astray` where one does not come."""
        keep = frozenset(wanted)
        run: Iterator[tuple[int, VideoFrame]] = iter(())
        for target in wanted:
            if self._key_ahead(target):
                run = self._run(target, keep)
            for reach in REACHES:
                if reach:  # the key frame, or all of the run, was shown after it
                    run = self._run(target - reach, keep)
                number, frame = next((pair for pair in run if pair[0] >= target), (target + 1, None))
                if frame is not None and number == target:
                    yield frame
                    break
            else:
                raise Astray(f"frame {target} does not come where its time stamp is")

    def _key_ahead(self, number: int) -> bool:
        """Whether a seek leads closer to a frame than decoding on does."""
        if self.fed is None:
            return True
        index: Any = getattr(self.stream, "index_entries", None)  # PyAV had none in early versions
        key = index.search_timestamp(self.stamps.place(number)) if index else -1
        return key >= 0 and index[key].timestamp > self.fed + WORTH * self.stamps.step

    def _run(self, first: int, keep: Collection[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from the key frame at or before ``first`` on, numbered; those not in ``keep`` may be left out."""
        if first > 0 or self.fed is not None:
            self.container.seek(self.stamps.place(max(first, 0)), stream=self.stream, backward=True)
        stamp = None
        for packet in self._packets():
            if packet is None:  # the end: what the decoder still holds follows one by one
                stamp = None if stamp is None else stamp + 1
            else:
                self.fed = packet.dts
                stamp = packet.dts if self.stamps.by_position else packet.pts
            wanted = packet is None or stamp is None or self.stamps.number(stamp) in keep
            self.codec.skip_frame = "DEFAULT" if wanted else "NONREF"
            for frame in self.codec.decode(packet):
                shown = stamp if self.stamps.by_position else frame.pts
                if shown is None:
                    raise Astray("a frame has no time stamp")
                yield self.stamps.number(shown), frame

    def _packets(self) -> Iterator[Packet | None]:
        """Packets of one picture each, and None at the end."""
        from av.bitstream import BitStreamFilterContext

        packets = (packet if packet.size else None for packet in self.container.demux(self.stream))
        if not (self.stamps.by_position and self.stamps.origin and self.codec.name == "mpeg4"):
            return packets
        # XviD packs a P- and a B-frame together: left so, passing over the one would shift the count.
        unpack = BitStreamFilterContext("mpeg4_unpack_bframes", self.stream)
        return (part for packet in packets for part in (*unpack.filter(packet), *([None] if packet is None else ())))


def _stacked(path: str | Path, frames: list[np.ndarray]) -> np.ndarray:
    if len({frame.shape for frame in frames}) > 1:
        raise DecodeError(f"{path}: its frames change in size; give data.resize both height and width.")
    return np.stack(frames)


def reason(error: BaseException) -> str:
    """What FFmpeg says, without the path."""
    return str(getattr(error, "strerror", None) or error)
