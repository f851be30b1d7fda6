"""Arrow tables on disk: whole or not at all, read as memory maps, and the rows that are still on their way to them.

Work of hours must survive a kill. Each of its results is a line of a journal beside the table, which a later call reads
as if it had done that work itself; when all is done, journal and table become a new table. No text leaves Arrow here:
a million paths are 100 MB in it, and a gigabyte as Python objects.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from kinoscope.errors import KinoscopeError

SYNC = 1.0  # seconds between two moments at which a journal is surely on the disk: what a power cut may cost

Column: TypeAlias = "pa.Array | pa.ChunkedArray"


def read_table(file: Path, schema: pa.Schema, what: str, cure: str) -> pa.Table | None:
    """A table's memory map, or None where there is no such file.

    Args:
        file: an Arrow IPC file.
        schema: what it must be, metadata aside.
        what: it is called in a message, with its article.
        cure: what to do about a file that is something else.

    Raises:
        KinoscopeError: the file is no such table.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as error:
        raise KinoscopeError(f"{file}: is not {what} ({error}); {cure}.") from None
    if not table.schema.equals(schema):
        raise KinoscopeError(f"{file}: is {what} of another version; {cure}.")
    return table


def write_table(table: pa.Table, file: Path) -> None:
    """Writes a table under another name first; readers of the file before it keep what they have mapped.

    Raises:
        KinoscopeError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            sync(partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise KinoscopeError(f"{file}: cannot be written: {error.strerror or error}.") from error


def sync(file: Path) -> None:
    """Returns when what was written to a file is on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """Rows that were added since the table was written: JSON lines, of which the newest of a path counts.

    Args:
        table: file of the table; the journal lies beside it.
        schema: of the rows.
    """

    def __init__(self, table: Path, schema: pa.Schema) -> None:
        self.file, self.schema = table.with_name(f".{table.name}.journal"), schema
        self._lines: IO[bytes] | None = None
        self._synced = time.monotonic()

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return self.file.exists()

    def read(self) -> pa.Table:
        """The rows, the newest first. A last line that a kill has cut off is removed from the file."""
        self.close()
        if not self.file.exists() or not _mend(self.file):
            return self.schema.empty_table()
        options = pyarrow.json.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore")
        try:
            table = pyarrow.json.read_json(self.file, parse_options=options)
        except pa.ArrowInvalid:  # the disk lost power: the work since the last table is done again
            self.remove()
            return self.schema.empty_table()
        return table.take(pa.array(np.arange(len(table))[::-1]))

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row: safe from a kill at once, from a power cut within a second."""
        if self._lines is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lines = self.file.open("ab")
        self._lines.write(json.dumps(row).encode() + b"\n")
        self._lines.flush()
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._lines.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Ends writing, for now."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def remove(self) -> None:
        """Of what has become a table."""
        self.close()
        self.file.unlink(missing_ok=True)


def _mend(file: Path, block: int = 1 << 16) -> int:
    """Cuts a file off behind its last whole line; returns its size."""
    with file.open("r+b") as lines:
        end = lines.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - block)
            lines.seek(start)
            whole = lines.read(end - start).rfind(b"\n") + 1
            if whole:
                end = start + whole
                break
            end = start
        lines.truncate(end)
    return end


def places(wanted: Column, among: Column) -> NDArray[np.int64]:
    """(N,): where each of ``wanted`` first stands in ``among``, -1 where it does not."""
    return pc.call_function("index_in", [wanted], pc.SetLookupOptions(among)).fill_null(-1).to_numpy().astype(np.int64)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece: itself where it is, a view of the mapped file for one; else a copy."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def taken(column: Column, position: NDArray[np.int64], default: Any) -> Column:
    """The values at these places, ``default`` where the place is -1."""
    return column.take(pa.array(position, mask=position < 0)).fill_null(default)


def equal(left: Column, right: Any) -> NDArray[np.bool_]:
    """(N,): where two columns, or a column and a value, are the same."""
    return pc.call_function("equal", [left, right]).to_numpy(zero_copy_only=False)
