"""Writes a prepared data set into shards.

The videos of a subset are put in a random order, the same each time, and cut into shards of about one size. A shard's
name holds a hash of what is in it, and it is under that name only when it is complete. So a call that was killed is
continued, and a second one finds everything done.

The layout is WebDataset's: a tar file in which ``00000012.avi`` is a video and ``00000012.json`` its path, labels,
group, subset, frames and fps. Its library writes them; any program that reads tar files can read them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from kinoscope.data import draws
from kinoscope.data.manifest import Manifest
from kinoscope.data.shards.description import NAME, Description, File
from kinoscope.data.tables import sync, write_table
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.launch.processes import cores
from kinoscope.runs.signature import file_hash

# Where each row of the manifest lies: the shard's number, -1 for a video that cannot be used; its bytes there.
INDEX_SCHEMA = pa.schema([("shard", pa.int32()), ("offset", pa.int64()), ("bytes", pa.int64())])
OVERHEAD = 3072  # bytes of a tar file for each video beside its own: two headers, labels, padding

log = logging.getLogger("kinoscope")


@dataclass(frozen=True)
class _Plan:
    """One shard to be: its file's name, and its rows of the manifest in their order."""

    name: str
    rows: NDArray[np.int64]


def write(
    manifest: Manifest, root: Path, folder: Path, about: dict[str, Any], megabytes: float = 256, progress: bool = True
) -> Description:
    """Writes what is missing of a data set's shards.

    Args:
        manifest: the videos; those that cannot be used stay out of the shards.
        root: the folder that its paths are relative to.
        folder: where the shards go.
        about: what else `Description` wants to know of the data set.
        megabytes: size of a shard; a larger video makes a shard of its own.
        progress: shows a bar on stderr.

    Raises:
        KinoscopeError: a video is not what the manifest says, or the folder cannot be written.
        Refusal: ``webdataset`` is not installed.
    """
    library()
    plans = list(_plans(manifest, round(megabytes * 1e6)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [plan for plan in plans if not (folder / plan.name).exists()]
        before = _before(folder)
        known = {} if before is None else {shard.name: shard for shard in before.shards}
        pool = ThreadPoolExecutor(min(cores(), 4))  # reading and hashing leave Python's lock alone
        try:
            with tqdm(total=len(missing), desc="writing", unit="shard", disable=not (progress and missing)) as bar:
                for _ in pool.map(partial(_write_shard, manifest, root, folder), missing):
                    bar.update()
            files = list(pool.map(lambda plan: known.get(plan.name) or _file(folder / plan.name), plans))
        finally:
            pool.shutdown(cancel_futures=True)  # after a fault or Ctrl-C, what has begun is finished and no more
        same = before is not None and all(getattr(before, name) == value for name, value in about.items())
        if before is not None and same and before.shards == tuple(files):
            return before
        description = Description(
            manifest=_write_table(folder, "manifest", pa.ipc.open_file(pa.memory_map(str(manifest.file))).read_all()),
            index=_write_table(folder, "index", _index(manifest, folder, plans)),
            shards=tuple(files),
            **about,
        )
        _write_text(folder / NAME, description.text())
    except OSError as error:
        raise KinoscopeError(f"the shards cannot be written to {folder}: {error.strerror or error}.") from error
    _leftovers(folder, description)
    return description


def library() -> Any:
    """The webdataset package. Raises `Refusal` where it is not installed."""
    try:
        import webdataset
    except ImportError:
        raise Refusal("shards: writing them needs a package more: pip install 'kinoscope[shards]'.") from None
    return webdataset


def _plans(manifest: Manifest, limit: int) -> Iterator[_Plan]:
    """The shards of all subsets. Each holds videos of one subset, drawn from all of it."""
    good, sizes = manifest.good(), manifest.column("bytes")
    for subset in ("train", "validation", "test"):
        rows = manifest.rows(subset)
        rows = rows[good[rows]]
        rows = rows[draws.permutation(0, 0, len(rows), f"shards of {subset}")]
        taken = 0
        cuts = []
        for place, size in enumerate((sizes[rows] + OVERHEAD).tolist()):
            if taken and taken + size > limit:
                cuts.append(place)
                taken = 0
            taken += size
        for number, part in enumerate(np.split(rows, cuts) if len(rows) else []):
            content = [manifest.arrow(name).take(pa.array(part)).to_pylist() for name in ("path", "sha", "labels")]
            content.append(part.tolist())
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
            yield _Plan(f"{subset}-{number:06d}-{digest}.tar", part)


def _write_shard(manifest: Manifest, root: Path, folder: Path, plan: _Plan) -> None:
    whole = folder / plan.name
    partial = whole.with_name(f".{plan.name}.{os.getpid()}.partial")
    labels, first = manifest.labels()
    columns = ("group", "subset", "frames", "fps", "sha", "bytes")
    facts = {name: manifest.arrow(name).take(pa.array(plan.rows)).to_pylist() for name in columns}
    try:
        # Without the time of writing, so that the same videos make the same bytes.
        with partial.open("wb") as file, library().TarWriter(file, encoder=False, mtime=0) as tar:
            for place, row in enumerate(plan.rows.tolist()):
                path = manifest.path(row)
                video = (root / path).read_bytes()
                if hashlib.sha256(video).hexdigest() != facts["sha"][place]:
                    raise KinoscopeError(
                        f"{root / path}: has changed while it was prepared; run kinoscope prepare again."
                    )
                said = {"path": path, "labels": labels[first[row] : first[row + 1]].tolist()}
                said |= {name: facts[name][place] for name in ("group", "subset", "frames", "fps")}
                key = {"__key__": f"{row:08d}", Path(path).suffix[1:].lower(): video}
                tar.write(key | {"json": json.dumps(said).encode()})
        sync(partial)
        partial.rename(whole)
    finally:
        partial.unlink(missing_ok=True)


def _index(manifest: Manifest, folder: Path, plans: list[_Plan]) -> pa.Table:
    """Where each row's bytes lie, as the tar files themselves say."""
    shard = np.full(len(manifest), -1, np.int32)
    offset, size = np.zeros(len(manifest), np.int64), np.zeros(len(manifest), np.int64)
    for number, plan in enumerate(plans):
        with tarfile.open(folder / plan.name) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind != "json":
                    shard[int(key)], offset[int(key)], size[int(key)] = number, member.offset_data, member.size
    return pa.table([shard, offset, size], INDEX_SCHEMA)


def _write_table(folder: Path, kind: str, table: pa.Table) -> File:
    """Under a name of its own, so that whoever reads the shards as they were still can."""
    unnamed = folder / f".{kind}.{os.getpid()}.arrow"
    write_table(table, unnamed)
    file = _file(unnamed)
    name = f"{kind}-{file.sha256[:8]}.arrow"
    unnamed.rename(folder / name)
    return File(name, file.bytes, file.sha256)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, file_hash(path))


def _before(folder: Path) -> Description | None:
    """What an earlier call has completed, if all of it is still there."""
    try:
        description = Description.parse((folder / NAME).read_bytes(), str(folder / NAME))
        files = (*description.shards, description.manifest, description.index)
        whole = all((folder / file.name).stat().st_size == file.bytes for file in files)
    except (FileNotFoundError, Refusal):
        return None
    return description if whole else None


def _leftovers(folder: Path, description: Description) -> None:
    """Says which files no longer belong to the shards; somebody may still read them."""
    ours = {file.name for file in (*description.shards, description.manifest, description.index)}
    patterns = ("train-*.tar", "validation-*.tar", "test-*.tar", "manifest-*.arrow", "index-*.arrow")
    old = sorted({path.name for pattern in patterns for path in folder.glob(pattern)} - ours)
    if old:
        log.warning("%s: %d files (%s, …) are of an earlier data set and can be removed", folder, len(old), old[0])
