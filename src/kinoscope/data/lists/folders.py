"""Any folder of class folders.

    <root>/<class>/…/<name>.mp4                     a keyed share of each class is the test
    <root>/train/<class>/…, test/…, val/…           or the folders say it

The folder's name is the class. Where folders say what is for training, those for the test do too; with `val` and no
`test`, `val` is the test. Nothing is known of near-duplicates, so every video is a group of its own: put cuttings of
one recording into one of train/ and test/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinoscope.data.lists import reading
from kinoscope.data.lists.listing import Subset, counts, hold_out, kernels, schema, with_all_subsets
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

SUBSETS: dict[str, Subset] = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip


def class_names(root: str | Path, classes: Sequence[str] | None = None) -> list[str]:
    """The class folders, by name; position is label. Reads a few folders' listings.

    Args:
        root: folder of the data set.
        classes: names to choose, in any order and case; default: all.

    Raises:
        Refusal: a folder is missing, a class is unknown, or one is in the test and not in training.
    """
    root = Path(root)
    subsets = _subsets(root)
    names = reading.folders(root, _training(subsets))
    for folder, subset in subsets.items():
        strangers = sorted(set(reading.folders(root, folder)) - set(names))
        if subset != "train" and strangers:
            near = reading.near(strangers[0], names)
            raise Refusal(f"{root / folder / strangers[0]}: there is no such class in {root / 'train'}{near}.")
    return reading.chosen(names, classes, str(root / _training(subsets)))


def read(
    root: str | Path, classes: Sequence[str] | None = None, test: float = 0.2, validation: float = 0.1
) -> pa.Table:
    """The listing, class by class, by path.

    Args:
        root: folder of the data set.
        classes: see ``class_names``.
        test: share of each class's videos that is the test, where no folder says it.
        validation: share of each class's training videos that is held out, where no folder says it.

    Raises:
        Refusal: a folder is missing, a class has no training video, or one leads out of ``root``.
    """
    import pyarrow as pa

    if not 0 < test < 1:
        raise Refusal(f"data.test is a share of each class's videos, 0 < test < 1, got {test}.")
    root = Path(root)
    names = class_names(root, classes)
    subsets = _subsets(root)
    parts: list[pa.Table] = []
    for folder, subset in (subsets or {"": "train"}).items():
        for label, name in enumerate(names):
            if not (root / folder / name).is_dir():
                continue
            part = _videos(root, f"{folder}/{name}".lstrip("/"), label, subset)
            if subset == "train" and not len(part):
                raise Refusal(f"{root / folder / name}: there is not one video for training.")
            parts.append(part)
    table = pa.concat_tables(parts)
    return with_all_subsets(hold_out(table, test, "test") if len(counts(table)) == 1 else table, validation)


def _videos(root: Path, below: str, label: int, subset: str) -> pa.Table:
    import pyarrow as pa

    pc = kernels()
    found = reading.videos(root, below).sort_by("path")
    row = pc.index(pc.not_equal(found["target"], ""), True).as_py()
    if row >= 0:
        path, target = (found[name][row].as_py() for name in ("path", "target"))
        raise Refusal(f"{root / path} leads out of {root}, to {target}; put the video itself into data.root.")
    labels = pa.ListArray.from_arrays(
        pa.array(range(len(found) + 1), pa.int32()), pa.repeat(pa.scalar(label, pa.int32()), len(found))
    )
    group = pc.replace_substring_regex(found["path"], r"\.\w+$", "")
    return pa.table([found["path"], labels, group, pa.repeat(subset, len(found))], schema=schema())


def _subsets(root: Path) -> dict[str, Subset]:
    """The folders that are named as subsets, the one for training first; none where class folders come first."""
    reading.require_folder(root, "the class folders")
    names = reading.folders(root)
    found: dict[str, Subset] = {name: SUBSETS[name.lower()] for name in names if name.lower() in SUBSETS}
    if not found:
        return {}
    if "train" not in found.values():
        raise Refusal(f"{root} has a folder {next(iter(found))!r}, but none is named 'train'.")
    if strangers := sorted(set(names) - found.keys()):
        raise Refusal(f"{root} has folders for training and test, and beside them {strangers[0]!r}; move it elsewhere.")
    order = sorted(found, key=lambda name: found[name] != "train")
    return {name: found[name] for name in order}


def _training(subsets: dict[str, Subset]) -> str:
    return next(iter(subsets), "")
