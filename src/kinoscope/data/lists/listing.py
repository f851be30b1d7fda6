"""A listing: what a data set's own lists say of its videos, one row each, as an Arrow table.

    path      relative to the data set's root, with forward slashes
    labels    positions of its classes among the chosen ones; one, or several where the data set is multi-label
    group     videos of one group are near-duplicates and are never divided between subsets
    subset    train, validation or test

A million rows are 100 MB here, and a gigabyte as Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")  # what counts as a video, the most wanted first

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


def schema() -> pa.Schema:
    """The columns of a listing."""
    import pyarrow as pa

    return pa.schema([("path", pa.string()), ("labels", pa.list_(pa.int32())), ("group", pa.string()),
                      ("subset", pa.string())])  # fmt: skip


def listing(entries: Iterable[VideoEntry]) -> pa.Table:
    """The rows of these entries, in their order."""
    import pyarrow as pa

    rows = list(entries)
    columns = [[row.path for row in rows], [[row.label] for row in rows], [row.group for row in rows],
               [row.subset for row in rows]]  # fmt: skip
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema(), strict=True)], schema=schema())


def counts(table: pa.Table) -> dict[str, int]:
    """Videos of each subset that has any."""
    found = {row["values"]: row["counts"] for row in table.column("subset").value_counts().to_pylist()}
    return {subset: found[subset] for subset in SUBSETS if subset in found}
