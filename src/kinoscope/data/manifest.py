"""The manifest of a video data set: what is really in each file, measured once, kept as a memory-mapped table.

One row per video, in the order of the listing:

    path, labels, group, subset   from the lists
    frames                        that can be decoded, counted by decoding them; containers lie
    fps, width, height            of the video
    key_frame_spacing             most frames a seek may have to decode
    damaged                       how many of the frames the decoder could only patch up
    random_access                 whether the decoder's seeks lead to the right frames; else they are counted
    bytes, modified, sha          of the file: size, time in ns, SHA-256
    error                         why the file cannot be used, or empty

What was measured of a good file stays in its row while the file is gone. A row with an error and without ``sha`` is of
a fault that may pass, such as a stalled disk: whoever prepares the data tries the file again.

The table is an Arrow IPC file: any number of workers map the same pages, and no process keeps a list of the paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kinoscope.data.tables import read_table, whole, write_table
from kinoscope.errors import KinoscopeError

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("group", pa.string()),
        ("subset", pa.string()),
        ("frames", pa.int32()),
        ("fps", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("key_frame_spacing", pa.int32()),
        ("damaged", pa.int32()),
        ("random_access", pa.bool_()),
        ("bytes", pa.int64()),
        ("modified", pa.int64()),
        ("sha", pa.string()),
        ("error", pa.string()),
    ]
)
# What a file was when it was measured, and what was found.
MEASURED = pa.schema([field for field in SCHEMA if field.name not in ("labels", "group", "subset")])
ABSENT = ": there is no such file."  # behind the path


class Manifest:
    """A memory-mapped manifest, N rows. Pickles as its file name, so that workers map it anew."""

    def __init__(self, file: Path, table: pa.Table) -> None:
        self.file = file
        self.decoder = (table.schema.metadata or {}).get(b"decoder", b"").decode()
        self._columns = {name: whole(table.column(name)) for name in SCHEMA.names}

    @classmethod
    def open(cls, path: str | Path) -> Manifest:
        """Maps a manifest's file.

        Raises:
            KinoscopeError: the file is missing or is no manifest of this version.
        """
        path = Path(path)
        table = read_table(path, SCHEMA, "a manifest", "remove it and run kinoscope prepare")
        if table is None:
            raise KinoscopeError(f"{path}: there is no manifest; run kinoscope prepare.")
        return cls(path, table)

    def __len__(self) -> int:
        return len(self._columns["path"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest.open, (self.file,)

    def column(self, name: str) -> np.ndarray:
        """A column (N,): a view of the mapped file for numbers, a fresh array of objects for text."""
        return self._columns[name].to_numpy(zero_copy_only=False)

    def arrow(self, name: str) -> pa.Array:
        """A column (N,) as Arrow has it, for work on text that never becomes Python objects."""
        return self._columns[name]

    def path(self, row: int) -> str:
        """One video's path, relative to the data set's root."""
        return self._columns["path"][int(row)].as_py()

    def error(self, row: int) -> str:
        """Why this video cannot be used, a sentence that names it; empty for a good one."""
        return self._columns["error"][int(row)].as_py()

    def labels(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """All labels, one row's after the other's, and (N + 1,) where each row's begin; views of the mapped file."""
        lists = self._columns["labels"]
        return lists.values.to_numpy(), lists.offsets.to_numpy()

    def rows(self, subset: str) -> np.ndarray:
        """Rows of a subset, good or bad, int64."""
        return np.flatnonzero(self._equal("subset", subset))

    def good(self) -> np.ndarray:
        """(N,) bool: the videos that can be used."""
        return self._equal("error", "")

    def missing(self) -> NDArray[np.bool_]:
        """(N,): the videos that the lists name and that are not there."""
        ends = pc.call_function("ends_with", [self._columns["error"]], pc.MatchSubstringOptions(ABSENT))
        return ends.to_numpy(zero_copy_only=False)

    def measures(self) -> pa.Table:
        """What was found of each file when it was there, see `MEASURED`."""
        table = pa.table([self._columns[name] for name in MEASURED.names], schema=MEASURED)
        error = pc.call_function("if_else", [pa.array(self.missing()), pa.scalar(""), self._columns["error"]])
        return table.set_column(MEASURED.get_field_index("error"), MEASURED.field("error"), error)

    def _equal(self, name: str, value: str) -> np.ndarray:
        # Compared inside Arrow: a million names never become Python strings.
        return pc.call_function("equal", [self._columns[name], pa.scalar(value)]).to_numpy(zero_copy_only=False)


def measures_of_others(destination: Path, decoder: str) -> Iterator[pa.Table]:
    """The measures in the manifests beside this one, by the same decoder, whose names are alike up to the last dash."""
    shared = destination.name.rpartition("-")[0] + "-"
    for file in sorted(destination.parent.glob("*.arrow")):
        if file.name.startswith(shared) and file != destination:
            with suppress(KinoscopeError):
                manifest = Manifest.open(file)
                if manifest.decoder == decoder:
                    yield manifest.measures()


def write(table: pa.Table, destination: Path, decoder: str) -> None:
    """Writes a manifest's rows, under another name first.

    Raises:
        KinoscopeError: the destination cannot be written.
    """
    write_table(table.cast(SCHEMA.with_metadata({"decoder": decoder})), destination)
