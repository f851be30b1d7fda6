"""Prepares the videos of a folder, as a process that a test can watch, limit and kill: preparing.py ROOT DATA KIND…"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kinoscope.data import children, prepare
from kinoscope.data.children import sign_of_life
from kinoscope.data.keeping import Keeper, keeper
from kinoscope.data.lists.listing import VideoEntry, listing
from kinoscope.data.manifest import Manifest
from kinoscope.errors import KinoscopeError

WATCHED = Path(__file__).parent / "watched"


def keepers(root: Path, data: Path, *kinds: str) -> list[Keeper]:
    return [keeper(kind, data, root, resize=16) for kind in kinds]


def build(root: Path, data: Path, *kinds: str, workers: int = 2) -> Manifest:
    """The manifest of all videos of a folder, in the order of their names."""
    names = sorted(path.name for path in root.iterdir())
    entries = [VideoEntry(name, k % 2, f"g{k}", "test" if k % 3 == 2 else "train") for k, name in enumerate(names)]
    return prepare.build(
        root, listing(entries), data / "manifests" / "m.arrow", progress=False, workers=workers,
        keepers=keepers(root, data, *kinds),
    )  # fmt: skip


def start(root: Path, data: Path, *kinds: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The same in a process of its own, in a session of its own, watched."""
    return subprocess.Popen(
        [sys.executable, __file__, str(root), str(data), *kinds],
        env={**os.environ, "PYTHONPATH": str(WATCHED), "KINOSCOPE_TEST_DATA": str(data), **(environment or {})},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def beats(number: int) -> int:
    """A call that says ``number`` times that it lives."""
    children.BEAT = 0.0
    for _ in range(number):
        time.sleep(0.01)  # no clock is so coarse that nothing has passed
        sign_of_life()
    return number


def waits(begun: str, until: str) -> int:
    """A call that makes one file and lasts until another one is there; gives its process's number."""
    Path(begun).touch()
    while not Path(until).exists():
        time.sleep(0.01)
    return os.getpid()


def hang_with_lock(marker: str) -> None:
    """Never returns, in native code that keeps Python's lock; the marker holds its process's number."""
    partial = Path(f"{marker}.partial")
    partial.write_text(str(os.getpid()))
    partial.replace(marker)
    ctypes.PyDLL(None).sleep(1_000_000)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except KinoscopeError as error:
        logging.error("%s", error)
        sys.exit(error.exit_code)
