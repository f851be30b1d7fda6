"""Which of many files are there, with size and time: one look into each folder, instead of one at each file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kinoscope.data.tables import Column, places
from kinoscope.errors import KinoscopeError

AT_ONCE = 10_000  # entries that are Python objects at one time


@dataclass(frozen=True)
class Files:
    """Of N paths: whether there is a file, its size in bytes and its time in ns; 0 and 0 where there is none."""

    present: NDArray[np.bool_]
    bytes: NDArray[np.int64]
    modified: NDArray[np.int64]


def survey(root: Path, paths: Column) -> Files:
    """Looks into each folder once. What is absent costs nothing.

    Args:
        root: folder that the paths are relative to.
        paths: (N,) text, with forward slashes.

    Raises:
        KinoscopeError: a folder that is there cannot be read.
    """
    folders = pc.call_function(
        "unique", [pc.call_function("replace_substring_regex", [paths], pc.ReplaceSubstringOptions("[^/]*$", ""))]
    )
    blocks, sizes, times = [pa.array([], pa.string())], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for entries in _entries(root, folders):
        names, of_files, modified = zip(*entries, strict=True)
        blocks.append(pa.array(names, pa.string()))
        sizes.append(np.array(of_files, np.int64))
        times.append(np.array(modified, np.int64))
    position = places(paths, pa.chunked_array(blocks))
    present = position >= 0
    columns = [np.append(np.concatenate(column), 0)[position] for column in (sizes, times)]  # -1 finds the last: 0
    return Files(present, *columns)


def _entries(root: Path, folders: pa.Array) -> Iterator[list[tuple[str, int, int]]]:
    """Path, size and time of all that lies in these folders, some at a time."""
    entries: list[tuple[str, int, int]] = []
    for folder in folders:
        prefix = folder.as_py()
        try:
            with os.scandir(root / prefix) as listing:
                for entry in listing:
                    if _is_text(entry.name):
                        with suppress(OSError):  # a link that leads nowhere
                            status = entry.stat()
                            entries.append((prefix + entry.name, status.st_size, status.st_mtime_ns))
                    if len(entries) >= AT_ONCE:
                        yield entries
                        entries = []
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise KinoscopeError(f"{root / prefix}: cannot be read: {error.strerror}.") from None
    if entries:
        yield entries


def _is_text(name: str) -> bool:
    """Whether a file's name can stand in a list."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
