"""The manifest of a video data set: what is really in each file, measured once, kept as a memory-mapped table.

One row per video, in the order of the entries:

    path, label, group, subset    from the lists
    frames                        that can be decoded, counted by decoding them; containers lie
    fps, width, height            of the video
    key_frame_spacing             most frames a seek may have to decode
    damaged                       how many of the frames the decoder could only patch up
    random_access                 whether the decoder's seeks lead to the right frames; else they are counted
    bytes, modified, sha          of the file: size, time in ns, SHA-256
    error                         why the file cannot be used, or empty

The table is an Arrow IPC file: any number of workers map the same pages, and no process keeps a list of the paths.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from kinoscope.data import decode
from kinoscope.data.children import cores, in_children
from kinoscope.data.decode import Decoder
from kinoscope.data.ucf101 import VideoEntry
from kinoscope.errors import DecodeError, KinoscopeError

TIME_LIMIT = 120.0  # seconds for one file: an hour of video decodes in less
# More missing or damaged frames than this share, and the file is called bad; fewer are counted and reported.
TOLERANCE = 0.1
REPORTED = 10  # bad files that the log names one by one

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int32()),
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
# The columns that only reading the file can fill.
_UNMEASURED: dict[str, Any] = {
    "frames": 0,
    "fps": 0.0,
    "width": 0,
    "height": 0,
    "key_frame_spacing": 0,
    "damaged": 0,
    "random_access": False,
    "sha": "",
    "error": "",
}

log = logging.getLogger("kinoscope")


class Manifest:
    """A memory-mapped manifest, N rows. Pickles as its file name, so that workers map it anew."""

    def __init__(self, file: Path, table: pa.Table) -> None:
        self.file = file
        self.decoder = (table.schema.metadata or {}).get(b"decoder", b"").decode()
        self._columns = {name: table.column(name).combine_chunks() for name in SCHEMA.names}

    @classmethod
    def open(cls, path: str | Path) -> Manifest:
        """Maps a manifest's file.

        Raises:
            KinoscopeError: the file is missing or is no manifest of this version.
        """
        path = Path(path)
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except FileNotFoundError:
            raise KinoscopeError(f"{path}: there is no manifest; run kinoscope prepare.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise KinoscopeError(f"{path}: is not a manifest ({error}); remove it and run kinoscope prepare.") from None
        if not table.schema.equals(SCHEMA):
            raise KinoscopeError(f"{path}: is a manifest of another version; remove it and run kinoscope prepare.")
        return cls(path, table)

    def __len__(self) -> int:
        return len(self._columns["path"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest.open, (self.file,)

    def column(self, name: str) -> np.ndarray:
        """A column (N,): a view of the mapped file for numbers, a fresh array of objects for text."""
        return self._columns[name].to_numpy(zero_copy_only=False)

    def path(self, row: int) -> str:
        """One video's path, relative to the data set's root."""
        return self._columns["path"][int(row)].as_py()

    def error(self, row: int) -> str:
        """Why this video cannot be used, a sentence that names it; empty for a good one."""
        return self._columns["error"][int(row)].as_py()

    def rows(self, subset: str) -> np.ndarray:
        """Rows of a subset, good or bad, int64."""
        return np.flatnonzero(self._equal("subset", subset))

    def good(self) -> np.ndarray:
        """(N,) bool: the videos that can be used."""
        return self._equal("error", "")

    def _equal(self, name: str, value: str) -> np.ndarray:
        # Compared inside Arrow: a million names never become Python strings.
        return pc.call_function("equal", [self._columns[name], pa.scalar(value)]).to_numpy(zero_copy_only=False)


def build(
    root: str | Path,
    entries: Sequence[VideoEntry],
    destination: str | Path,
    decoder: Decoder = "pyav",
    progress: bool = True,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
) -> Manifest:
    """Measures each video once and writes the manifest.

    A manifest that is already there is brought up to date: only files that are new or whose size or time changed are
    measured. Files are measured in child processes, which are killed when one takes too long. A bad file is a row with
    a reason, never an exception.

    Args:
        root: folder that the entries' paths are relative to; it is only read.
        entries: the videos, one row each.
        destination: the manifest's file; written under another name and renamed.
        decoder: whose random access is tried on every good file.
        progress: shows a bar on stderr while files are measured.
        workers: child processes, by default one per core.
        time_limit: seconds for one file.

    Raises:
        KinoscopeError: the destination cannot be written.
    """
    root, destination = Path(root), Path(destination)
    columns = _columns(root, entries)
    stale = _reuse(columns, _known(destination, decoder))
    calls = [(str(root / entries[row].path), decoder) for row in stale]
    with tqdm(total=len(calls), desc="indexing", unit="video", disable=not (progress and calls)) as bar:
        for outcome in in_children("kinoscope.data.manifest:measure", calls, workers or cores(), time_limit):
            row, path = stale[outcome.call], calls[outcome.call][0]
            measured = outcome.value or {**_UNMEASURED, "error": f"{path}: decoding it {outcome.fault}."}
            # The root may move; the paths of the manifest stay true.
            measured["error"] = measured["error"].replace(path, entries[row].path)
            for name, value in measured.items():
                columns[name][row] = value
            bar.update()
    _write(columns, destination, decoder)
    _report(columns, stale)
    return Manifest.open(destination)


def measure(path: str, decoder: Decoder) -> dict[str, Any]:
    """One video's measured columns; runs in a child process."""
    measured = dict(_UNMEASURED)
    try:
        info = decode.probe(path, decoder)
        measured.update({name: value for name, value in asdict(info).items() if name in measured})
        with Path(path).open("rb") as file:
            measured["sha"] = hashlib.file_digest(file, "sha256").hexdigest()
        if info.frames < (1 - TOLERANCE) * info.claimed:
            raise DecodeError(
                f"{path}: is cut short or damaged; of the {info.claimed} frames it announces {info.frames} decode."
            )
        if info.damaged > TOLERANCE * info.frames:
            raise DecodeError(f"{path}: is damaged; {info.damaged} of its {info.frames} frames do not decode cleanly.")
    except DecodeError as error:
        measured["error"] = str(error)
    except OSError as error:
        measured["error"] = f"{path}: cannot be read: {error.strerror}."
    return measured


