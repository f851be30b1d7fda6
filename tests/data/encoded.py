"""Videos that say of each frame which it is, in all the ways of coding that decoders stumble over.

A frame shows its number in binary, as 4 × 3 bright and dark blocks, which no lossy coding hides, over a pattern that
moves. `KINDS` names the ways of coding; `write` encodes one, `numbers` reads frames' numbers back.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

ROWS, COLUMNS = 3, 4
FRAMES = 70


@dataclass(frozen=True)
class Kind:
    """A way of coding.

    Args:
        suffix: of the file, which says the container.
        codec: FFmpeg's encoder.
        options: its options.
        size: (height, width).
        rate: frames per second.
        stamps: frame number → presentation time in units of 1/rate; default: the number.
        tag: the four characters that name the codec in an AVI.
        sound: a tone beside the pictures.
        packed: P- and B-frames share packets, as XviD and DivX write them.
        first: frames before this one are in the file, but an edit list hides them.
    """

    suffix: str = ".avi"
    codec: str = "mpeg4"
    options: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (48, 64)
    rate: Fraction = Fraction(25)
    stamps: Callable[[int], int] | None = None
    tag: str | None = None
    sound: bool = False
    packed: bool = False
    first: int = 0


def _mpeg4(keys: int, between: int = 0, **more: Any) -> Kind:
    return Kind(options={"qmin": "2", "qmax": "4", "g": str(keys), "bf": str(between)}, tag="XVID", **more)


def _h264(keys: int, between: int, suffix: str = ".mp4", extra: str = "", **more: Any) -> Kind:
    options = {"crf": "20", "g": str(keys), "bf": str(between), "preset": "fast"}
    return Kind(suffix, "libx264", {**options, "x264-params": f"threads=1:no-mbtree=1:{extra}".rstrip(":")}, **more)


NTSC = Fraction(30000, 1001)
KINDS: dict[str, Kind] = {
    "mpeg4": _mpeg4(12),
    "mpeg4-b": _mpeg4(12, 2),
    "mpeg4-packed": _mpeg4(12, 1, packed=True),
    "mpeg4-packed-one-key": _mpeg4(600, 1, packed=True),
    "mpeg4-one-key": _mpeg4(600),
    "mpeg4-b-one-key": _mpeg4(600, 2),
    "mpeg4-ntsc-sound": _mpeg4(12, 2, rate=NTSC, sound=True),
    "mpeg4-odd": _mpeg4(12, 2, size=(99, 175)),
    "h264-b": _h264(24, 3),
    "h264-one-key": _h264(600, 3),
    "h264-ntsc-sound": _h264(24, 2, rate=NTSC, sound=True),
    "h264-open": _h264(12, 3, extra="open-gop=1"),
    "h264-refresh": _h264(12, 2, extra="intra-refresh=1"),
    "h264-48-wide": _h264(12, 2, size=(64, 48)),
    "h264-72-wide": _h264(12, 2, size=(64, 72)),
    "h264-varying-rate": _h264(12, 2, stamps=lambda number: number * 4 + number % 3 + 20 * (number > 30)),
    "h264-gaps": _h264(12, 2, stamps=lambda number: number + 5 * (number > 25)),
    "h264-trimmed": _h264(24, 2, first=9),
    "h264-avi": _h264(12, 2, ".avi"),
    "h264-mkv": _h264(24, 3, ".mkv", rate=NTSC),
    "vp9-webm": Kind(".webm", "libvpx-vp9", {"g": "20", "b": "400k", "deadline": "realtime", "cpu-used": "8"}),
}


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: the number's bits as blocks, on a pattern that moves."""
    height, width = size
    rows, columns = np.arange(height), np.arange(width)
    blocks = (rows * ROWS // height)[:, None] * COLUMNS + columns * COLUMNS // width
    bits = (number >> blocks) & 1
    moving = 12 * np.sin((rows[:, None] + 2 * number) / 5) + 12 * np.cos((columns - 3 * number) / 7)
    grey = 60 + 130 * bits + moving
    return np.stack([grey, grey * 0.9, grey * 0.8], axis=-1).clip(0, 255).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, (T, H, W, 3) at any size."""
    _, height, width, _ = frames.shape
    centres = np.ix_(
        [round((row + 0.5) * height / ROWS) for row in range(ROWS)],
        [round((column + 0.5) * width / COLUMNS) for column in range(COLUMNS)],
    )
    bits = frames.mean(-1)[:, *centres].reshape(len(frames), -1) > 115
    return (bits << np.arange(ROWS * COLUMNS)).sum(1).tolist()


def write(path: Path, kind: Kind, frames: int = FRAMES) -> Path:
    """Encodes ``frames`` numbered frames to ``path``, whose suffix is the kind's. The same bytes each time."""
    path.write_bytes(encode(kind, frames))
    return path


def encode(kind: Kind, frames: int = FRAMES) -> bytes:
    """The file's bytes; frame ``kind.first + k`` is the k-th that is shown."""
    file = io.BytesIO()
    form = {".mkv": "matroska"}.get(kind.suffix, kind.suffix[1:])
    with av.open(file, "w", format=form, container_options={"fflags": "+bitexact"}) as container:
        video: Any = container.add_stream(kind.codec, rate=kind.rate, options={"flags": "+bitexact", **kind.options})
        video.height, video.width = kind.size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        if kind.tag:
            video.codec_context.codec_tag = kind.tag
        sound = container.add_stream("mp2" if kind.suffix == ".avi" else "aac", rate=44100) if kind.sound else None
        if sound is not None:
            sound.codec_context.layout = "mono"
        packets = list(_pictures(video, kind, frames + kind.first))
        if kind.packed:
            packets = list(_packed(packets))
        heard = _tone(sound, (frames + kind.first) / kind.rate) if sound is not None else iter(())
        for packet in packets:
            packet.stream = video
            if kind.first:
                shift = round(kind.first / kind.rate / packet.time_base)
                packet.pts, packet.dts = (packet.pts or 0) - shift, (packet.dts or 0) - shift
            container.mux(packet)
            container.mux([part for part, _ in zip(heard, range(2), strict=False)])
        container.mux(list(heard))
    return file.getvalue()


def _pictures(video: Any, kind: Kind, frames: int) -> Iterator[av.Packet]:
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(picture(number, kind.size), format="rgb24")
        frame.pts = number if kind.stamps is None else kind.stamps(number)
        frame.time_base = 1 / kind.rate
        yield from video.encode(frame)
    yield from video.encode()


def _tone(sound: Any, seconds: Fraction) -> Iterator[av.Packet]:
    step = 1024
    for start in range(0, int(44100 * seconds), step):
        wave = (8000 * np.sin(np.arange(start, start + step) / 16)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 44100, start
        yield from sound.encode(frame)
    yield from sound.encode()


def _packed(packets: list[av.Packet]) -> Iterator[av.Packet]:
    """I P B P B … as I, P+B, N, P+B, N …: the B-frame shares the packet of the P-frame before it.

    The N is a picture that is not coded, of 7 bytes, and stands where the B-frame was; the stream calls itself packed
    by the p in its user data.
    """
    label = b"\x00\x00\x01\xb2DivX503b1393p"
    nothing = b"\x00\x00\x01\xb6\x51\xff\x7f"
    for position, packet in enumerate(packets):
        data, after = bytes(packet), bytes(packets[position + 1]) if position + 1 < len(packets) else b""
        if position == 0:
            data = label + data
        if _type(data) == "B":
            data = nothing
        elif after and _type(after) == "B":
            data += after
        copy = av.Packet(data)
        copy.pts, copy.dts, copy.time_base = packet.dts, packet.dts, packet.time_base
        copy.is_keyframe = packet.is_keyframe
        yield copy


def _type(data: bytes) -> str:
    """I, P, B or S of the first picture in a packet of MPEG-4."""
    return "IPBS"[data[data.index(b"\x00\x00\x01\xb6") + 4] >> 6]
