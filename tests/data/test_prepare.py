"""Preparing: one pass over each video for all that is kept of it, and nothing lost or half-written by any kill."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
from filelock import FileLock

from kinoscope.data import children, measure, motion, prepare
from kinoscope.data.children import in_children
from kinoscope.data.datasets import UCF101
from kinoscope.data.keeping import INDEX_SCHEMA, is_kept, kept_file, read_index
from kinoscope.data.manifest import MEASURED, Manifest
from kinoscope.data.motion import MotionParameters
from kinoscope.data.tables import Journal
from kinoscope.data.tally import in_bytes, tally
from kinoscope.errors import Interrupted, KinoscopeError, Refusal

LENGTHS = (5, 24, 31)
KINDS = ("raw", "jpeg")
TIMEOUT = 240  # seconds, which nothing here takes


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos of 32 × 48 pixels, and one that is words."""
    root = tmp_path_factory.mktemp("originals")
    noise = np.random.default_rng(0).integers(0, 255, (max(LENGTHS), 32, 48, 3), dtype=np.uint8)
    for length in LENGTHS:
        (root / f"{length}.avi").write_bytes(motion.encode(noise[:length], 25))
    (root / "text.avi").write_text("these are words\n" * 300)
    return root


@pytest.fixture
def root(originals: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(originals, tmp_path / "root"))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the children of this process note what they open and decode."""
    monkeypatch.setenv("PYTHONPATH", str(preparing.WATCHED))
    monkeypatch.setenv("KINOSCOPE_TEST_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@contextlib.contextmanager
def started(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = preparing.start(*arguments, environment=environment)  # type: ignore[arg-type]
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def decoded(log: Path) -> Counter[str]:
    """How often each video was decoded from its start; the log begins anew."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return Counter(line.removeprefix("decode ") for line in lines if line.startswith("decode "))


def content(data: Path) -> dict[str, bytes]:
    """All files but locks, by their path below the folder; caches are called by their kind alone."""
    files = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(".lock")}