def _columns(root: Path, entries: Sequence[VideoEntry]) -> dict[str, np.ndarray]:
    """What is known without reading a video: the entries, and each file's size and time (0 and 0 if it is missing)."""
    columns = {field.name: np.zeros(len(entries), field.type.to_pandas_dtype()) for field in SCHEMA}
    for name in ("path", "label", "group", "subset"):
        columns[name][:] = [getattr(entry, name) for entry in entries]
    for row, entry in enumerate(entries):
        try:
            status = os.stat(root / entry.path)  # noqa: PTH116 - one call for both
        except OSError:
            continue  # the child finds out why
        columns["bytes"][row], columns["modified"][row] = status.st_size, status.st_mtime_ns
    return columns


def _known(destination: Path, decoder: Decoder) -> Manifest | None:
    """The manifest of an earlier call, if it can be read and its videos were tried with the same decoder."""
    try:
        manifest = Manifest.open(destination)
    except KinoscopeError:
        return None
    return manifest if manifest.decoder == decoder else None


def _reuse(columns: dict[str, np.ndarray], known: Manifest | None) -> list[int]:
    """Copies what is known of unchanged files; returns the rows that remain to be measured."""
    count = len(columns["path"])
    if known is None or not len(known):
        return list(range(count))
    position = {path: row for row, path in enumerate(known.column("path"))}
    source = np.fromiter((position.get(path, -1) for path in columns["path"]), np.int64, count)
    unchanged = source >= 0
    for name in ("bytes", "modified"):
        unchanged &= known.column(name)[source] == columns[name]
    unchanged &= columns["modified"] != 0
    for name in _UNMEASURED:
        columns[name][unchanged] = known.column(name)[source[unchanged]]
    return np.flatnonzero(~unchanged).tolist()


def _write(columns: dict[str, np.ndarray], destination: Path, decoder: Decoder) -> None:
    schema = SCHEMA.with_metadata({"decoder": decoder})
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_table(table)
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise KinoscopeError(f"the manifest cannot be written to {destination}: {error.strerror or error}.") from error


def _report(columns: dict[str, np.ndarray], measured: list[int]) -> None:
    """Says what this call found; what earlier calls found, they said."""
    bad = [row for row in measured if columns["error"][row]]
    for row in bad[:REPORTED]:
        log.warning("bad video: %s", columns["error"][row])
    if len(bad) > REPORTED:
        log.warning("bad videos: %d more; the manifest holds every reason.", len(bad) - REPORTED)
    patchy = sum(columns["damaged"][row] > 0 and not columns["error"][row] for row in measured)
    if patchy:
        log.warning("%d videos hold a few damaged frames and are used.", patchy)
