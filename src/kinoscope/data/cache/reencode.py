"""The cache ``reencode``: MPEG-4 with a key frame every few frames and nothing that refers forward.

To enter anywhere, a decoder passes over few frames; and each packet that goes in gives its frame at once. The packets
lie bare in the file, without a container to open and to search. Widths and heights are filled up to whole blocks by
repeating the edge: FFmpeg converts colours of other sizes slower and worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinoscope.data.cache.kept import CodedFrames, Coder, FrameKeeper, Kept, Resize
from kinoscope.data.decoders.pyav import Scaler, reason
from kinoscope.errors import DecodeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from kinoscope.data.sources import Box

QUANTISER = 2  # the second finest there is
SPACING = 8  # frames from one key frame to the next; with another one, raise the keeper's version
BLOCK = 16


class ReencodeKeeper(FrameKeeper):
    """Keeps MPEG-4.

    Args:
        resize: see `FrameKeeper`.
        quantiser: 1 to 31; the larger, the smaller and the worse.
    """

    kind = "reencode"
    suffix = ".mpeg4"

    def __init__(self, resize: Resize = None, quantiser: int = QUANTISER) -> None:
        super().__init__(resize)
        self.quantiser = quantiser

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "quantiser": self.quantiser}

    def coder(self, height: int, width: int) -> Coder:
        return _Encoder(height, width, self.quantiser)

    def bytes_of_frame(self, height: int, width: int) -> int:
        return 64 + height * width * 3 // 10


class ReencodedFrames(CodedFrames):
    """Frames from MPEG-4, decoded on from the key frame before the wanted one, or from where the decoder is."""

    cache = ReencodeKeeper

    def decoded(self, kept: Kept, wanted: Sequence[int], box: Box) -> Iterator[NDArray[np.uint8]]:
        decoder, cut = _Decoder(kept), Scaler(None, box)
        for number in wanted:
            yield cut(decoder.frame(number))


class _Decoder:
    """Decodes frames of a file in the order of their numbers."""

    def __init__(self, kept: Kept) -> None:
        import av

        self.kept = kept
        self.codec: Any = av.CodecContext.create("mpeg4", "r")
        self.codec.thread_count = 1
        self.following = 0  # number of the frame after the last that was decoded

    def frame(self, number: int) -> VideoFrame:
        """The frame of this number, which is larger than the last one's."""
        for needed in range(max(self.following, number - number % SPACING), number):
            self._next(needed)
        self.following = number + 1
        return self._next(number)

    def _next(self, number: int) -> VideoFrame:
        import av

        data = self.kept.packet(number)
        # Made from bytes, a packet has no zeros behind its end, where FFmpeg reads on: pictures break at random.
        packet = av.Packet(len(data))
        packet.update(data)
        try:
            frames = self.codec.decode(packet)
        except av.FFmpegError as error:
            raise self.kept.damaged(f"is damaged in frame {number} ({reason(error)})") from None
        if len(frames) != 1:
            raise self.kept.damaged(f"is damaged in frame {number}")
        return frames[0]


class _Encoder:
    """Codes frames of one size, (H, W, 3), one after the other."""

    def __init__(self, height: int, width: int, quantiser: int) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.picture = np.empty((height + -height % BLOCK, width + -width % BLOCK, 3), np.uint8)
        self.frames = 0
        self.convert = VideoReformatter()
        self.codec: Any = av.CodecContext.create("mpeg4", "w")
        self.codec.height, self.codec.width = self.picture.shape[:2]
        self.codec.pix_fmt = "yuv420p"
        self.codec.time_base, self.codec.framerate = Fraction(1, 25), 25  # no one reads it
        self.codec.thread_count = 1
        # Bit-exact: the same bytes on every machine. And no key frames beside those that are due.
        self.codec.options = {
            "flags": "+bitexact", "qmin": str(quantiser), "qmax": str(quantiser), "bf": "0", "g": str(SPACING),
            "sc_threshold": "1000000000",
        }  # fmt: skip

    def __call__(self, pixels: NDArray[np.uint8]) -> bytes:
        import av

        height, width, _ = pixels.shape
        self.picture[:height, :width] = pixels
        self.picture[:height, width:] = pixels[:, -1:]
        self.picture[height:] = self.picture[height - 1]
        frame = av.VideoFrame.from_ndarray(self.picture, format="rgb24")
        frame.pts = self.frames
        try:
            packets = self.codec.encode(self.convert.reformat(frame, format="yuv420p", threads=1))
        except av.FFmpegError as error:
            raise DecodeError(f"its frames cannot be coded as MPEG-4 ({reason(error)}).") from None
        if len(packets) != 1 or packets[0].is_keyframe != (self.frames % SPACING == 0):
            raise DecodeError("its frames cannot be coded as MPEG-4: the encoder gives out something else.")
        self.frames += 1
        return bytes(packets[0])
