"""Where a run came from: the code with what was changed in it, the command, the machine, the seed and the data."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from kinoscope.runs import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.py").write_text("width = 1\n")
    (tmp_path / ".gitignore").write_text("outputs/\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    state = provenance.git_state(checkout / "package")
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert state == {"commit": head.stdout.strip(), "dirty": False, "diff": "", "untracked": []}


def test_changes_are_kept_and_new_files_are_named(checkout: Path) -> None:
    """Staged and unstaged changes anywhere in the checkout; a run's own outputs are ignored by git, and here."""
    (checkout / "package" / "model.py").write_text("width = 2\n")
    (checkout / "added.py").write_text("")
    subprocess.run(["git", "-C", str(checkout), "add", "added.py"], check=True)
    (checkout / "mine.py").write_text("secret = 1\n")
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "run.py").write_text("")
    state = provenance.git_state(checkout / "package")
    assert state is not None
    assert state["dirty"]
    assert "-width = 1\n+width = 2" in state["diff"]
    assert "added.py" in state["diff"]
    assert state["untracked"] == ["mine.py"]
    assert "secret" not in json.dumps(state)


def test_a_new_file_alone_makes_it_dirty(checkout: Path) -> None:
    (checkout / "mine.py").write_text("")
    state = provenance.git_state(checkout / "package")
    assert state is not None
    assert (state["dirty"], state["diff"]) == (True, "")


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) is None


def test_what_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "experiment=gan/dcgan_small", "card={a: 'b c'}"])
    origin = {"folder": "outputs/x", "sha256": "0"}
    found = provenance.collect(7, "abc", origin)
    assert found["command"] == "train experiment=gan/dcgan_small 'card={a: '\"'\"'b c'\"'\"'}'"
    assert (found["seed"], found["data_hash"], found["init_from"]) == (7, "abc", origin)
    assert found["working_directory"] == str(Path.cwd())
    assert found["host"]["name"] == socket.gethostname()
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert json.loads(json.dumps(found)) == found
