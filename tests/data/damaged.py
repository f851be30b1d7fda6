"""Damaged video files of every sort, the same ones each time, and what a decoder makes of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import av
import numpy as np
from encoded import KINDS, encode

from kinoscope.data import decode
from kinoscope.data.decode import SAME, Decoder
from kinoscope.errors import DecodeError

FRAMES = 14
MAGIC = {
    "avi": b"RIFF\xff\xff\x00\x00AVI LIST",
    "mp4": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp42",
    "mkv": b"\x1a\x45\xdf\xa3",
    "webm": b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01webm",
}
WHOLE = ("mpeg4-packed", "h264-ntsc-sound", "h264-mkv", "vp9-webm")


def files() -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file; the name says what was done to it."""
    whole = {name: encode(replace(KINDS[name], size=(32, 64)), FRAMES) for name in WHOLE}
    draws = np.random.default_rng(0)
    for name, content in whole.items():
        suffix = KINDS[name].suffix
        for damage in (_cut, _zeroed, _flipped, _shuffled):
            for number in range(11):
                yield f"{name}-{damage.__name__[1:]}{number}{suffix}", damage(content, draws)
    avi, mp4, mkv = (whole[name] for name in WHOLE[:3])
    for count in (0, 1, FRAMES - 1, FRAMES + 1, 100_000, 2**31 - 1, 2**32 - 1):
        # The main header's total and the stream header's length; the samples of each table of the mp4.
        yield f"avi-count-{count}.avi", _set(_set(avi, b"avih", 20, count), b"strh", 36, count)
        yield f"mp4-sizes-{count}.mp4", _set(mp4, b"stsz", 8, count, ">I")
        yield f"mp4-times-{count}.mp4", _set(mp4, b"stts", 8, count, ">I")
    for side in (0, 1, 17, 65_535, 1_000_000, 2**31 - 1):
        yield f"avi-wide-{side}.avi", _set(avi, b"strf", 8, side)
        yield f"avi-wide-and-high-{side}.avi", _set(_set(avi, b"strf", 8, side), b"strf", 12, side)
        sample = mp4.index(b"avc1", mp4.index(b"stsd"))  # where the sizes lie that the decoder is told
        both = struct.pack(">HH", side & 0xFFFF, side & 0xFFFF)
        yield f"mp4-wide-and-high-{side}.mp4", mp4[: sample + 28] + both + mp4[sample + 32 :]
    yield "mkv-wide.mkv", mkv.replace(b"\xb0\x81\x40", b"\xb0\x81\xff")  # PixelWidth
    for number, vol in enumerate((0xFF, 0x00, 0x7F, 0x80)):  # in the headers of the stream itself
        yield f"stream-header-{number}.avi", _after(avi, b"\x00\x00\x01\x20", vol)
        yield f"stream-header-{number}.mp4", _after(mp4, b"avcC\x01", vol)
    for name, magic in MAGIC.items():
        for length in (0, 40, 4000):
            yield f"noise-{length}.{name}", magic + draws.bytes(length)
        yield f"text.{name}", b"these are words\n" * 99
        yield f"empty.{name}", b""
    yield "sound.mp4", _sound("mp4", "aac")
    yield "sound.avi", _sound("avi", "mp2")
    yield "one-byte.avi", b"R"


def examine(path: str, decoder: Decoder, frames: int, random_access: bool) -> dict[str, Any]:
    """What the decoder makes of a file that was called good; its faults, of which there must be none.

    Args:
        path: the file.
        decoder: as for ``decode``.
        frames: how many the manifest promises.
        random_access: what the manifest says.
    """
    faults: list[str] = []
    draws = np.random.default_rng(frames)
    truth = decode.decode(path, range(frames), (32, 64), sequential=True)
    asked = [[0], [frames - 1], list(range(frames))] + [draws.integers(0, frames, 3).tolist() for _ in range(4)]
    for wanted in asked:
        found = decode.decode(path, wanted, (32, 64), decoder, sequential=not random_access)
        apart = np.abs(found.astype(int) - truth[wanted]).mean((1, 2, 3))
        if found.shape != truth[wanted].shape or (apart > SAME[decoder]).any():
            faults.append(f"frames {wanted}: {found.shape}, apart {apart.round(1).tolist()}")
    try:
        decode.decode(path, [frames], None, decoder, sequential=not random_access)
        faults.append(f"frame {frames} is there as well")
    except DecodeError:
        pass
    return {"faults": faults}


def refuse(path: str, decoder: Decoder) -> dict[str, Any]:
    """Asks for frames of a file that was called bad: one gets exactly these, or a `DecodeError`."""
    faults: list[str] = []
    for wanted in ([0], [2, 5], [13], [10**6]):
        for size in (None, 20):
            try:
                frames = decode.decode(path, wanted, size, decoder)
                if len(frames) != len(wanted) or wanted == [10**6]:
                    faults.append(f"{len(frames)} frames for {wanted}")
            except DecodeError as error:
                if path not in str(error) or "\n" in str(error):
                    faults.append(f"not a sentence about the file: {error}")
    return {"faults": faults}


def _cut(content: bytes, draws: np.random.Generator) -> bytes:
    return content[: int(draws.integers(1, len(content)))]


def _zeroed(content: bytes, draws: np.random.Generator) -> bytes:
    start, length = int(draws.integers(0, len(content))), int(draws.integers(1, 600))
    length = min(length, len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def _flipped(content: bytes, draws: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in draws.integers(0, len(content) * 8, int(draws.integers(1, 40))):
        damaged[place // 8] ^= 1 << (place % 8)
    return bytes(damaged)


def _shuffled(content: bytes, draws: np.random.Generator) -> bytes:
    """Two stretches change places, as blocks of a broken disk do."""
    first, second = sorted(draws.integers(0, len(content) - 256, 2).tolist())
    second = max(second, first + 256)
    parts = [content[:first], content[second : second + 256], content[first + 256 : second]]
    return b"".join([*parts, content[first : first + 256], content[second + 256 :]])


def _set(content: bytes, label: bytes, offset: int, value: int, form: str = "<I") -> bytes:
    """A number that lies ``offset`` bytes behind the end of a label, replaced."""
    place = content.index(label) + len(label) + offset
    return content[:place] + struct.pack(form, value) + content[place + struct.calcsize(form) :]


def _after(content: bytes, label: bytes, value: int) -> bytes:
    place = content.index(label) + len(label)
    return content[:place] + bytes([value] * 6) + content[place + 6 :]


def _sound(form: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=44100)
        stream.codec_context.layout = "mono"
        for start in range(0, 44100, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
