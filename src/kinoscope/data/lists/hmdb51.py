"""HMDB51's folders and lists.

    <root>/<class>/<name>.avi         (or <root>/videos/<class>/…, <root>/hmdb51_org/<class>/…)
    <root>/testTrainMulti_7030_splits/<class>_test_split1..3.txt      lines `<name>.avi 1|2|0`

Kuehne, Jhuang, Garrote, Poggio, Serre: "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011. A split
has 70 videos of each class to train on (1) and 30 to test (2); the others (0) are left out, to keep clips of one film
on one side and to balance the quality. A name ends with what its clip shows, ``_<class>_u_nm_np1_ba_goo_0``; what comes
before names the film, and clips of one film are one group here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinoscope.data.lists import reading
from kinoscope.data.lists.listing import hold_out
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

LISTS = "testTrainMulti_7030_splits"
SPLITS = (1, 2, 3)
FOLDERS = ("hmdb51_org", "videos")  # where copies of the data set have their class folders
SUBSETS = {"0": None, "1": "train", "2": "test"}


def class_names(root: str | Path, split: int, classes: Sequence[str] | None = None) -> list[str]:
    """The classes to learn, by name; position is label. Reads two folders' listings.

    Args:
        root: folder of the data set.
        split: 1, 2 or 3.
        classes: names to choose, in any order and case; default: all that have a folder.

    Raises:
        Refusal: a folder or list is missing, or a class is unknown or not on disk.
    """
    root = Path(root)
    listed = [file.name.removesuffix(_ending(split)) for file in _lists(root, split)]
    on_disk = set(reading.folders(root, _below(root)))
    if classes is None:
        return reading.chosen([name for name in listed if name in on_disk], None, str(root))
    names = reading.chosen(listed, classes, f"{root / LISTS}")
    for name in names:
        if name not in on_disk:
            raise Refusal(f"data.classes: {name!r} has no folder of videos in {root / _below(root)}.")
    return names


def read_split(root: str | Path, split: int, classes: Sequence[str] | None = None, validation: float = 0.1) -> pa.Table:
    """The listing of one split, class by class. Videos that are not on disk keep their row.

    Args:
        root: folder of the data set.
        split: 1, 2 or 3.
        classes: see ``class_names``.
        validation: share of each class's training films that is held out, 0 ≤ validation < 1.

    Raises:
        Refusal: a folder or list is missing, or a line is not as it should be.
    """
    import pyarrow as pa

    root = Path(root)
    names = class_names(root, split, classes)
    files = [file for file in _lists(root, split) if file.name.removesuffix(_ending(split)) in names]
    rows = [row for label, file in enumerate(files) for row in _rows(file, names[label], label)]
    if not rows:
        raise Refusal(f"{root / LISTS}: the lists of split {split} name no videos for these classes.")
    columns = [list(column) for column in zip(*rows, strict=True)]
    named = pa.table(columns, reading.named())
    return hold_out(reading.located(named, root, _below(root), files, by="path"), validation)


def _rows(file: Path, name: str, label: int) -> Iterator[tuple[str, list[int], str, str, int, int]]:
    seen: dict[str, int] = {}
    for number, line in reading.lines(file, f"put HMDB51's split files into {file.parent}"):
        match = re.fullmatch(r"([^/\\]+)\.\w+\s+([012])", line)
        if match is None or match[1].startswith("."):
            raise reading.at(file, number, f"expected '<name>.avi 1', 2 or 0, found {line!r}")
        if match[1] in seen:
            raise reading.at(file, number, f"{match[1]!r} has been listed before, in line {seen[match[1]]}")
        seen[match[1]] = number
        subset = SUBSETS[match[2]]
        if subset is not None:
            yield f"{name}/{match[1]}", [label], f"{name}/{_film(match[1], name)}", subset, label, number


def _film(stem: str, name: str) -> str:
    """``April_09_brush_hair_u_nm_np1_ba_goo_0`` → ``April_09``; any other stem is a group of its own."""
    match = re.fullmatch(rf"(.+)_{re.escape(name)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+", stem)
    return match[1] if match else stem


def _ending(split: int) -> str:
    if split not in SPLITS:
        raise Refusal(f"data.split is 1, 2 or 3, got {split!r}.")
    return f"_test_split{split}.txt"


def _lists(root: Path, split: int) -> list[Path]:
    """The split's files, by class name."""
    reading.require_folder(root, f"{LISTS}/ and the class folders")
    files = sorted((root / LISTS).glob(f"*{_ending(split)}"))
    if not files:
        raise Refusal(f"{root / LISTS}/<class>{_ending(split)}: there is no such file; put HMDB51's split files there.")
    return files


def _below(root: Path) -> str:
    return next((name for name in FOLDERS if (root / name).is_dir()), "")
