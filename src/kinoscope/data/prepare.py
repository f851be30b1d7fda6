"""Makes a video data set ready: reads each file once, in processes that can be killed, and writes the manifest."""

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
from tqdm import tqdm

from kinoscope.data import decode
from kinoscope.data.children import cores, in_children
from kinoscope.data.decode import Decoder
from kinoscope.data.lists.listing import schema
from kinoscope.data.manifest import SCHEMA, Manifest, write
from kinoscope.errors import DecodeError, KinoscopeError

TIME_LIMIT = 120.0  # seconds for one file: an hour of video decodes in less
# More missing or damaged frames than this share, and the file is called bad; fewer are counted and reported.
TOLERANCE = 0.1
REPORTED = 10  # bad files that the log names one by one
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


def build(
    root: str | Path,
    listing: pa.Table,
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
        root: folder that the listing's paths are relative to; it is only read.
        listing: the videos, see `lists.listing`.
        destination: the manifest's file; written under another name and renamed.
        decoder: whose random access is tried on every good file.
        progress: shows a bar on stderr while files are measured.
        workers: child processes, by default one per core.
        time_limit: seconds for one file.

    Raises:
        KinoscopeError: the destination cannot be written.
    """
    root, destination = Path(root), Path(destination)
    paths = listing.column("path").to_pylist()
    columns = _columns(root, paths)
    stale = _reuse(columns, paths, _known(destination, decoder))
    calls = [(str(root / paths[row]), decoder) for row in stale]
    with tqdm(total=len(calls), desc="indexing", unit="video", disable=not (progress and calls)) as bar:
        for outcome in in_children("kinoscope.data.prepare:measure", calls, workers or cores(), time_limit):
            row, path = stale[outcome.call], calls[outcome.call][0]
            measured = outcome.value or {**_UNMEASURED, "error": f"{path}: decoding it {outcome.fault}."}
            # The root may move; the paths of the manifest stay true.
            measured["error"] = measured["error"].replace(path, paths[row])
            for name, value in measured.items():
                columns[name][row] = value
            bar.update()
    measured_columns = {name: pa.array(column, SCHEMA.field(name).type) for name, column in columns.items()}
    write(pa.table([*listing.columns, *measured_columns.values()], SCHEMA.names), destination, decoder)
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


def _columns(root: Path, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """What a manifest adds to a listing, with each file's size and time alone (0 and 0 if it is missing)."""
    fields = [field for field in SCHEMA if field.name not in schema().names]
    columns = {field.name: np.zeros(len(paths), field.type.to_pandas_dtype()) for field in fields}
    for row, path in enumerate(paths):
        try:
            status = os.stat(root / path)  # noqa: PTH116 - one call for both
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


def _reuse(columns: dict[str, np.ndarray], paths: Sequence[str], known: Manifest | None) -> list[int]:
    """Copies what is known of unchanged files; returns the rows that remain to be measured."""
    count = len(paths)
    if known is None or not len(known):
        return list(range(count))
    position = {path: row for row, path in enumerate(known.column("path"))}
    source = np.fromiter((position.get(path, -1) for path in paths), np.int64, count)
    unchanged = source >= 0
    for name in ("bytes", "modified"):
        unchanged &= known.column(name)[source] == columns[name]
    unchanged &= columns["modified"] != 0
    for name in _UNMEASURED:
        columns[name][unchanged] = known.column(name)[source[unchanged]]
    return np.flatnonzero(~unchanged).tolist()


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
