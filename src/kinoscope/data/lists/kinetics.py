"""Lists like those of Kinetics: CSV files with the header ``label,youtube_id,time_start,time_end,split``.

    <root>/*.csv                                            as many lists as there are
    <root>/…/<youtube_id>_<start>_<end>.mp4                 seconds, six digits each; in class folders or in one

Kay et al.: "The Kinetics Human Action Video Dataset", arXiv:1705.06950, 2017. A video has one class. Where the lists
name no test videos (theirs have no labels), those to validate on are the test, and validation is held out of training.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kinoscope.data.lists import reading
from kinoscope.data.lists.listing import CHUNK, Subset, with_all_subsets
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

HEADER = ("label", "youtube_id", "time_start", "time_end", "split")
SUBSETS: dict[str, Subset] = {
    "train": "train", "training": "train", "val": "validation", "validate": "validation", "validation": "validation",
    "test": "test",
}  # fmt: skip


def class_names(root: str | Path, classes: Sequence[str] | None = None) -> list[str]:
    """The classes to learn, by name; position is label. Reads the lists.

    Args:
        root: folder of the data set.
        classes: names to choose, in any order and case; default: all of the lists.

    Raises:
        Refusal: a list is missing or has a bad line, or a class is unknown.
    """
    files = _lists(Path(root))
    found = set[str]().union(*(_labels(file, file.stat().st_mtime_ns) for file in files))
    return reading.chosen(sorted(found), classes, ", ".join(str(file) for file in files))


def read(root: str | Path, classes: Sequence[str] | None = None, validation: float = 0.1) -> pa.Table:
    """The listing, list by list and line by line. Videos that are not on disk keep their row.

    Args:
        root: folder of the data set.
        classes: see ``class_names``.
        validation: share of each class's training videos that is held out where the lists do not say it.

    Raises:
        Refusal: a list is missing or has a bad line, a video is listed twice, or its file leads out of ``root``.
    """
    import pyarrow as pa

    root = Path(root)
    files = _lists(root)
    labels = {name: label for label, name in enumerate(class_names(root, classes))}
    rows = _named(files, labels)
    batches: list[pa.RecordBatch] = []
    while chunk := list(islice(rows, CHUNK)):
        columns = [pa.array(c, f.type) for c, f in zip(zip(*chunk, strict=True), reading.named(), strict=True)]
        batches.append(pa.record_batch(columns, reading.named()))
    named = pa.Table.from_batches(batches, reading.named())
    if again := reading.repeated(named["name"]):
        second, first = ((files[named["file"][row].as_py()], named["line"][row].as_py()) for row in again)
        name = named["name"][again[0]].as_py()
        raise reading.at(*second, f"{name} has been listed before, in {first[0].name}, line {first[1]}")
    return with_all_subsets(reading.located(named, root, "", files), validation)


def _named(files: Sequence[Path], labels: dict[str, int]) -> Iterator[tuple[str, list[int], str, str, int, int]]:
    for number, file in enumerate(files):
        for line, row in _rows(file):
            if row["label"] not in labels:
                continue
            start, end = (int(row[key]) for key in ("time_start", "time_end"))
            name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            yield name, [labels[row["label"]]], row["youtube_id"], SUBSETS[row["split"].lower()], number, line


@functools.lru_cache(maxsize=16)
def _labels(file: Path, modified: int) -> frozenset[str]:
    """A list's classes. While a config is composed they are asked for several times."""
    return frozenset(row["label"] for _, row in _rows(file))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and checked rows; rows without a label, as in lists of hidden tests, are left out."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            table = csv.reader(text, strict=True)
            header = [name.strip() for name in next(table, [])]
            if lacking := [name for name in HEADER if name not in header]:
                raise reading.at(file, 1, f"the header must hold {', '.join(HEADER)}; {lacking[0]} is not there")
            for values in table:
                if not values:
                    continue
                if len(values) != len(header):
                    raise reading.at(file, table.line_num, f"expected {len(header)} values, found {len(values)}")
                row = {name: value.strip() for name, value in zip(header, values, strict=True)}
                if fault := _fault(row):
                    raise reading.at(file, table.line_num, fault)
                if row["label"]:
                    yield table.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"{file} cannot be read: {error}.") from None


def _fault(row: dict[str, str]) -> str | None:
    name = row["youtube_id"]
    if not name or not name.replace("-", "a").replace("_", "a").isalnum() or not name.isascii():
        return f"a youtube_id has letters, digits, - and _, found {name!r}"
    for key in ("time_start", "time_end"):
        if not (row[key].isascii() and row[key].isdigit()):
            return f"{key} is in whole seconds, found {row[key]!r}"
    if row["split"].lower() not in SUBSETS:
        return f"split is train, validate or test, found {row['split']!r}{reading.near(row['split'], SUBSETS)}"
    return None


def _lists(root: Path) -> list[Path]:
    reading.require_folder(root, "the CSV lists and the videos")
    files = sorted(file for file in root.glob("*.csv") if file.is_file())
    if not files:
        raise Refusal(f"{root}: there is no list *.csv with the columns {', '.join(HEADER)}.")
    return files
