"""What all layouts share: lines of a list with their numbers, names near to a wrong one, videos below a folder.

A list file, an archive or a link may come from anywhere, so nothing here leads out of the data set's root: a name that
would is refused, with the line it stands in.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kinoscope.data.lists.listing import CHUNK, SUFFIXES, kernels, schema
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa


def lines(file: Path, cure: str) -> list[tuple[int, str]]:
    """Number and text of a small list's lines, without their ends (LF or CRLF) and without empty ones.

    Args:
        file: the list.
        cure: what to do if it is missing, a clause.

    Raises:
        Refusal: it is missing or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise Refusal(f"{file} is missing; {cure}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} cannot be read: {error}.") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def at(file: Path, line: int, fault: str) -> Refusal:
    """A fault of one line of a list."""
    return Refusal(f"{file}, line {line}: {fault}.")


def near(name: str, names: Iterable[str]) -> str:
    """`` (did you mean …?)`` where a known name is close, case aside; else nothing."""
    by_key = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_key, n=1)
    return f" (did you mean {by_key[close[0]]!r}?)" if close else ""


def chosen(names: Sequence[str], classes: Sequence[str] | None, where: str) -> list[str]:
    """The ``names`` that are in ``classes``, in their own order and spelling; all of them for None.

    Args:
        names: the known classes.
        classes: those to choose, in any order and case.
        where: what lists the known ones, for the sentence.

    Raises:
        Refusal: a class is not known, or none is chosen.
    """
    if isinstance(classes, str):
        raise Refusal(f"data.classes must be a list of names, got the text {classes!r}.")
    known = {name.lower() for name in names}
    for name in classes or ():
        if str(name).lower() not in known:
            raise Refusal(f"data.classes: {str(name)!r} is not a class of {where}{near(str(name), names)}.")
    wanted = known if classes is None else {str(name).lower() for name in classes}
    if not wanted:
        raise Refusal(f"{where}: there is not one class to learn.")
    return [name for name in names if name.lower() in wanted]


def require_folder(root: Path, holds: str) -> None:
    """Refuses a root that is not there; ``holds`` says what would be in it."""
    if not root.is_dir():
        raise Refusal(f"data.root: there is no folder {str(root)!r}; point data.root at the folder that holds {holds}.")


def leads_to(path: Path, root: Path) -> str:
    """Where a link leads if that is outside of ``root``, else nothing."""
    target = path.resolve()
    return "" if target.is_relative_to(root.resolve()) else str(target)


def folders(root: Path, below: str = "") -> list[str]:
    """Names of the folders in ``root``/``below``, sorted, without those that begin with a dot or an underscore.

    Raises:
        Refusal: one is a link that leads out of ``root``.
    """
    with os.scandir(root / below) as entries:
        found = [entry for entry in entries if not entry.name.startswith((".", "_")) and entry.is_dir()]
    for entry in found:
        _require_inside(entry, root)
    return sorted(entry.name for entry in found)


def videos(root: Path, below: str = "") -> pa.Table:
    """Every video at any depth below ``root``/``below``, in no order, from one look at each folder.

    Returns:
        ``path`` relative to ``root``, and ``target``, where a file is a link that leads out of ``root``, else empty.

    Raises:
        Refusal: a folder cannot be read, or is a link that leads out of ``root``.
    """
    import pyarrow as pa

    columns = pa.schema([("path", pa.string()), ("target", pa.string())])
    found = _walk(root, below)
    batches: list[pa.RecordBatch] = []
    while rows := list(islice(found, CHUNK)):  # a million names at once would be a gigabyte of objects
        batches.append(pa.record_batch([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], columns))
    return pa.Table.from_batches(batches, columns)


