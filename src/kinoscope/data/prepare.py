"""Makes a video data set ready: reads each file once, in processes that can be killed, for the manifest and all caches.

What a call finds is merged from four sources, none of which it trusts more than the disk: the listing, one look into
each folder (sizes and times), the tables of earlier calls, and their journals. Of a video that these do not know, the
manifests of other choices of the same data may, and are only read. From that follows what is missing.
Children measure and keep it, the journals take every result at once, and then the same merge writes the tables. So a
call that was killed anywhere has lost the videos it was at and nothing else.

Memory: while it is prepared, a listing of a million rows costs 160 MB beside itself, and 250 MB with a cache.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from kinoscope.data.children import in_children
from kinoscope.data.decode import Decoder
from kinoscope.data.keeping import INDEX, INDEX_SCHEMA, Keeper, kept_file, sound
from kinoscope.data.manifest import ABSENT, MEASURED, SCHEMA, Manifest, measures_of_others, write
from kinoscope.data.measure import UNMEASURED
from kinoscope.data.survey import Files, survey
from kinoscope.data.tables import Column, Journal, equal, places, taken, whole, write_table
from kinoscope.data.tally import in_bytes, report
from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.launch.processes import cores, listening

TIME_LIMIT = 120.0  # seconds without a single frame
SAMPLED = 32  # headers that are read to predict how much will be kept of videos that were never read
CHANGED = ": changed while the data were prepared; run kinoscope prepare again."

log = logging.getLogger("kinoscope")


def build(
    root: str | Path,
    listing: pa.Table,
    destination: str | Path,
    decoder: Decoder = "pyav",
    progress: bool = True,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
    keepers: Sequence[Keeper] = (),
) -> Manifest:
    """Measures each video once, keeps of it what is asked for, and writes the manifest and the indices of what is kept.

    Only what is missing is done: of files that are new or have changed, everything; of others, what is not kept yet. A
    bad file is a row with a reason, never an exception; one whose fault may pass is tried again by the next call.
    Several calls for the same data wait for each other.

    Args:
        root: folder that the listing's paths are relative to; it is only read.
        listing: the videos, see `lists.listing`.
        destination: the manifest's file; written under another name and renamed. Manifests beside it whose names are
            the same up to the last dash are of the same root.
        decoder: whose random access is tried on every good file.
        progress: shows a bar on stderr while files are read.
        workers: child processes, by default one per core.
        time_limit: seconds after which a file that has given no frame is given up.
        keepers: what to keep.

    Raises:
        Refusal: what is to be kept does not fit on the disk.
        KinoscopeError: something cannot be written, or a folder not be read.
        Interrupted: by a signal; what was done is kept.
    """
    work = _Work(Path(root), listing, Path(destination), decoder, keepers)
    if work.journals() or not work.look().is_done():  # where all is done, not even a lock is written
        with listening(_interrupted), work.locked():
            _finish(work, workers or cores(), time_limit, progress)
    return Manifest.open(destination)


@dataclass(frozen=True)
class _State:
    """What is known of the N listed videos, and what is missing.

    Attributes:
        table: the manifest, as far as it is known.
        files: the videos' files.
        known: (N,) SHA-256 of what was measured of this file before, perhaps with another size or time; or "".
        stale: (N,) the file was never measured, or in vain, or has changed.
        indices: for each keeper, its index as it should be.
        kept: for each keeper, (N,) the content of which a whole file is kept, or "".
        lacking: for each keeper, (N,) whether that is not the content of this good video.
        unchanged: whether all of it is what the tables on the disk say.
    """

    table: pa.Table
    files: Files
    known: pa.Table
    stale: NDArray[np.bool_]
    indices: list[pa.Table]
    kept: list[Column]
    lacking: list[NDArray[np.bool_]]
    unchanged: bool

    @property
    def todo(self) -> NDArray[np.bool_]:
        """(N,): videos that have to be read."""
        return np.logical_or.reduce([self.stale, *self.lacking])

    def is_done(self) -> bool:
        return self.unchanged and not self.todo.any()


class _Work:
    """One data set, its tables and their journals."""

    def __init__(
        self, root: Path, listing: pa.Table, destination: Path, decoder: Decoder, keepers: Sequence[Keeper]
    ) -> None:
        self.root, self.listing, self.destination = root, listing, destination
        self.decoder, self.keepers = decoder, keepers
        self.paths = whole(listing.column("path"))
        self.measured = Journal(destination.with_name(f"{destination.name}.{decoder}"), MEASURED)
        self.indexed = [Journal(keeper.folder / INDEX, INDEX_SCHEMA) for keeper in keepers]
        self.token = secrets.token_hex(4)  # of the files of this call
        self.alone = False  # only then journals may be touched

    def journals(self) -> bool:
        """Whether an earlier call was cut off."""
        return any([self.measured, *self.indexed])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with these tables; all calls take their locks in the same order."""
        folders = sorted(keeper.folder for keeper in self.keepers)
        try:
            with ExitStack() as held:
                for file in (self.destination, *(folder / INDEX for folder in folders)):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    lock = FileLock(file.with_name(f".{file.name}.lock"))
                    try:
                        held.enter_context(lock.acquire(timeout=0))
                    except Timeout:
                        log.info("another process prepares these data; waiting for it")
                        held.enter_context(lock.acquire())
                    for unfinished in file.parent.glob(f".{file.name}.*.partial"):  # what killed calls have left
                        unfinished.unlink(missing_ok=True)
                for folder in folders:  # what their children still write, nobody renames
                    shutil.rmtree(folder / ".partial", ignore_errors=True)
                self.alone = True
                try:
                    yield
                finally:
                    self.alone = False
                    for journal in (self.measured, *self.indexed):
                        journal.close()
                    for folder in folders:
                        shutil.rmtree(folder / ".partial", ignore_errors=True)
        except OSError as error:
            where = error.filename or self.destination
            raise KinoscopeError(f"{where}: cannot be written: {error.strerror or error}.") from error

    def look(self) -> _State:
        """Compares what is on the disk with what the tables and the journals say."""
        files = survey(self.root, self.paths)
        old, known = self._known()
        found, stale = self._found(files, known)
        found |= {name: self.listing.column(name) for name in self.listing.column_names}
        table = pa.table([found[name] for name in SCHEMA.names], schema=SCHEMA)
        good = ~stale & equal(table.column("error"), "")
        unchanged = old is not None and old.equals(table)
        indices, kept, lacking = [], [], []
        for keeper, journal in zip(self.keepers, self.indexed, strict=True):
            index, of_keeper, intact = sound(
                keeper, self.paths, journal.read() if self.alone else INDEX_SCHEMA.empty_table()
            )
            indices.append(index)
            kept.append(of_keeper)
            lacking.append(good & ~equal(of_keeper, table.column("sha")))
            unchanged &= intact
        return _State(table, files, known, stale, indices, kept, lacking, unchanged)

    def _found(self, files: Files, known: pa.Table) -> tuple[dict[str, Column], NDArray[np.bool_]]:
        """What is known of the files as they are now, and (N,) which of them are to be measured."""
        position = _same(self.paths, files, known)
        gone = ~files.present & equal(taken(known.column("error"), position, "unknown"), "")
        position[~files.present & ~gone] = -1  # what was wrong with a file that is gone says nothing of its return
        found = {name: taken(known.column(name), position, value) for name, value in UNMEASURED.items()}
        for name, of_files in (("bytes", files.bytes), ("modified", files.modified)):
            before = taken(known.column(name), position, 0).to_numpy()
            found[name] = pa.array(np.where(gone, before, of_files))
        stale = files.present & equal(found["sha"], "")
        for other in measures_of_others(self.destination, self.decoder) if stale.any() else ():
            position = _same(self.paths, files, other)
            position[~stale | equal(taken(other.column("sha"), position, ""), "")] = -1
            for name, value in UNMEASURED.items():
                better = taken(other.column(name), position, value)
                found[name] = pc.call_function("if_else", [pa.array(position >= 0), better, found[name]])
            stale &= position < 0
            if not stale.any():
                break
        found["error"] = self._said(~files.present, ABSENT, found["error"])
        return found, stale

    def _said(self, rows: NDArray[np.bool_], sentence: str, errors: Column) -> Column:
        """The errors, with this one in some rows."""
        if not rows.any():
            return errors
        said = pc.call_function("binary_join_element_wise", [self.paths, pa.scalar(sentence), pa.scalar("")])
        return pc.call_function("if_else", [pa.array(rows), said, errors])

    def _known(self) -> tuple[pa.Table | None, pa.Table]:
        """The manifest of an earlier call, and the measures of all that were tried with this decoder, newest first."""
        try:
            manifest = Manifest.open(self.destination)
        except KinoscopeError:
            manifest = None
        measured = self.measured.read() if self.alone else MEASURED.empty_table()
        if manifest is None or manifest.decoder != self.decoder:
            return None, measured
        old = pa.table([manifest.arrow(name) for name in SCHEMA.names], schema=SCHEMA)
        return old, pa.concat_tables([measured, manifest.measures()])

    def do(self, rows: NDArray[np.int64], state: _State, workers: int, time_limit: float, progress: bool) -> None:
        """Reads these videos, and notes every result in the journals at once."""
        for keeper in self.keepers:
            (keeper.folder / ".partial").mkdir(parents=True, exist_ok=True)
        calls = _Calls(self, rows, state)
        title = "preparing" if self.keepers else "indexing"
        with tqdm(total=len(calls), desc=title, unit="video", disable=not progress) as bar:
            for outcome in in_children("kinoscope.data.measure:measure", calls, workers, time_limit):
                row = int(rows[outcome.call])
                if outcome.fault is None:
                    self._note(row, state, *outcome.value)
                else:
                    self._note_fault(row, state, outcome.fault)
                bar.update()

    def _note(
        self, row: int, state: _State, measured: dict[str, Any] | None, kept: list[dict[str, Any] | None]
    ) -> None:
        path = self.paths[row].as_py()
        file = {"path": path, "bytes": int(state.files.bytes[row]), "modified": int(state.files.modified[row])}
        if measured is None:  # another time, the same content; or it was measured, and is only to be kept
            table, position = state.table, row
            if state.stale[row]:
                table, position = state.known, int(places(self.paths.slice(row, 1), state.known.column("path"))[0])
            measured = {name: table.column(name)[position].as_py() for name in UNMEASURED}
        for number, columns in zip(self.jobs(row, state), kept, strict=True):
            if columns is None:
                continue
            keeper = self.keepers[number]
            if not columns["error"]:
                target = kept_file(keeper, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.partial(number, row).replace(target)
                columns["modified"] = target.stat().st_mtime_ns
            self._append(self.indexed[number], {**file, "sha": measured["sha"], **columns}, path)
        for number in range(len(self.keepers)):  # of a bad video
            self.partial(number, row).unlink(missing_ok=True)
        self._append(self.measured, {**file, **measured}, path)

    def _note_fault(self, row: int, state: _State, fault: str) -> None:
        """A child came to its end: by decoding, or where the video had been decoded before, by what is to be kept."""
        path = str(self.root / self.paths[row].as_py())
        if state.stale[row]:
            return self._note(
                row,
                state,
                {**UNMEASURED, "error": f"{path}: decoding it {fault}."},
                [None] * len(self.jobs(row, state)),
            )
        columns: dict[str, Any] = {"sha": "", "kept": 0, "error": f"{path}: keeping it {fault}."}
        return self._note(row, state, None, [dict(columns) for _ in self.jobs(row, state)])

    def _append(self, journal: Journal, columns: dict[str, Any], path: str) -> None:
        # The root may move; the paths of the tables stay true.
        journal.append({**columns, "error": columns["error"].replace(str(self.root / path), path)})

    def jobs(self, row: int, state: _State) -> list[int]:
        """Keepers that may have to keep this video."""
        return [number for number, lacking in enumerate(state.lacking) if state.stale[row] or lacking[row]]

    def partial(self, number: int, row: int) -> Path:
        """Where a child writes what is to be kept."""
        keeper = self.keepers[number]
        return keeper.folder / ".partial" / f"{self.token}-{row}{keeper.suffix}"

    def write(self) -> pa.Table:
        """Turns tables and journals into new tables; returns the manifest's."""
        state = self.look()
        for keeper, journal, index in zip(self.keepers, self.indexed, state.indices, strict=True):
            write_table(index, keeper.folder / INDEX)
            journal.remove()
        errors = state.table.column("error")
        errors = self._said(state.stale & equal(errors, ""), CHANGED, errors)
        table = state.table.set_column(SCHEMA.get_field_index("error"), SCHEMA.field("error"), errors)
        write(table, self.destination, self.decoder)
        self.measured.remove()
        return table


def _same(paths: Column, files: Files, known: pa.Table) -> NDArray[np.int64]:
    """(N,): where in ``known`` a file stands as it is now; or, of one that is gone, as it was. Else -1."""
    position = places(paths, known.column("path"))
    for name, of_files in (("bytes", files.bytes), ("modified", files.modified)):
        position[files.present & (taken(known.column(name), position, -1).to_numpy() != of_files)] = -1
    return position


class _Calls(Sequence[tuple[Any, ...]]):
    """The arguments of `measure` for each row, made when its turn comes."""

    def __init__(self, work: _Work, rows: NDArray[np.int64], state: _State) -> None:
        self.work, self.rows, self.state = work, rows, state
        position = places(work.paths, state.known.column("path"))
        self.known = taken(state.known.column("sha"), position, "")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, call: Any) -> tuple[Any, ...]:
        work, state, row = self.work, self.state, int(self.rows[call])
        jobs = [
            (work.keepers[number].parameters(), str(work.partial(number, row)), state.kept[number][row].as_py())
            for number in work.jobs(row, state)
        ]
        size, modified = int(state.files.bytes[row]), int(state.files.modified[row])
        path = str(work.root / work.paths[row].as_py())
        return path, work.decoder, size, modified, self.known[row].as_py(), jobs


