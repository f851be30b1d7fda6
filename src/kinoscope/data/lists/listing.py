"""A listing: what a data set's own lists say of its videos, one row each, as an Arrow table.

    path      relative to the data set's root, with forward slashes
    labels    positions of its classes among the chosen ones; one, or several where the data set is multi-label
    group     videos of one group are near-duplicates and are never divided between subsets
    subset    train, validation or test

A million rows are 100 MB here, and a gigabyte as Python objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

# What counts as a video, the most wanted first.
SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv", ".ts")
CHUNK = 65536  # rows that are Python objects at one time

Subset = Literal["train", "validation", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class VideoEntry:
    """One video of a small data set: a row of its listing.

    Args:
        path: relative to the root, with forward slashes.
        label: position of its class among the chosen classes.
        group: of near-duplicates.
        subset: where the split puts it.
    """

    path: str
    label: int
    group: str
    subset: Subset


def kernels() -> Any:
    """Arrow's functions on columns. pyarrow makes them while it is imported, so no checker of types knows them."""
    import pyarrow.compute

    return pyarrow.compute


def schema() -> pa.Schema:
    """The columns of a listing."""
    import pyarrow as pa

    return pa.schema([("path", pa.string()), ("labels", pa.list_(pa.int32())), ("group", pa.string()),
                      ("subset", pa.string())])  # fmt: skip


def listing(entries: Iterable[VideoEntry]) -> pa.Table:
    """The rows of these entries, in their order."""
    import pyarrow as pa

    waiting = iter(entries)
    batches: list[pa.RecordBatch] = []
    while rows := list(islice(waiting, CHUNK)):
        columns = [[row.path for row in rows], [[row.label] for row in rows], [row.group for row in rows],
                   [row.subset for row in rows]]  # fmt: skip
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema(), strict=True)]
        batches.append(pa.record_batch(arrays, schema()))
    return pa.Table.from_batches(batches, schema())


def hold_out(table: pa.Table, share: float, subset: Subset = "validation") -> pa.Table:
    """Moves about ``share`` of each class's training videos to another subset, whole groups of them.

    Of a class with more than one group at least one is moved, and never all. Which ones is a hash of the group's name,
    so it is the same on every machine and for every seed, and a new video moves no more than its neighbours in that
    order. A group in several classes, or with several labels, counts for the first of them.

    Args:
        table: a listing.
        share: 0 ≤ share < 1.
        subset: where they go.
    """
    import numpy as np
    import pyarrow as pa

    from kinoscope.data import draws

    pc = kernels()
    training = pc.equal(table["subset"], "train").to_numpy()
    if share <= 0 or not training.any():
        return table
    rows = np.flatnonzero(training)
    encoded = table["group"].take(pa.array(rows)).combine_chunks().dictionary_encode()
    group = encoded.indices.to_numpy()
    first = np.empty(len(encoded.dictionary), np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]  # of several values for one place the last stays
    label = pc.list_element(table["labels"], 0).to_numpy()[rows][first]
    names = (encoded.dictionary[low : low + CHUNK].to_pylist() for low in range(0, len(first), CHUNK))
    hashed = np.fromiter((crc32(name.encode()) for chunk in names for name in chunk), np.int64, len(first))
    order = np.lexsort((draws.uniform(0, 0, hashed, f"held out for {subset}"), label))
    counts = np.bincount(label)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.minimum(np.maximum(1, np.rint(share * counts)), counts - 1)
    moved = np.zeros(len(table), bool)
    moved[rows] = (rank < wanted[label])[group]
    column = pc.if_else(pa.array(moved), subset, table["subset"])
    return table.set_column(table.schema.get_field_index("subset"), schema().field("subset"), column)


def with_all_subsets(table: pa.Table, validation: float) -> pa.Table:
    """The listing with videos to validate on, which are never those of the test.

    Where the lists have no validation videos, a share of the training is held out. Where they have some, but no test,
    as published lists often do, those are the test: numbers are compared on them.

    Args:
        table: a listing.
        validation: share of the training videos, 0 ≤ validation < 1.

    Raises:
        Refusal: there are no videos to test on.
    """
    pc = kernels()
    found = counts(table)
    if found.keys() == {"train"}:
        raise Refusal("the lists name videos to train on, and none to test or to validate on.")
    if "validation" in found and "test" not in found:
        renamed = pc.replace_substring(table["subset"], "validation", "test")
        table = table.set_column(table.schema.get_field_index("subset"), schema().field("subset"), renamed)
    return table if {"validation", "test"} <= found.keys() else hold_out(table, validation)


def fingerprint(table: pa.Table, root: Path, names: Sequence[str]) -> str:
    """Identity of a listing's data: sha256 over the classes, and every video's path, labels, subset and size in bytes.

    Videos that are not there count for nothing, nor does the root's own path.
    """
    import numpy as np
    import pyarrow as pa

    from kinoscope.data.survey import survey

    digest = hashlib.sha256("\n".join(names).encode())
    files = survey(root, table["path"])
    rows = np.flatnonzero(files.present)
    for low in range(0, len(rows), CHUNK):
        some = rows[low : low + CHUNK]
        columns = table.select(["path", "subset", "labels"]).take(pa.array(some)).columns
        for row in zip(*(column.to_pylist() for column in columns), files.bytes[some].tolist(), strict=True):
            digest.update("\n{}\t{}\t{}\t{}".format(*row).encode())
    return digest.hexdigest()


def counts(table: pa.Table) -> dict[str, int]:
    """Videos of each subset that has any."""
    found = {row["values"]: row["counts"] for row in table.column("subset").value_counts().to_pylist()}
    return {subset: found[subset] for subset in SUBSETS if subset in found}
