"""A decoder that spins in native code at chosen files, with Python's lock and without: no exception reaches it.

What is left of a sample's time limit passes at once when it begins to spin. So limits can be far above what a good
sample may take on a busy machine, and no test has to wait for them.

The data set of this module stands for a user's own: ``data._target_=spinning.Spinning``. Imported where `HANGS` is set,
it puts itself in PyAV's place, and the workers inherit that; ``prepare`` decodes in fresh processes, which know nothing
of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinoscope.data import decode
from kinoscope.data.datasets import Motion
from kinoscope.data.decoders import Box, Target, pyav

HANGS = "KINOSCOPE_TEST_HANGS"  # names of files, separated by commas, each with how: name=lock,…


def hang(kind: str) -> None:
    """Never returns; ``lock`` keeps Python's lock, ``free`` gives it up, ``crash`` ends the process."""
    if kind == "crash":
        ctypes.string_at(0)
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    library: Any = ctypes.PyDLL(None) if kind == "lock" else ctypes.CDLL(None)
    while True:  # pause() would end at any signal that has a handler
        library.sleep(1_000_000)


def read(path: str | Path, wanted: Sequence[int], target: Target, box: Box = None) -> np.ndarray:
    hangs = dict(entry.split("=") for entry in os.environ.get(HANGS, "").split(",") if entry)
    if Path(path).name in hangs:
        hang(hangs[Path(path).name])
    return pyav.read(path, wanted, target, box)


if HANGS in os.environ:
    decode.READERS["pyav"] = read


class Spinning(Motion):
    """Motion, read by the decoder of this module."""