def _walk(root: Path, below: str) -> Iterator[tuple[str, str]]:
    waiting = [below]
    while waiting:
        folder = waiting.pop()
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        _require_inside(entry, root)
                        if not entry.is_symlink():  # what is inside anyway is found there
                            waiting.append(prefix + entry.name)
                    elif entry.name.lower().endswith(SUFFIXES):
                        _require_text(entry)
                        yield prefix + entry.name, leads_to(Path(entry), root) if entry.is_symlink() else ""
        except OSError as error:
            raise Refusal(f"{root / folder} cannot be read: {error.strerror}.") from None


def _require_inside(entry: os.DirEntry[str], root: Path) -> None:
    if entry.is_symlink() and (target := leads_to(Path(entry), root)):
        raise Refusal(
            f"{entry.path} is a link that leads out of {root}, to {target}; everything a data set has must lie in "
            "data.root."
        )


def _require_text(entry: os.DirEntry[str]) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise Refusal(f"{entry.path!a}: the name is not valid UTF-8; rename the file.") from None


def named() -> pa.Schema:
    """The columns of `located`'s first argument."""
    import pyarrow as pa

    return pa.schema([("name", pa.string()), *(field for field in schema() if field.name != "path"),
                      ("file", pa.int32()), ("line", pa.int32())])  # fmt: skip


def located(
    named: pa.Table, root: Path, below: str, files: Sequence[Path], by: Literal["stem", "path"] = "stem"
) -> pa.Table:
    """Finds the video of each name that a list gives.

    A video that is not there keeps its row, with the path it would have but for its suffix: the manifest then says
    that it is missing.

    Args:
        named: ``name``, ``labels``, ``group``, ``subset``, and where it stands: ``file`` (of ``files``) and ``line``.
        root: the data set's folder.
        below: the folder of its videos, relative to ``root``.
        files: the lists.
        by: whether a name is a file's stem, in whatever folder it lies, or its whole path below without suffix.

    Raises:
        Refusal: a name belongs to a link that leads out of ``root``.
    """
    import pyarrow as pa

    pc = kernels()
    found = videos(root, below)
    prefix = f"{below}/" if below else ""
    keys = pc.replace_substring_regex(pc.utf8_slice_codeunits(found["path"], len(prefix)), r"\.\w+$", "")
    keys = _flat(pc.replace_substring_regex(keys, r"^.*/", "") if by == "stem" else keys)
    if pc.count_distinct(keys).as_py() < len(keys):
        # Where one video lies there in two containers, the first of SUFFIXES counts, then the first by name.
        order = _by_suffix(found["path"])
        found, keys = found.take(order), keys.take(order)
    place = pc.index_in(_flat(named["name"]), value_set=keys)
    row = pc.index(pc.not_equal(found["target"].take(place), ""), True).as_py()
    if row >= 0:
        path, target = (found[name][place[row].as_py()].as_py() for name in ("path", "target"))
        raise at(
            files[named["file"][row].as_py()], named["line"][row].as_py(),
            f"{path} leads out of {root}, to {target}; put the video itself into data.root",
        )  # fmt: skip
    absent = pc.binary_join_element_wise(prefix, named["name"], "")
    path = pc.coalesce(found["path"].take(place), absent)
    columns = [path, *(named[name] for name in ("labels", "group", "subset"))]
    return pa.table(columns, schema=schema())


def _by_suffix(paths: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    pc = kernels()
    suffixes = pc.utf8_lower(pc.struct_field(pc.extract_regex(paths, r"(?P<suffix>\.\w+)$"), "suffix"))
    rank = pc.index_in(suffixes, value_set=pa.array(SUFFIXES))
    return pc.sort_indices(pa.table({"rank": rank, "path": paths}), [("rank", "ascending"), ("path", "ascending")])


def repeated(names: pa.ChunkedArray) -> tuple[int, int] | None:
    """Rows of the first name that has occurred before, and of where it did."""
    import numpy as np

    pc = kernels()
    flat = _flat(names)
    first = pc.index_in(flat, value_set=flat).to_numpy()
    again = np.flatnonzero(first != np.arange(len(first)))
    return (int(again[0]), int(first[again[0]])) if len(again) else None


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