def _finish(work: _Work, workers: int, time_limit: float, progress: bool) -> None:
    """Does what is missing, and writes the tables."""
    state = work.look()
    rows = np.flatnonzero(state.todo)
    if len(rows):
        _require_space(work, state, workers, time_limit)
        work.do(rows, state, workers, time_limit, progress)
    del state
    report(work.write(), rows)


def _require_space(work: _Work, state: _State, workers: int, time_limit: float) -> None:
    """Compares what will be kept, at most, with what is free on the disk."""
    if not work.keepers:
        return
    sample = _sample(work, state, workers, time_limit)
    needed = sum(_predicted(work, state, number, sample) for number in range(len(work.keepers)))
    folder = work.keepers[0].folder
    free = shutil.disk_usage(folder).free
    if needed > free:
        kinds = " and ".join(keeper.parameters()["kind"] for keeper in work.keepers)
        raise Refusal(
            f"{kinds}: needs up to {in_bytes(needed)} below {folder.parent}, where {in_bytes(free)} are free; free "
            "some space, choose another data_dir, or keep smaller frames (data.resize) or another kind (data.cache)."
        )


def _predicted(work: _Work, state: _State, number: int, sample: Sequence[_Sample]) -> int:
    """Bytes that a keeper will write: of videos that are measured, at most these; of others, by what headers claim."""
    keeper, lacking = work.keepers[number], state.lacking[number]
    sides = np.stack([state.table.column(name).to_numpy()[lacking] for name in ("frames", "height", "width")], axis=1)
    alike, counts = np.unique(sides, axis=0, return_counts=True)
    bytes_for = [keeper.bytes_for(*map(int, each)) for each in alike]
    new = state.files.bytes[state.stale & equal(state.kept[number], "")].sum()
    growth = float(np.median([keeper.bytes_for(*each.header) / each.bytes for each in sample])) if sample else 0.0
    return int(np.dot(np.array(bytes_for, dtype=np.int64), counts)) + int(growth * new)


@dataclass(frozen=True)
class _Sample:
    """One file that was never measured: its size, and frames, height and width as its header claims them."""

    bytes: int
    header: tuple[int, int, int]


def _sample(work: _Work, state: _State, workers: int, time_limit: float) -> list[_Sample]:
    """Some of the files that were never measured, evenly spread."""
    stale = np.flatnonzero(state.stale & (state.files.bytes > 0))
    rows = stale[np.unique(np.linspace(0, len(stale) - 1, SAMPLED).astype(np.int64))] if len(stale) else stale
    calls = [(str(work.root / work.paths[row].as_py()),) for row in rows.tolist()]
    outcomes = in_children("kinoscope.data.measure:announced", calls, workers, time_limit)
    found = {outcome.call: outcome.value for outcome in outcomes if outcome.value is not None}
    return [_Sample(int(state.files.bytes[rows[call]]), tuple(header)) for call, header in found.items()]


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"{signal.Signals(number).name}: what is prepared is kept; the same command goes on from there")
