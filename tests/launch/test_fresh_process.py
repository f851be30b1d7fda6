"""``-m``: each job a process of its own, ended with the sweep; a table of what became of them.

The verb in the jobs is a fake that does what its ``card`` says, so that no test here trains or imports torch.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeping import is_alive, wait_for

# Python imports sitecustomize at start: here it puts a fake in the place of the verb.
FAKE_VERB = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from types import ModuleType

def run(config, overrides):
    do, number = config.card.do, config.seed
    folder = Path(config.output_dir) / config.name / f"run-{number}"
    folder.mkdir(parents=True)
    (folder / "process.json").write_text(json.dumps({
        "pid": os.getpid(), "group": os.getpgid(0), "argv": sys.argv, "overrides": list(overrides),
        "wandb_group": os.environ["WANDB_RUN_GROUP"], "lr": config.model.lr,
    }))
    summary = {"status": "running", "seconds": 1.5, "monitor": "val/loss", "best": {}, "test": {}}
    print("chatter on stdout")
    if do == "sleep":
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child").write_text(str(child.pid))  # from now on it may be stopped
        while not stopped:
            time.sleep(0.02)
        print(folder)
        return 75
    if do == f"kill {number}":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == f"fail {number}":
        (folder / "summary.json").write_text(json.dumps(summary))
        print(folder)
        return 1
    summary |= {"status": "finished", "best": {"val/loss": number / 10, "step": 7}, "test": {"test/accuracy": 0.5}}
    (folder / "summary.json").write_text(json.dumps(summary))
    print(folder)
    return 0

fake = ModuleType("kinoscope.verbs.train")
fake.run = run
sys.modules[fake.__name__] = fake
"""

FILES = {
    "path/sitecustomize.py": FAKE_VERB,
    "path/toy.py": "class Thing:\n    def __init__(self, lr: float = 0.1) -> None: ...\n",
    "conf/data/thing.yaml": "_target_: toy.Thing\n",
    "conf/model/thing.yaml": "_target_: toy.Thing\nlr: 0.1\n",
    "conf/experiment/thing.yaml": """
# @package _global_
defaults: [override /data: thing, override /model: thing, override /callbacks: none, override /logger: none]
card: {do: nothing}
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder / "path"), *filter(None, sys.path)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.Popen(
        [sys.executable, "-m", "train", "-m", "--config-dir", str(folder / "conf"), "experiment=thing", *overrides],
        cwd=folder,
        env={**environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(folder: Path) -> list[dict[str, str]]:
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(folder: Path, number: int) -> dict[str, object]:
    import json

    return json.loads((folder / "outputs" / "thing" / f"run-{number}" / "process.json").read_text())


def test_a_sweep(folder: Path) -> None:
    """Two seeds, two learning rates, one job that fails and one that is killed: the rest is done all the same."""
    sweep = start(folder, "seed=1,2,3", "+model.lr=0.5", "card.do='fail 2'")
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, err
    assert out.splitlines() == [str(next((folder / "outputs" / "sweeps").iterdir()).relative_to(folder))]
    found = rows(folder)
    assert [row["seed"] for row in found] == ["1", "2", "3"]
    assert [row["status"] for row in found] == ["finished", "failed", "finished"]
    assert [row["exit_code"] for row in found] == ["0", "1", "0"]
    assert [row["best/val/loss"] for row in found] == ["0.1", "", "0.3"]
    assert [row["test/accuracy"] for row in found] == ["0.5", "", "0.5"]
    assert [row["model.lr"] for row in found] == ["0.5"] * 3
    assert [row["folder"] for row in found] == [f"outputs/thing/run-{n}" for n in (1, 2, 3)]
    assert {row["monitor"] for row in found} == {"val/loss"}
    # each job was a process and a group of its own, in single-run mode
    jobs = [read(folder, n) for n in (1, 2, 3)]
    assert len({job["pid"] for job in jobs}) == 3
    assert all(job["group"] == job["pid"] for job in jobs)
    assert all("-m" not in job["argv"] and "--multirun" not in job["argv"] for job in jobs)  # type: ignore[operator]
    assert {job["lr"] for job in jobs} == {0.5}
    assert {job["wandb_group"] for job in jobs} == {Path(out.strip()).name}
    # the table, and what the jobs said
    assert "chatter on stdout" in err
    assert [line.split()[:3] for line in err.splitlines()[-6:]] == [
        ["job", "seed", "status"],
        ["0", "1", "finished"],
        ["1", "2", "failed"],
        ["2", "3", "finished"],
        [],
        ["3", "jobs:", "2"],
    ]


def test_several_jobs_at_a_time(folder: Path) -> None:
    """What each says is told apart, and the rows are in the order of the jobs, whichever ended first."""
    sweep = start(folder, "seed=1,2,3", "monitor=val/loss", "sweep.n_jobs=3")
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert [row["seed"] for row in rows(folder)] == ["1", "2", "3"]
    assert {line.partition(" ")[0] for line in err.splitlines() if "chatter" in line} == {"[0]", "[1]", "[2]"}
    assert "best: val/loss = 0.1 in job 0, outputs/thing/run-1" in err
    assert (folder / out.strip() / "best.json").exists()
    assert not any("sweep.n_jobs" in " ".join(read(folder, n)["argv"]) for n in (1, 2, 3))  # type: ignore[arg-type]


def test_a_killed_job_is_a_failed_one(folder: Path) -> None:
    sweep = start(folder, "seed=1,2", "card.do='kill 1'")
    _, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, err
    assert [(row["status"], row["exit_code"]) for row in rows(folder)] == [("failed", "-9"), ("finished", "0")]


def test_a_fault_in_any_value_stops_the_sweep_before_it_begins(folder: Path) -> None:
    sweep = start(folder, "seed=1,two", "modell.lr=1")
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 2
    assert out == ""
    assert "seed is 'two', but must be int" in err
    assert "no key 'modell'" in err
    assert not (folder / "outputs").exists()


@pytest.fixture
def sleeping(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A sweep whose first job sleeps: the sweep, the job's process and a child of the job."""
    sweep = start(folder, "seed=1,2", "card.do=sleep")
    child = folder / "outputs" / "thing" / "run-1" / "child"
    deadline = time.monotonic() + 120
    while not (child.exists() and child.read_text()) and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sweep.poll() is None, sweep.communicate()
    yield sweep, int(str(read(folder, 1)["pid"])), int(child.read_text())
    sweep.kill()
    sweep.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_job_save_itself_and_leaves_nothing(
    folder: Path, sleeping: tuple[subprocess.Popen[str], int, int], number: signal.Signals
) -> None:
    sweep, job, child = sleeping
    assert is_alive(job)
    assert is_alive(child)
    sweep.send_signal(number)
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 75, err
    assert out.strip().startswith("outputs/sweeps/")
    (row,) = rows(folder)  # the second job was not begun
    assert (row["status"], row["exit_code"], row["folder"]) == ("interrupted", "75", "outputs/thing/run-1")
    assert not is_alive(job)
    wait_for(lambda: not is_alive(child))
