"""Sports-1M's files: a YouTube address and its labels on each line, several labels for some videos.

    <root>/labels.txt                                     487 names; the first line is label 0
    <root>/original/train_partition.txt, test_partition.txt
    <root>/cross-validation/sports0..9_train.txt, sports0..9_test.txt
    <root>/videos/…/<id>.<any suffix of a video>          looked up by YouTube id, at any depth

Karpathy, Toderici, Shetty, Leung, Sukthankar, Fei-Fei: "Large-scale Video Classification with Convolutional Neural
Networks", CVPR 2014. A line is ``https://www.youtube.com/watch?v=UDqivjS-lpI 168,169``. The data set is a list of
1,133,158 addresses, so the lists are read inside Arrow; and many videos are gone, so those that are not there are
counted. In a fold of the cross-validation a video with several labels may be in training with one of them and in the
test with another: that is how the folds were published.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kinoscope.data.lists import reading
from kinoscope.data.lists.listing import hold_out, kernels
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

VIDEOS = "videos"
FOLDS = range(10)
LINE = r"^(?:https?://\S*[?&]v=|https?://youtu\.be/)?(?P<name>[\w-]+)(?:&\S*)?\s+(?P<labels>\d{1,6}(?:,\d{1,6})*)$"

log = logging.getLogger("kinoscope")


def class_names(root: str | Path) -> list[str]:
    """The lines of ``labels.txt``; position is label.

    Raises:
        Refusal: it is missing, empty, or names a class twice.
    """
    reading.require_folder(Path(root), f"labels.txt, original/ and {VIDEOS}/")
    file = Path(root) / "labels.txt"
    names: dict[str, int] = {}
    for number, name in reading.lines(file, "it comes with the lists of Sports-1M"):
        if number != len(names) + 1:
            raise reading.at(file, number - 1, "is empty, and every line is a class")
        if name in names:
            raise reading.at(file, number, f"the class {name!r} has been named before, in line {names[name]}")
        names[name] = number
    if not names:
        raise Refusal(f"{file}: names no classes.")
    return list(names)


def read(root: str | Path, fold: int | None = None, validation: float = 0.1) -> pa.Table:
    """The listing of the partition or of a fold: training, then test, each in the order of its list.

    Videos that are not on disk keep their row. Which videos are held out does not depend on what is there.

    Args:
        root: folder of the data set.
        fold: of the cross-validation, 0 to 9; None: the original partition.
        validation: share of the training videos of each class (a video's first) that is held out.

    Raises:
        Refusal: a list is missing or has a bad line, a video is listed twice, or its file leads out of ``root``.
    """
    import pyarrow as pa

    pc = kernels()
    root, classes = Path(root), len(class_names(root))
    files = _lists(root, fold)
    train, test = (_read(file, classes, number, subset) for number, (subset, file) in enumerate(files.items()))
    in_both = pc.is_in(test["name"], value_set=train["name"].combine_chunks())
    shared = pc.sum(in_both).as_py() or 0
    if shared and fold is None:
        row = pc.index(in_both, True).as_py()
        fault = f"{test['name'][row].as_py()} is in {files['train'].name} too"
        raise reading.at(files["test"], test["line"][row].as_py(), fault)
    if shared:
        log.info("fold %d has %d videos with several labels both in training and in the test.", fold, shared)
    named = pa.concat_tables([train, test])
    if not (root / VIDEOS).is_dir():
        raise Refusal(f"{root / VIDEOS}: there is no such folder; put the videos there, named <YouTube id>.<suffix>.")
    return hold_out(reading.located(named, root, VIDEOS, list(files.values())), validation)


def _lists(root: Path, fold: int | None) -> dict[str, Path]:
    if fold is None:
        files = {subset: root / "original" / f"{subset}_partition.txt" for subset in ("train", "test")}
    elif fold in FOLDS:
        files = {subset: root / "cross-validation" / f"sports{fold}_{subset}.txt" for subset in ("train", "test")}
    else:
        raise Refusal(f"data.fold is 0 to 9, or null for the original partition, got {fold!r}.")
    for file in files.values():
        if not file.is_file():
            packed = f"unpack it with gzip -d {file}.gz" if Path(f"{file}.gz").is_file() else "put the list there"
            raise Refusal(f"{file} is missing; {packed}.")
    return files


def _read(file: Path, classes: int, number: int, subset: str) -> pa.Table:
    """The rows of one list, see `reading.named`; nothing of it becomes Python objects."""
    import pyarrow as pa
    from pyarrow import csv

    pc = kernels()
    try:
        text = csv.read_csv(
            file,
            csv.ReadOptions(column_names=["text"]),
            csv.ParseOptions(delimiter="\x1f", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types={"text": pa.string()}, strings_can_be_null=False),
        )["text"]
    except pa.ArrowInvalid as error:
        raise Refusal(f"{file} cannot be read: {str(error).splitlines()[0]}.") from None
    text = pc.utf8_trim_whitespace(text).combine_chunks()
    parts = pc.extract_regex(text, LINE)
    row = pc.index(pc.and_(pc.is_null(parts), pc.not_equal(text, "")), True).as_py()
    if row >= 0:
        raise reading.at(file, row + 1, f"expected an address and labels like 168,169, found {text[row].as_py()!r}")
    line = pc.indices_nonzero(parts.is_valid())
    parts = parts.take(line)
    split = pc.split_pattern(pc.struct_field(parts, "labels"), ",")
    labels = pa.ListArray.from_arrays(split.offsets, split.values.cast(pa.int32()))
    unknown = pc.index(pc.greater_equal(labels.values, classes), True).as_py()
    if unknown >= 0:
        row = pc.list_parent_indices(labels)[unknown].as_py()
        fault = f"the label {labels.values[unknown].as_py()} is none of the {classes} of labels.txt, counted from 0"
        raise reading.at(file, line[row].as_py() + 1, fault)
    names = pc.struct_field(parts, "name")
    if again := reading.repeated(names):
        second, first = (line[row].as_py() + 1 for row in again)
        raise reading.at(file, second, f"{names[again[0]].as_py()} has been listed before, in line {first}")
    count = len(names)
    columns = [names, labels, names, pa.repeat(subset, count), pa.repeat(pa.scalar(number, pa.int32()), count),
               pc.add(line, 1).cast(pa.int32())]  # fmt: skip
    return pa.table(columns, schema=reading.named())