@pytest.fixture(scope="module")
def undisturbed(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a call leaves that nobody disturbs."""
    data = tmp_path_factory.mktemp("undisturbed")
    preparing.build(originals, data, *KINDS)
    found = content(data)
    assert sorted(name.rpartition("/")[2] for name in found) == sorted(
        ["m.arrow", *["index.arrow"] * 2, *[f"{n}.avi{suffix}" for n in LENGTHS for suffix in suffixes(data)]]
    )
    return found


def suffixes(data: Path) -> list[str]:
    return [keeper.suffix for keeper in preparing.keepers(data, data, *KINDS)]


def test_one_pass_feeds_the_manifest_and_all_that_is_kept(root: Path, log: Path, tmp_path: Path) -> None:
    names = Counter(f"{length}.avi" for length in LENGTHS)
    preparing.build(root, tmp_path / "plain")
    opened_alone = log.read_text().count("open ")
    assert decoded(log) == names
    manifest = preparing.build(root, tmp_path / "data", *KINDS)
    # Keeping opens nothing more; the headers of a few were read to see whether all of it fits on the disk.
    assert log.read_text().count("open ") == opened_alone + 4
    assert decoded(log) == names
    for keeper in preparing.keepers(root, tmp_path / "data", *KINDS):
        assert is_kept(keeper.folder, manifest).tolist() == manifest.good().tolist() == [True, True, True, False]
        index = read_index(keeper.folder)
        assert index.column("path").to_pylist() == ["24.avi", "31.avi", "5.avi"]
        sizes = [kept_file(keeper, path).stat().st_size for path in index.column("path").to_pylist()]
        assert index.column("kept").to_pylist() == sizes
    assert manifest.column("frames").tolist() == [24, 31, 5, 0]


def test_a_second_call_does_only_what_is_missing(root: Path, log: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    preparing.build(root, data)
    decoded(log)
    preparing.build(root, data, "raw")  # the manifest is valid, the cache is missing
    assert decoded(log) == Counter(f"{length}.avi" for length in LENGTHS)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    preparing.build(root, data, "raw")
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    (raw,) = preparing.keepers(root, data, "raw")
    kept_file(raw, "5.avi").unlink()
    preparing.build(root, data, "raw", "jpeg")
    assert decoded(log) == Counter(f"{length}.avi" for length in LENGTHS)  # all for jpeg, one of them for raw too
    kept_file(raw, "24.avi").write_bytes(b"cut off")
    preparing.build(root, data, "raw", "jpeg")
    assert decoded(log) == Counter(["24.avi"])
    (root / "new.avi").write_bytes((root / "5.avi").read_bytes())
    preparing.build(root, data, "raw")
    assert decoded(log) == Counter(["new.avi"])


def test_a_changed_file_is_noticed(root: Path, log: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = preparing.build(root, data, "raw")
    (raw,) = preparing.keepers(root, data, "raw")
    kept = {length: kept_file(raw, f"{length}.avi").read_bytes() for length in LENGTHS}
    decoded(log)

    os.utime(root / "24.avi", ns=(1, 1))  # another time, the same content
    touched = preparing.build(root, data, "raw")
    assert decoded(log) == Counter()
    assert touched.column("modified")[0] == 1
    assert [touched.column(name)[0] for name in ("sha", "frames")] == [
        first.column(name)[0] for name in ("sha", "frames")
    ]
    assert is_kept(raw.folder, touched).tolist() == [True, True, True, False]

    modified = (root / "5.avi").stat().st_mtime_ns
    (root / "5.avi").write_bytes((root / "31.avi").read_bytes())
    os.utime(root / "5.avi", ns=(modified, modified))  # another content, the same time
    changed = preparing.build(root, data, "raw")
    assert decoded(log) == Counter(["5.avi"])
    assert changed.column("frames").tolist() == [24, 31, 31, 0]
    assert kept_file(raw, "5.avi").read_bytes() == kept[31] != kept[5]
    assert kept_file(raw, "24.avi").read_bytes() == kept[24]
    assert is_kept(raw.folder, changed).tolist() == [True, True, True, False]
    assert is_kept(raw.folder, first).tolist() == [True, True, False, False]  # whoever holds the old manifest is told

    (root / "5.avi").write_text("words")  # and a good file may turn bad, and back
    assert preparing.build(root, data, "raw").good().tolist() == [True, True, False, False]
    shutil.copy2(root / "31.avi", root / "5.avi")
    assert is_kept(raw.folder, preparing.build(root, data, "raw")).tolist() == [True, True, True, False]
    decoded(log)
    (root / "5.avi").rename(tmp_path / "5.avi")
    gone = prepare.build(root, _listing_of(first), first.file, progress=False, keepers=[raw])
    assert gone.error(2) == "5.avi: there is no such file."
    assert gone.missing().tolist() == [False, False, True, False]
    assert decoded(log) == Counter()


def _listing_of(manifest: Manifest):
    import pyarrow as pa

    names = ["path", "labels", "group", "subset"]
    return pa.table([manifest.arrow(name) for name in names], names)


def test_a_file_that_changes_while_it_is_read_is_not_taken(root: Path, tmp_path: Path) -> None:
    path = root / "24.avi"
    status = path.stat()
    (tmp_path / ".partial").mkdir()
    jobs = [({**preparing.keepers(root, tmp_path, "raw")[0].parameters()}, str(tmp_path / ".partial" / "x.raw"), "")]
    found, (kept,) = measure.measure(str(path), "pyav", status.st_size, status.st_mtime_ns, "", jobs)
    assert found is not None
    assert found["error"] == ""
    assert kept is not None
    found, (kept,) = measure.measure(str(path), "pyav", status.st_size - 1, status.st_mtime_ns, "", jobs)
    assert found is not None
    assert found["error"] == f"{path}: changed while it was being read."
    assert found["sha"] == ""  # so that it is read again
    assert kept is None


def _killed_and_finished(root: Path, data: Path, expected: dict[str, bytes], who: str, number: int) -> bool:
    """Kills one process at its n-th touch of the data; True if it got that far. Then a second call, undisturbed."""
    data.parent.mkdir(exist_ok=True)
    marker = data.parent / f"{who}-{number}"
    with started(
        root, data, *KINDS, KINOSCOPE_TEST_KILL=f"{who}:{number}", KINOSCOPE_TEST_KILLED=str(marker)
    ) as process:
        assert process.wait(TIMEOUT) == (-signal.SIGKILL if who == "parent" and marker.exists() else 0)
    if who == "parent" and marker.exists():
        _only_whole_files(root, data)
        preparing.build(root, data, *KINDS)
    assert content(data) == expected, (who, number)
    return marker.exists()


def _only_whole_files(root: Path, data: Path) -> None:
    """What can be read after a kill is right, as far as it goes."""
    try:
        manifest = Manifest.open(data / "manifests" / "m.arrow")
    except KinoscopeError as error:
        assert "there is no manifest" in str(error)
    else:
        assert manifest.column("frames").tolist() == [24, 31, 5, 0]
    for keeper in preparing.keepers(root, data, *KINDS):
        for row in read_index(keeper.folder).to_pylist():
            assert kept_file(keeper, row["path"]).stat().st_size == row["kept"]


@pytest.fixture
def same_place(originals: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> Path:
    """The folder that holds the videos: a cache's name depends on it, so kills and their reference share it."""
    return originals


@pytest.mark.parametrize("number", [2, 9, 18, 27, 36, 45])
def test_a_kill_of_the_parent_loses_nothing(
    number: int, same_place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    assert _killed_and_finished(same_place, tmp_path / "data", undisturbed, "parent", number)


@pytest.mark.slow
def test_a_kill_of_the_parent_anywhere_loses_nothing(
    same_place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    number = 1
    while _killed_and_finished(same_place, tmp_path / str(number) / "data", undisturbed, "parent", number):
        number += 1
    assert number > 45


@pytest.mark.parametrize("number", [2, 9, 14])
def test_a_killed_child_is_replaced(
    number: int, same_place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    assert _killed_and_finished(same_place, tmp_path / "data", undisturbed, "child", number)


@pytest.mark.parametrize("turn", range(2))
def test_a_kill_at_any_moment_loses_nothing(
    turn: int, same_place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Of the whole group at once, as by a machine that goes down."""
    with started(same_place, tmp_path / "data", *KINDS) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.Random(turn).uniform(0.2, 1.5))
        with contextlib.suppress(ProcessLookupError):  # it may have been done by then
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(TIMEOUT)
    _only_whole_files(same_place, tmp_path / "data")
    preparing.build(same_place, tmp_path / "data", *KINDS)
    assert content(tmp_path / "data") == undisturbed


def test_what_was_done_before_a_kill_is_not_done_again(root: Path, log: Path, tmp_path: Path) -> None:
    for copy in range(20):
        shutil.copy(root / "31.avi", root / f"copy{copy:02d}.avi")
    killed = tmp_path / "killed"
    with started(
        root, tmp_path / "data", "raw", KINOSCOPE_TEST_KILL="parent:50", KINOSCOPE_TEST_KILLED=str(killed)
    ) as process:
        assert process.wait(TIMEOUT) == -signal.SIGKILL
    first = decoded(log)
    assert 4 < len(first) < 20
    preparing.build(root, tmp_path / "data", "raw")
    again = decoded(log)
    both = sum((first & again).values())
    assert len(first | again) == 23
    assert both <= 2 * 2  # those at which the two children were, or had just begun


def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Also one that hangs in native code and keeps Python's lock."""
    calls = f"in_children('preparing:hang_with_lock', [({str(tmp_path / 'begun')!r},)], 1)"
    code = f"from kinoscope.data.children import in_children; list({calls})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    try:
        _wait_for((tmp_path / "begun").exists)
        child = (tmp_path / "begun").read_text()
        assert _lives(child)
        process.kill()
        _wait_for(lambda: not _lives(child))
    finally:
        process.kill()
        process.wait()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_journal_survives_a_cut_at_any_byte(tmp_path: Path) -> None:
    rows = [{"path": f"é{k}.avi", "bytes": k, "modified": 0, "sha": "", "kept": k, "error": '"\n'} for k in range(4)]
    whole = Journal(tmp_path / "whole.arrow", INDEX_SCHEMA)
    for row in rows:
        whole.append(row)
    whole.close()
    lines = whole.file.read_bytes()
    ends = [0, *[at + 1 for at, byte in enumerate(lines) if byte == ord("\n")]]
    assert len(ends) == 5
    cut = Journal(tmp_path / "cut.arrow", INDEX_SCHEMA)
    for length in range(len(lines) + 1):
        cut.file.write_bytes(lines[:length])
        complete = sum(end <= length for end in ends) - 1
        assert cut.read().to_pylist() == rows[:complete][::-1]
        cut.append(rows[3])  # goes on behind what was whole
        assert cut.read().to_pylist() == [rows[3], *rows[:complete][::-1]]
        cut.remove()
    cut.file.write_bytes(lines + b"\0" * 50 + b"\n")  # what a power cut may leave
    assert cut.read().to_pylist() == []
    assert not cut


def test_two_calls_at_once_share_the_work(same_place: Path, log: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with started(same_place, data, *KINDS) as first, started(same_place, data, *KINDS) as second:
        said = [process.communicate(timeout=TIMEOUT)[1] for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], said
    assert decoded(log) == Counter(f"{length}.avi" for length in LENGTHS)


def test_a_second_call_waits_and_says_so(same_place: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    data = tmp_path / "data"
    (data / "manifests").mkdir(parents=True)
    with FileLock(data / "manifests" / ".m.arrow.lock"), started(same_place, data, *KINDS) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "another process prepares these data; waiting for it\n"
        assert not list(data.rglob("*.raw"))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    preparing.build(same_place, data, *KINDS)
    assert content(data) == undisturbed


def test_a_signal_is_an_interruption_that_can_be_resumed(root: Path, log: Path, tmp_path: Path) -> None:
    for copy in range(30):
        shutil.copy(root / "31.avi", root / f"copy{copy:02d}.avi")
    # At one video it waits for the signal.
    with started(root, tmp_path / "data", "raw", KINOSCOPE_TEST_PASSING="hold:copy20.avi") as process:
        _wait_for(lambda: log.exists() and log.read_text().count("decode ") > 5)
        process.terminate()
        said = process.communicate(timeout=TIMEOUT)[1]
        assert process.returncode == Interrupted.exit_code
        assert said.endswith("SIGTERM: what is prepared is kept; the same command goes on from there\n")
    first = decoded(log)
    preparing.build(root, tmp_path / "data", "raw")
    assert sum((first & decoded(log)).values()) <= 2 * 2
    assert not list((tmp_path / "data").rglob("*.partial"))


def test_what_cannot_fit_is_refused_before_any_work(
    root: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    keepers = preparing.keepers(root, data, *KINDS)
    known = sum(keeper.bytes_for(length, 32, 48) for keeper in keepers for length in LENGTHS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Refusal, match=r"^raw and jpeg: needs up to .* are free; free some space") as caught:
        preparing.build(root, data, *KINDS)
    assert "1.0 kB are free" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert decoded(log) == Counter()
    preparing.build(root, data)  # what is measured is predicted exactly
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage._replace(free=known - 1))
    with pytest.raises(Refusal, match=rf"needs up to {in_bytes(known)}"):
        preparing.build(root, data, *KINDS)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage._replace(free=known))
    manifest = preparing.build(root, data, *KINDS)
    for keeper in keepers:
        assert is_kept(keeper.folder, manifest).sum() == 3
    for length in LENGTHS:
        assert kept_file(keepers[0], f"{length}.avi").stat().st_size <= keepers[0].bytes_for(length, 32, 48)


def test_a_prediction_for_unknown_videos_is_near(root: Path, tmp_path: Path) -> None:
    keepers = preparing.keepers(root, tmp_path / "data", "raw")
    names = sorted(path.name for path in root.iterdir())
    listing = preparing.listing([preparing.VideoEntry(name, 0, name, "train") for name in names])
    work = prepare._Work(root, listing, tmp_path / "data" / "m.arrow", "pyav", keepers)
    state = work.look()
    predicted = prepare._predicted(work, state, 0, prepare._sample(work, state, 2, 60))
    needed = sum(keepers[0].bytes_for(length, 32, 48) for length in LENGTHS)
    assert 0.5 < predicted / needed < 2


def test_a_disk_that_fills_up_is_one_sentence_and_the_work_goes_on_later(
    same_place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """A file may not grow beyond a limit here: 24 frames fit, 31 do not."""
    data = tmp_path / "data"
    sizes = {name: len(held) for name, held in undisturbed.items() if name.endswith(".raw")}
    limit = max(sizes.values()) - 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(KinoscopeError, match=r"cannot be written: File too large") as caught:
            preparing.build(same_place, data, *KINDS, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    _only_whole_files(same_place, data)
    preparing.build(same_place, data, *KINDS)
    assert content(data) == undisturbed


def test_frames_of_which_nothing_can_be_kept_are_said_and_not_tried_again(
    root: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video stays usable without the cache."""
    monkeypatch.setenv("KINOSCOPE_TEST_UNKEEPABLE", "24.avi")
    data = tmp_path / "data"
    manifest = preparing.build(root, data, "raw")
    (raw,) = preparing.keepers(root, data, "raw")
    assert manifest.good().tolist() == [True, True, True, False]
    assert is_kept(raw.folder, manifest).tolist() == [False, True, True, False]
    lines = tally(manifest, [raw])
    assert any(line.split()[:3] == ["raw", "2", "1"] for line in lines)
    assert any("nothing can be kept: 24.avi" in line for line in lines)
    decoded(log)
    preparing.build(root, data, "raw")
    assert decoded(log) == Counter()


@pytest.mark.parametrize("fault", ["eio", "read", "keep"])
def test_a_fault_that_may_pass_is_tried_again(
    fault: str, root: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And real damage is not."""
    data = tmp_path / "data"
    if fault == "keep":
        preparing.build(root, data)
    (raw,) = preparing.keepers(root, data, "raw")
    monkeypatch.setenv("KINOSCOPE_TEST_PASSING", f"{fault}:24.avi")
    for _ in range(2):
        manifest = preparing.build(root, data, "raw")
        assert manifest.good().tolist() == [fault == "keep", True, True, False]
        assert is_kept(raw.folder, manifest).tolist() == [False, True, True, False]
        said = manifest.error(0) if fault != "keep" else read_index(raw.folder).column("error")[0].as_py()
        assert (
            said
            == {
                "eio": "24.avi: cannot be read: Input/output error.",
                "read": "24.avi: decoding it ended the process that worked on it (SIGABRT).",
                "keep": "24.avi: keeping it ended the process that worked on it (SIGABRT).",
            }[fault]
        )
    monkeypatch.delenv("KINOSCOPE_TEST_PASSING")
    log.unlink()
    manifest = preparing.build(root, data, "raw")
    assert decoded(log) == Counter(["24.avi"])
    assert is_kept(raw.folder, manifest).tolist() == manifest.good().tolist() == [True, True, True, False]
    preparing.build(root, data, "raw")
    assert not log.exists()


def test_a_file_that_changes_behind_the_call_is_said_and_read_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = prepare._Work.do

    def slow(*arguments: Any) -> None:
        do(*arguments)
        shutil.copy(root / "31.avi", root / "5.avi")

    with monkeypatch.context() as patched:
        patched.setattr(prepare._Work, "do", slow)
        manifest = preparing.build(root, tmp_path / "data", "raw")
    assert manifest.good().tolist() == [True, True, False, False]
    assert manifest.error(2) == "5.avi: changed while the data were prepared; run kinoscope prepare again."
    assert preparing.build(root, tmp_path / "data", "raw").column("frames").tolist() == [24, 31, 31, 0]


def test_no_choice_measures_what_another_has_measured(log: Path, tmp_path: Path) -> None:
    video = MotionParameters("local_motion", 0, 5, 2, 32, 12)
    motion.generate(tmp_path, video, progress=False)
    root = motion.folder(tmp_path, video)
    names = Counter(path.name for path in root.glob("UCF-101/*/*.avi"))

    def prepared(**changes: Any) -> Manifest:
        data = UCF101(str(root), **{"data_dir": str(tmp_path), "cache": "raw", "resize": 16, "size": 16, **changes})
        data.prepare_data()
        return Manifest.open(data.manifest_file)

    first = prepared()
    assert decoded(log) == names
    classes = sorted(path.name for path in root.glob("UCF-101/*"))[1:4]
    choices: list[dict[str, Any]] = [{"validation": 0.3}, {"split": 2}, {"classes": classes}, {"decoder": "decord"}]
    for changes in choices:
        other = prepared(**changes)
        assert decoded(log) == (names if "decoder" in changes else Counter())
        assert other.file != first.file
        position = [first.arrow("path").index(path).as_py() for path in other.arrow("path")]
        for name in ("frames", "key_frame_spacing", "bytes", "modified", "sha", "error"):
            assert other.arrow(name).equals(first.arrow(name).take(position)), name
    assert len({prepared(**changes).file for changes in choices}) == len(choices)  # in turns, as often as one likes
    assert prepared().file == first.file
    assert not log.exists()

    spoilt = root / first.path(0)  # what another choice knows of a file is taken only if it is the same file
    spoilt.write_bytes((root / first.path(1)).read_bytes() + b"\0")
    again = prepared(validation=0.2)
    assert decoded(log) == Counter([spoilt.name])
    assert again.column("bytes")[again.arrow("path").index(first.path(0)).as_py()] == spoilt.stat().st_size


def test_a_choice_may_be_kept_whose_videos_another_has_measured(
    root: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child that keeps them may crash: what was measured is that of the other manifest."""
    names = sorted(path.name for path in root.iterdir())
    listing = preparing.listing([preparing.VideoEntry(name, 0, name, "train") for name in names])
    first = prepare.build(root, listing, tmp_path / "m-1.arrow", progress=False)
    keepers = preparing.keepers(root, tmp_path, "raw")
    monkeypatch.setenv("KINOSCOPE_TEST_PASSING", "keep:31.avi")
    second = prepare.build(root, listing, tmp_path / "m-2.arrow", progress=False, keepers=keepers)
    for name in MEASURED.names:
        assert second.arrow(name).equals(first.arrow(name)), name
    assert is_kept(keepers[0].folder, second).tolist() == [True, False, True, False]


def test_what_was_measured_outlives_a_folder_that_is_away_for_a_while(root: Path, log: Path, tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    names = sorted(path.name for path in root.iterdir())
    listing = preparing.listing([preparing.VideoEntry(name, 0, name, "train") for name in names])

    def build() -> Manifest:
        keepers = preparing.keepers(root, data, "raw")
        return prepare.build(root, listing, data / "m.arrow", progress=False, workers=2, keepers=keepers)

    first = build()
    decoded(log)
    for _ in range(2):  # the second time nothing is to be written
        root.rename(away)
        for _ in range(2):
            gone = build()
            assert gone.missing().all()
            assert not gone.good().any()
            assert gone.error(3) == "text.avi: there is no such file."
            assert tally(gone)[4].split() == ["all", "4", "4", "0", "0", "0.00", "0", "B"]
        away.rename(root)
        back = build()
        assert set(decoded(log)) <= {"text.avi"}  # nothing is known of it: it was bad
        assert all(back.arrow(name).equals(first.arrow(name)) for name in MEASURED.names)
    root.rename(away)
    build()
    away.rename(root)
    (root / "5.avi").write_bytes((root / "24.avi").read_bytes())  # and what returns may be another file
    assert build().column("frames").tolist() == [24, 31, 24, 0]


def test_the_numbers_of_the_table_are_true(root: Path, tmp_path: Path) -> None:
    (root / "empty.avi").touch()
    (root / "empty2.avi").touch()
    names = ["5.avi", "24.avi", "gone.avi", "text.avi", "31.avi", "empty.avi", "empty2.avi"]
    subsets = ["train", "train", "train", "train", "test", "test", "test"]
    rows = [preparing.VideoEntry(name, 0, name, subset) for name, subset in zip(names, subsets, strict=True)]  # type: ignore[arg-type]
    keepers = preparing.keepers(root, tmp_path, *KINDS)
    built = prepare.build(
        root, preparing.listing(rows), tmp_path / "m.arrow", progress=False, workers=2, keepers=keepers
    )
    lines = tally(built, keepers)
    sizes = {name: (root / name).stat().st_size for name in names if name != "gone.avi"}
    train = in_bytes(sum(sizes[name] for name in ("5.avi", "24.avi", "text.avi")))
    hours = f"{29 / 25 / 3600:.2f}"
    assert lines[1].split() == ["train", "4", "1", "1", "29", hours, *train.split()]
    assert lines[2].split() == ["validation", "0", "0", "0", "0", "0.00", "0", "B"]
    assert lines[3].split() == ["test", "3", "0", "2", "31", "0.00", *in_bytes(sizes["31.avi"]).split()]
    assert lines[4].split()[:5] == ["all", "7", "1", "3", "60"]
    for keeper, line in zip(keepers, lines[7:9], strict=True):
        kept = sum(kept_file(keeper, f"{length}.avi").stat().st_size for length in LENGTHS)
        of_videos = sum(sizes[f"{length}.avi"] for length in LENGTHS)
        ratio = f"{kept / of_videos:.2f}"
        assert line.split()[1:] == ["3", "0", *in_bytes(kept).split(), ratio, str(keeper.folder)]
    reasons = [line.strip() for line in lines[11:]]
    assert reasons[0] == "2   the file is empty (# bytes): empty.avi, empty2.avi"
    assert reasons[1].startswith("1   is not a video, or is cut off before its index")
    assert reasons[1].endswith(": text.avi")
    assert len(reasons) == 2


def test_bytes_are_written_as_people_do() -> None:
    written = [in_bytes(size) for size in (0, 999, 1000, 999_949, 999_950, 1_500_000_000, 10**16)]
    assert written == ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 GB", "10000.0 TB"]


def test_a_long_list_of_missing_videos_costs_no_object_each_and_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    count = 100_000
    paths = pa.array([f"videos/{k:011d}.mp4" for k in range(count)])
    labels = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), pa.array([0] * count, pa.int32()))
    listing = pa.table([paths, labels, paths, pa.array(["train"] * count)], ["path", "labels", "group", "subset"])
    (tmp_path / "root" / "videos").mkdir(parents=True)
    monkeypatch.setattr(prepare, "in_children", None)
    tracemalloc.start()
    try:
        built = prepare.build(tmp_path / "root", listing, tmp_path / "m.arrow", progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / count < 70  # bytes; numbers in arrays take 47, the paths as a list would take 80 more
    assert built.missing().all()
    assert built.error(99_999) == "videos/00000099999.mp4: there is no such file."


def test_a_limit_of_time_counts_from_the_last_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sign ends the watch over the time before it, and begins one over the whole limit."""
    answer, limits, answers = children._Child._answer, [], []

    def answered(child: children._Child, time_limit: float) -> str:
        limits.append(time_limit)
        answers.append(answer(child, time_limit))
        return answers[-1]

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(children._Child, "_answer", answered)
    (outcome,) = in_children("preparing:beats", [(5,)], 1, time_limit=6000.0)
    assert outcome.value == 5
    assert limits == [6000.0] * 6
    assert answers[:5] == [children.SIGN] * 5
    _wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name.endswith("(_watch)")])


def test_modules_of_keepers_import_no_torch() -> None:
    code = (
        "import importlib, sys; from kinoscope.data import measure; from kinoscope.data.keeping import KEEPERS; "
        "[importlib.import_module(place.partition(':')[0]) for place in KEEPERS.values()]; "
        "sys.exit(bool({'torch', 'lightning', 'cv2'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=TIMEOUT).returncode == 0
