"""UCF101's folders and lists: which video belongs to which class, group and subset.

    <root>/UCF-101/<Class>/v_<Class>_gGG_cCC.avi      (or <root>/<Class>/…)
    <root>/ucfTrainTestlist/classInd.txt, trainlist01..03.txt, testlist01..03.txt

Soomro, Zamir, Shah: "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", CRCV-TR-12-01, 2012.
The clips of one group show the same scene and actor and are near-duplicates, so a group is never divided.

Three quirks of the real thing: lists end their lines in CRLF; test lists have no label column; a class is written
``HandstandPushups`` in one place and ``HandStandPushups`` in another. Names are therefore matched without regard to
case. Copies of the data set often hold re-encoded videos or a part of the classes, so videos are matched by stem, and
the videos of a list that are not there are counted and reported, unless ``missing="error"``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from kinoscope.data.lists import reading
from kinoscope.data.lists.listing import SUBSETS, SUFFIXES, Subset, VideoEntry
from kinoscope.errors import Refusal

LISTS = "ucfTrainTestlist"
SPLITS = (1, 2, 3)

log = logging.getLogger("kinoscope")


def class_names(root: str | Path, classes: Sequence[str] | None = None) -> list[str]:
    """The classes to learn, in the order and spelling of ``classInd.txt``; position is label.

    Reads ``classInd.txt`` and one directory listing, and opens no video.

    Args:
        root: folder of the data set.
        classes: names to choose, in any order and case; default: all that have a folder.

    Raises:
        Refusal: a folder or list is missing, or a class is unknown, not on disk or not listed.
    """
    listed = {name.lower(): name for name in _listed_classes(Path(root))}
    folders = _class_folders(Path(root))
    if classes is None:
        strangers = sorted(folders[key] for key in folders.keys() - listed.keys())
        if strangers:
            raise Refusal(
                f"{root}: the class folder {strangers[0]!r} is not in {LISTS}/classInd.txt"
                f"{reading.near(strangers[0], listed.values())}; rename it, remove it, or choose data.classes."
            )
        chosen = set(folders)
    else:
        if isinstance(classes, str):
            raise Refusal(f"data.classes must be a list of names, got the text {classes!r}.")
        chosen = {str(name).lower() for name in classes}
        for name in classes:
            if str(name).lower() not in listed:
                near = reading.near(str(name), listed.values())
                raise Refusal(f"data.classes: {str(name)!r} is not in {LISTS}/classInd.txt of {root}{near}.")
            if str(name).lower() not in folders:
                have = ", ".join(sorted(folders.values())[:8]) or "none"
                raise Refusal(f"data.classes: {str(name)!r} has no folder of videos in {root}; there are: {have}.")
    if not chosen:
        raise Refusal(
            f"{root}: not one class folder with videos; expected {root}/UCF-101/<Class>/v_<Class>_g01_c01.avi."
        )
    return [name for key, name in listed.items() if key in chosen]


def read_split(
    root: str | Path,
    split: int,
    classes: Sequence[str] | None = None,
    validation: float = 0.1,
    missing: Literal["count", "error"] = "count",
) -> list[VideoEntry]:
    """The videos of one split that are on disk: training, validation, test, each in the order of its list.

    Validation takes whole groups out of the training list: of every class about the share ``validation`` of its
    groups, spread evenly over them, at least one where a class has more than one, and never all.

    Args:
        root: folder of the data set.
        split: 1, 2 or 3.
        classes: see ``class_names``.
        validation: share of each class's training groups, 0 ≤ validation < 1.
        missing: a listed video of a chosen class that is not on disk is counted and logged, or an error.

    Raises:
        Refusal: a folder, list or class is missing, or a class has no training video.
    """
    root = Path(root)
    if not 0 <= validation < 1:
        raise Refusal(f"data.validation is a share of the training groups, 0 <= validation < 1, got {validation}.")
    names = class_names(root, classes)
    entries, absent = _present(root, split, names)
    if absent and missing == "error":
        more = f", nor are {len(absent) - 1} more" if len(absent) > 1 else ""
        raise Refusal(f"{root}: split {split} lists {absent[0]}, which is not there{more}.")
    for label in sorted(set(range(len(names))) - {entry.label for entry in entries if entry.subset == "train"}):
        raise Refusal(
            f"{root}: class {names[label]!r} has no training video of split {split}; leave it out of data.classes."
        )
    if absent:
        total = len(entries) + len(absent)
        log.warning("split %d names %d videos of these classes, %d are here.", split, total, len(entries))
    return _hold_out(entries, validation)


def fingerprint(root: str | Path, split: int, classes: Sequence[str] | None = None) -> str:
    """Identity of the data of one split: sha256 over its lists, as used, and every video's path and size in bytes.

    Files that the split does not use, line ends and the root's own path do not change it.
    """
    root = Path(root)
    names = class_names(root, classes)
    digest = hashlib.sha256("\n".join(names).encode())
    entries, _ = _present(root, split, names)
    for entry in sorted(entries, key=lambda entry: entry.path):
        size = (root / entry.path).stat().st_size
        digest.update(f"\n{entry.path}\t{entry.subset}\t{entry.label}\t{size}".encode())
    return digest.hexdigest()


def _present(root: Path, split: int, names: Sequence[str]) -> tuple[list[VideoEntry], list[str]]:
    """The listed videos of these classes that are on disk, and the listed paths that are not."""
    labels = {name.lower(): label for label, name in enumerate(names)}
    on_disk, leading_out = _videos(root, names)
    entries: list[VideoEntry] = []
    absent: list[str] = []
    subsets: list[Subset] = ["train", "test"]
    for subset in subsets:
        file = _list_file(root, split, subset)
        for line, folder, name in _listed_videos(root, file):
            if folder.lower() not in labels:
                continue
            path = on_disk[folder.lower()].get(Path(name).stem.lower())
            if path is None:
                absent.append(f"{folder}/{name}")
            elif path in leading_out:
                fault = f"{path} leads out of {root}, to {leading_out[path]}; put the video itself into data.root"
                raise reading.at(file, line, fault)
            else:
                label = labels[folder.lower()]
                entries.append(VideoEntry(path, label, f"{names[label]}_{_group(name)}", subset))
    return entries, absent


def _hold_out(entries: list[VideoEntry], validation: float) -> list[VideoEntry]:
    """Moves whole groups of each class's training videos to validation; no draws, so the same on every machine."""
    groups: dict[int, set[str]] = {}
    for entry in entries:
        if entry.subset == "train":
            groups.setdefault(entry.label, set()).add(entry.group)
    held: set[str] = set()
    for of_class in groups.values():
        ordered = sorted(of_class)
        count = min(max(1, round(validation * len(ordered))), len(ordered) - 1) if validation > 0 else 0
        held.update(ordered[(2 * k + 1) * len(ordered) // (2 * count)] for k in range(count))
    moved = [
        VideoEntry(entry.path, entry.label, entry.group, "validation")
        if entry.subset == "train" and entry.group in held
        else entry
        for entry in entries
    ]
    return sorted(moved, key=lambda entry: SUBSETS.index(entry.subset))


def _group(file: str) -> str:
    """``v_Archery_g07_c02.avi`` → ``g07``; a file without a group is a group of its own."""
    match = re.search(r"_(g\d+)_c\d+\.\w+$", file)
    return match[1] if match else Path(file).stem


def _list_file(root: Path, split: int, subset: str) -> Path:
    if split not in SPLITS:
        raise Refusal(f"data.split is 1, 2 or 3, got {split!r}.")
    return root / LISTS / f"{subset}list{split:02d}.txt"


def _listed_videos(root: Path, file: Path) -> Iterator[tuple[int, str, str]]:
    """Number, class and file of each line: training lists add a label, which the class gives anyway."""
    classes = _listed_classes(root)
    known = {name.lower() for name in classes}
    seen: dict[str, int] = {}
    for number, line in _read_lines(root, file):
        match = re.fullmatch(r"([^/\\]+)/([^/\\]+\.\w+)(?:\s+\d+)?", line)
        if match is None:
            raise reading.at(file, number, f"expected '<Class>/<file>', found {line!r}")
        if match[1].lower() not in known:
            raise reading.at(
                file, number, f"{match[1]!r} is not a class of classInd.txt{reading.near(match[1], classes)}"
            )
        path = f"{match[1]}/{match[2]}"
        if path in seen:
            raise reading.at(file, number, f"{path} has been listed before, in line {seen[path]}")
        seen[path] = number
        yield number, match[1], match[2]


def _listed_classes(root: Path) -> list[str]:
    """Class names in label order: lines ``1 ApplyEyeMakeup``."""
    file = root / LISTS / "classInd.txt"
    names: dict[int, str] = {}
    for number, line in _read_lines(root, file):
        match = re.fullmatch(r"(\d+)\s+([^\s/\\]+)", line)
        if match is None:
            raise reading.at(file, number, f"expected '1 ApplyEyeMakeup', found {line!r}")
        if int(match[1]) in names or match[2].lower() in {name.lower() for name in names.values()}:
            raise reading.at(file, number, f"{line!r} has been named before")
        names[int(match[1])] = match[2]
    return [names[number] for number in sorted(names)]


def _read_lines(root: Path, file: Path) -> list[tuple[int, str]]:
    reading.require_folder(root, "UCF-101/")
    return reading.lines(file, f"put UCF101's lists into {file.parent}")


def _videos_folder(root: Path) -> str:
    """Relative to the root."""
    reading.require_folder(root, "UCF-101/")
    return "UCF-101" if "UCF-101" in reading.folders(root) else ""


def _class_folders(root: Path) -> dict[str, str]:
    """Folder names that may be classes, by their lower-case form."""
    names = reading.folders(root, _videos_folder(root))
    return {name.lower(): name for name in names if name != LISTS}


def _videos(root: Path, names: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """From one listing per class: lower-case class → lower-case stem → path relative to the root; and links.

    The links are those that lead out of the root, with where they lead.
    """
    folders = _class_folders(root)
    found: dict[str, dict[str, str]] = {}
    leading_out: dict[str, str] = {}
    for name in names:
        directory = root / _videos_folder(root) / folders[name.lower()]
        relative = directory.relative_to(root).as_posix()
        with os.scandir(directory) as listing:
            videos = [entry for entry in listing if Path(entry.name).suffix.lower() in SUFFIXES]
        # Where one video lies there in two containers, the first of SUFFIXES counts: it is written last.
        videos.sort(key=lambda entry: SUFFIXES.index(Path(entry.name).suffix.lower()), reverse=True)
        found[name.lower()] = {Path(entry.name).stem.lower(): f"{relative}/{entry.name}" for entry in videos}
        for entry in videos:
            if entry.is_symlink() and (target := reading.leads_to(Path(entry), root)):
                leading_out[f"{relative}/{entry.name}"] = target
    return found, leading_out
