"""Sweeps whose jobs are fakes: they do in a tenth of a second what their ``card.do`` says, and import no torch.

The process of the sweep is the real one. Only what it starts, ``python -m kinoscope train …``, is taken over by a
``sitecustomize`` before anything of it runs. A fake leaves what a run leaves: a folder that it tells to its owner, a
``metrics.csv`` that grows, and a ``summary.json``.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAKE_JOB = r"""
import sys

def job():
    import json, math, os, signal, time
    from pathlib import Path
    from kinoscope.launch.processes import hold_tether
    from kinoscope.runs.folder import TELL, tell, write_text

    hold_tether()
    words = dict(word.lstrip("+").split("=", 1) for word in sys.orig_argv[4:] if "=" in word)
    number = int(Path(os.environ[TELL]).name)
    do = words.get("card.do", "nothing").strip("'")
    if do == f"refuse {number}":
        os._exit(2)
    folder = Path(words.get("resume") or f"outputs/thing/run-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("model: {}\ndata: {}\n")
    seen = {"pid": os.getpid(), "argv": sys.orig_argv, "env": dict(os.environ), "begun": time.time()}
    with (folder / "processes.jsonl").open("a") as file:
        file.write(json.dumps(seen) + "\n")
    lr, seed = float(words.get("model.lr", 0.1)), int(words.get("seed", 0))
    loss = (math.log10(lr) + 2) ** 2 + seed / 100
    summary = {"status": "running", "seconds": 1.5, "monitor": "val/loss", "best": {}, "last": {}, "test": {}}
    table = Path(os.environ[TELL]).parents[1] / "sweep.csv"
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))

    def end(code, **more):
        (folder / "summary.json").write_text(json.dumps(summary | more))
        print(folder, flush=True)
        sys.stdout.flush()
        os._exit(code)

    (folder / "summary.json").write_text(json.dumps(summary))
    tell(folder)
    print("chatter on stderr", file=sys.stderr, flush=True)
    if do == f"fail {number}":
        end(1, status="failed")
    if do == "sleep" or do == f"sleep {number}":
        while not stopped and "resume" not in words:
            time.sleep(0.02)
        if stopped:
            end(75, status="interrupted")
    late = do == "prune" and number > 1  # it begins when two are told, and does not end unasked
    patience = time.monotonic() + 120
    while late and not (table.exists() and table.read_text().count("finished") >= 2) and time.monotonic() < patience:
        time.sleep(0.02)
    rows = ["step,epoch,val/loss"]
    for step in range(1, 21):
        rows.append(f"{step},0,{loss + 1 / step}")
        write_text(folder / "metrics.csv", "\n".join(rows) + "\n")
        if late:
            time.sleep(0.1)
        if stopped:
            end(75, status="interrupted")
    while late and not stopped and time.monotonic() < patience:
        time.sleep(0.02)
    if stopped:
        end(75, status="interrupted")
    best = {"val/loss": loss, "val/size": 1 / lr, "step": 7}
    end(0, status="finished", best=best, last=best, test={"test/loss": loss + 1})

if sys.orig_argv[1:4] == ["-m", "kinoscope", "train"]:
    job()
"""

FILES = {
    "path/sitecustomize.py": FAKE_JOB,
    "path/fake_model.py": "class Thing:\n    def __init__(self, lr: float = 0.1, width: int = 8) -> None: ...\n",
    "conf/data/thing.yaml": "_target_: fake_model.Thing\n",
    "conf/model/thing.yaml": "_target_: fake_model.Thing\nlr: 0.1\nwidth: 8\n",
    "conf/experiment/thing.yaml": """
# @package _global_
defaults: [override /data: thing, override /model: thing, override /callbacks: none, override /logger: none]
monitor: val/loss
trainer: {accelerator: cpu}
card: {do: nothing}
""",
    "conf/experiment/spacious.yaml": """
# @package _global_
defaults: [thing, _self_]
sweep: {space: {model.lr: "0.1,0.01", seed: "range(1,3)"}}
""",
}
HEAD = ["--config-dir", "conf", "experiment=thing"]
SPACE = ["model.lr=tag(log,interval(1e-4,1))", "seed=range(0,10)"]


def lay_out(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def environment(folder: Path) -> dict[str, str]:
    """With the fakes in the place of jobs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(folder / "path"), *filter(None, sys.path)])}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """``python -m train …`` in a process of its own."""
    command = [sys.executable, "-m", "train", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=pipe, stderr=pipe, text=True)


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What the condition returns as soon as that is true. A machine at work elsewhere may take its time."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


def table_of(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def processes_of(run: Path) -> list[dict[str, Any]]:
    """What each process that worked on a run saw."""
    file = run / "processes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_alive(process: int) -> bool:
    """Whether it still runs; a killed one may do so for a moment, until it is its turn to die."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):  # the other one if it ends between the opening and the reading
        return False
