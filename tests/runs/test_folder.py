"""Run folders: made whole, claimed by one process, recognised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kinoscope.errors import Refusal
from kinoscope.runs.folder import RunFolder, write_json


def made(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "video/x", "0123abcd")
    run.config_file.write_text("seed: 0\n")
    run.write_summary(status="running", signature="0123abcd")
    return run


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    first, second = made(tmp_path), made(tmp_path)
    assert first.path != second.path
    assert first.path.parent == second.path.parent == tmp_path / "video/x"
    assert all(run.path.name.endswith("-0123abcd") for run in (first, second))


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is not a folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(Refusal, match=r"no config.yaml and no summary.json"):
        RunFolder.open(tmp_path)


def test_an_output_folder_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file where a folder should be")
    with pytest.raises(Refusal, match="no run folder can be made"):
        RunFolder.create(tmp_path / "outputs", "video/x", "0123abcd")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    run = made(tmp_path)
    program = (
        "import sys, time; from kinoscope.runs.folder import RunFolder; "
        f"run = RunFolder.open({str(run.path)!r}); run.lock(); print('locked', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "locked"
        assert run.is_live()
        with pytest.raises(Refusal, match="another process is working"):
            run.lock()
    finally:
        other.kill()
        other.communicate()
    assert not run.is_live()
    run.lock()
    run.unlock()


def test_the_summary_is_updated_field_by_field(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.write_summary(steps=7)
    assert run.read_summary() == {"status": "running", "signature": "0123abcd", "steps": 7}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_may_only_be_read_is_asked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    assert not run.is_live()
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind
    run.lock()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert RunFolder(tmp_path).is_live()
    run.unlock()
    assert not RunFolder(tmp_path).is_live()
    with pytest.raises(Refusal, match="cannot be worked in"):
        RunFolder(tmp_path).lock()
