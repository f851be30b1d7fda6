"""torchcodec, an optional extra: PyTorch's decoder, on the FFmpeg libraries of the system."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kinoscope.data.decoders import Astray, Box, Target, cut
from kinoscope.errors import KinoscopeError


def read(path: str | Path, wanted: Sequence[int], target: Target, box: Box = None) -> np.ndarray:
    """Frames by torchcodec.

    Raises:
        Astray: it finds no such frame.
        KinoscopeError: it is not installed, or finds no FFmpeg.
    """
    codec = library()
    scale = [] if target is None else [codec.transforms.Resize(size=target)]
    try:
        reader = codec.decoders.VideoDecoder(
            str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact", transforms=scale
        )
        return cut(reader.get_frames_at(list(wanted)).data.numpy(), box)
    except Exception as error:  # of no common type
        raise Astray(f"torchcodec gives up: {str(error).strip().splitlines()[0]}") from None


@cache
def library() -> Any:
    """The torchcodec package. Raises `KinoscopeError` where it cannot be used."""
    try:  # by name, since it need not be there for those who check the types
        for part in ("torchcodec.decoders", "torchcodec.transforms"):
            importlib.import_module(part)
        return importlib.import_module("torchcodec")
    except ModuleNotFoundError:
        raise KinoscopeError(
            "data.decoder=torchcodec needs a package more: pip install 'kinoscope[torchcodec]', or take pyav."
        ) from None
    except (ImportError, OSError, RuntimeError):  # the last, with a page of text, where FFmpeg or torch does not fit
        raise KinoscopeError(
            "data.decoder=torchcodec finds no FFmpeg 4 to 8 on this machine, or does not fit this torch; install "
            "FFmpeg's shared libraries, or take pyav."
        ) from None
