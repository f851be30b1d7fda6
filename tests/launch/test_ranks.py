"""Ranks of one node: one config, one voice, one end.

The verb in the ranks is a fake that does what its ``card`` says, so that no test here trains or imports torch. The
processes, their files and their signals are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig
from sweeping import is_alive, wait_for

from kinoscope.errors import Refusal
from kinoscope.launch import ranks

# Python imports sitecustomize at start: here it puts a fake in the place of the verb, sets the time that is left to
# ranks which lost another, and knows a resolver that gives each process another value.
FAKE_VERB = """
import atexit, json, os, signal, subprocess, sys, time
from pathlib import Path
from types import ModuleType

from omegaconf import OmegaConf

atexit.register(lambda: "torch" in sys.modules and Path("torch-was-imported").touch())

import kinoscope.launch.ranks
kinoscope.launch.ranks.GRACE = kinoscope.launch.ranks.ABORT = float(os.environ["PATIENCE"])
OmegaConf.register_new_resolver("process", os.getpid)

def run(config, overrides):
    from kinoscope.errors import Interrupted, KinoscopeError, Refusal
    from kinoscope.runs.folder import RunFolder, tell, write_text

    do, rank = config.card.do, int(os.environ["RANK"])
    here = Path.cwd()
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    job = Path(os.environ["KINOSCOPE_RANKS"]) / "job.yaml"
    (here / f"rank-{rank}.json").write_text(json.dumps({
        "config": OmegaConf.to_container(config), "overrides": overrides, "argv": sys.argv, "pid": os.getpid(),
        "environment": {name: os.environ[name] for name in names}, "job": str(job), "mode": job.stat().st_mode & 0o777,
    }))
    print(f"chatter of {rank}")
    if do == "refuse":
        while len(list(here.glob("rank-*.json"))) < 2:
            time.sleep(0.01)
        raise Refusal("no such data")
    if do == f"refuse {rank}":
        raise Refusal("no such disk")
    if do.startswith("refuse"):
        time.sleep(600)
    folder = here / "outputs" / "thing" / "run"
    if rank == 0:
        folder.mkdir(parents=True)
        RunFolder(folder).write_summary(status="running")
        tell(folder)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as a loader's worker
    write_text(here / f"child-{rank}", str(child.pid))
    while len(list(here.glob("child-*"))) < 2:
        time.sleep(0.01)
    if do == f"break {rank}":
        raise ValueError("out of ideas")
    if do == f"kill {rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    if do.startswith("leave") and do.endswith(str(rank)):
        os._exit(int(do.split()[1]))
    if do == "work":
        print(folder) if rank == 0 else None
        return 0
    signal.signal(signal.SIGTERM, lambda *_: (here / f"asked-{rank}").touch())
    signal.signal(signal.SIGINT, lambda *_: (here / f"asked-{rank}").touch())
    (here / f"ready-{rank}").touch()
    if do == "deaf":
        time.sleep(600)
    while not list(here.glob("asked-*")):  # as ranks agree
        time.sleep(0.01)
    print(folder) if rank == 0 else None
    raise Interrupted("stopped by a signal")

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
card: {do: work, process: "${process:}"}
""",
}
proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder: Path, do: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder / "path"), *filter(None, sys.path)])
    command = ["--config-dir", str(folder / "conf"), "experiment=thing", "trainer=ddp", "trainer.accelerator=cpu"]
    patience = "60" if do == "refuse" else "1"  # where each must have its say, there is time for it
    return subprocess.Popen(
        [sys.executable, "-m", "train", *command, "trainer.devices=2", f"card.do={do}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PATIENCE": patience},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()  # its ranks hold a tether
    return process.returncode, out.splitlines(), err


def read(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"rank-{rank}.json").read_text())


def status(folder: Path) -> str:
    return json.loads((folder / "outputs/thing/run/summary.json").read_text())["status"]


def survivors(folder: Path) -> list[int]:
    """Processes of the ranks that are left; their workers too."""
    children = [int(file.read_text()) for file in folder.glob("child-*")]
    leaders = [json.loads(file.read_text())["pid"] for file in folder.glob("rank-*.json")]
    return [process for process in (*children, *leaders) if is_alive(process)]


def wait_for_the_last(folder: Path) -> None:
    """Nobody waits for the workers, who would sleep for ten minutes: they are killed, and die when it is their turn."""
    wait_for(lambda: not survivors(folder))


@proc
def test_the_ranks_share_one_config_and_one_voice(folder: Path) -> None:
    code, out, err = finish(start(folder, "work"))
    assert code == 0, err
    first, second = read(folder, 0), read(folder, 1)
    assert first["config"] == second["config"]
    assert first["pid"] != first["config"]["card"]["process"] != second["pid"]  # of the process that composed
    assert "experiment=thing" in first["overrides"]
    assert first["argv"][1:] == ["--config-dir", str(folder / "conf"), *first["overrides"]]  # as typed, for provenance
    both = (first["environment"], second["environment"])
    assert [e["RANK"] for e in both] == [e["LOCAL_RANK"] for e in both] == ["0", "1"]
    for name, value in (("WORLD_SIZE", "2"), ("NODE_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        assert {e[name] for e in both} == {value}
    assert len({e["MASTER_PORT"] for e in both}) == 1
    # the config may hold what is not for everybody's eyes
    assert first["mode"] == 0o600
    assert not Path(first["job"]).parent.exists()
    # stdout is rank 0's, and ends with the folder
    assert out == ["chatter of 0", str(folder / "outputs/thing/run")]
    assert "[rank 1] chatter of 1" in err
    assert not (folder / "torch-was-imported").exists()  # what starts ranks waits for no import
    wait_for_the_last(folder)


def test_what_all_ranks_refuse_is_said_once(folder: Path) -> None:
    code, out, err = finish(start(folder, "refuse"))
    assert code == 2
    assert out == ["chatter of 0"]
    assert [line for line in err.splitlines() if "[rank 1]" not in line] == ["kinoscope: no such data"]


def test_what_one_rank_refuses_ends_all(folder: Path) -> None:
    code, _, err = finish(start(folder, "refuse 1"))
    assert code == 2
    assert err.splitlines()[-1] == "kinoscope: rank 1: no such disk"


@proc
@pytest.mark.parametrize(
    ("do", "code", "message", "left"),
    [
        ("break 1", 1, "rank 1 failed: ValueError: out of ideas", "failed"),
        ("kill 1", 1, "rank 1 was ended by SIGKILL in the middle of its work", "interrupted"),
        ("kill 0", 1, "rank 0 was ended by SIGKILL in the middle of its work", "interrupted"),
        ("leave 3 1", 3, "rank 1 left with exit code 3 in the middle of its work", "failed"),
        ("leave 0 1", 1, "rank 1 left with exit code 0 in the middle of its work", "failed"),
    ],
)  # fmt: skip
def test_a_rank_that_ends_takes_the_others_along(folder: Path, do: str, code: int, message: str, left: str) -> None:
    """The other rank waits for it, as in a collective operation; its worker knows nothing of all this."""
    found, out, err = finish(start(folder, do))
    assert found == code
    assert err.splitlines()[-1].startswith(f"kinoscope: {message}")
    assert ("Traceback" in err) == do.startswith("break")
    assert out[-1] == str(folder / "outputs/thing/run")
    assert status(folder) == left
    assert message in (folder / "outputs/thing/run/train.log").read_text()
    wait_for_the_last(folder)


@pytest.fixture
def at_work(folder: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = start(folder, getattr(request, "param", "wait"))
    deadline = time.monotonic() + 120
    while len(list(folder.glob("ready-*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    yield process
    process.kill()
    process.communicate()


@proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_rank_that_speaks_for_all(
    folder: Path, at_work: subprocess.Popen[str], number: signal.Signals
) -> None:
    at_work.send_signal(number)
    code, out, err = finish(at_work)
    assert code == 75
    assert (folder / "asked-0").exists()
    assert not (folder / "asked-1").exists()
    assert err.splitlines()[-1] == "kinoscope: stopped by a signal"
    assert out[-1] == str(folder / "outputs/thing/run")
    wait_for_the_last(folder)


@proc
@pytest.mark.parametrize("at_work", ["deaf"], indirect=True)
def test_a_second_ctrl_c_waits_for_nobody(folder: Path, at_work: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    at_work.send_signal(signal.SIGINT)
    wait_for((folder / "asked-0").exists)  # two that come together are one
    at_work.send_signal(signal.SIGINT)
    code, _, err = finish(at_work)
    assert code == 75
    assert time.monotonic() - began < 50  # a last save has 60 seconds, and the ranks sleep for ten minutes
    assert "aborted; resume with: python -m train resume=" in err
    assert status(folder) == "interrupted"
    wait_for_the_last(folder)


@proc
def test_ranks_stop_when_what_started_them_is_killed(folder: Path, at_work: subprocess.Popen[str]) -> None:
    at_work.kill()
    leaders = [read(folder, rank)["pid"] for rank in (0, 1)]
    wait_for(lambda: not any(map(is_alive, leaders)))
    assert list(folder.glob("asked-*"))  # each is asked and could save itself; the first one's answer ends the other
    assert not Path(read(folder, 0)["job"]).parent.exists()
    for child in folder.glob("child-*"):  # of the fake, which has no one to end it
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child.read_text()), signal.SIGKILL)


def test_an_interrupt_before_there_is_a_folder_ends_all_at_once(folder: Path) -> None:
    process = start(folder, "refuse 2")  # sleeps, since there is no rank 2
    wait_for(lambda: process.poll() is not None or len(list(folder.glob("rank-*.json"))) == 2)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 75
    assert "stopped by SIGINT; there was nothing yet to be saved" in err
    assert not (folder / "outputs").exists()


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"devices": 1}, 1),
        ({"devices": 3}, 3),
        ({"devices": "3"}, 3),
        ({"devices": [0, 3]}, 2),
        ({"devices": "0,3,"}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": -1, "accelerator": "mps"}, 1),
    ],
)  # fmt: skip
def test_what_devices_means(trainer: dict[str, Any], count: int) -> None:
    assert ranks.on_this_node(trainer) == count
    assert ranks.world_size({**trainer, "num_nodes": 2}) == 2 * count


def test_auto_counts_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    four = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 4))
    monkeypatch.setitem(sys.modules, "torch", four)  # type: ignore[arg-type] - all that is asked of it
    for accelerator in ("auto", "gpu", "cuda"):
        for devices in ("auto", -1):
            assert ranks.on_this_node({"devices": devices, "accelerator": accelerator}) == 4


def test_who_starts_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, unless it is a rank of torchrun's or one of several tasks of ``srun``; an sbatch script is not."""
    for name in ("LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    trainer = {"devices": 2, "num_nodes": 1}
    config = DictConfig({"trainer": trainer, "resume": None, "check": False})
    assert ranks.to_start("train", config, []) == 2
    assert ranks.to_start("evaluate", DictConfig({"devices": 2}), []) == 2
    assert ranks.to_start("evaluate", DictConfig({"devices": 1}), []) == 0
    assert ranks.to_start("train", DictConfig({**config, "check": True}), []) == 0
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert ranks.to_start("train", config, []) == 2
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert ranks.to_start("train", config, []) == 2
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert ranks.to_start("train", config, []) == 0
    assert ranks.started(default=1) == 4
    monkeypatch.delenv("SLURM_PROCID")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert ranks.to_start("train", config, []) == 0
    assert ranks.started(default=1) == 8


def test_several_nodes_need_to_be_told_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    for name in ("MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Refusal, match="MASTER_PORT and NODE_RANK must be set on each node"):
        ranks._rendezvous(nodes=3, processes=2, port=1)
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setenv("NODE_RANK", "2")
    here = {"MASTER_ADDR": "node-1", "MASTER_PORT": "1234", "NODE_RANK": "2", "WORLD_SIZE": "6"}
    assert ranks._rendezvous(nodes=3, processes=2, port=1) == [
        here | {"LOCAL_RANK": "0", "RANK": "4"},
        here | {"LOCAL_RANK": "1", "RANK": "5"},
    ]
