"""The launcher behind ``-m``: one fresh process per job, one job after the other.

Jobs that share a process leak W&B runs and CUDA contexts from one into the next, and Lightning's DDP ranks re-run the
command of their parent: with ``-m`` in it, each rank starts a sweep of its own and trains with other values. So each
job here is a command of its own, without ``-m``, in a process group that is ended with the sweep.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any, ClassVar

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kinoscope.errors import Interrupted
from kinoscope.launch.processes import Child

ALIAS = "hydra_plugins.kinoscope_launcher"
_STATUS = {0: "finished", 2: "refused", Interrupted.exit_code: "interrupted"}
_PARENTS_OWN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep", "hydra.mode")


@dataclass
class Job:
    """One job of a sweep and what became of it."""

    number: int
    overrides: list[str]
    folder: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return _STATUS.get(self.exit_code, "failed")

    @property
    def objective(self) -> float | None:
        """The monitor at the best checkpoint, for sweepers that search."""
        best = self.summary.get("best") or {}
        return best.get(self.summary.get("monitor"))

    def row(self) -> dict[str, Any]:
        """Its line in ``sweep.csv``."""
        metrics = {
            (name if name.startswith(f"{kind}/") else f"{kind}/{name}"): value
            for kind in ("best", "test")
            for name, value in (self.summary.get(kind) or {}).items()
        }
        return {
            "job": self.number,
            **dict(_split(override) for override in self.overrides),
            "folder": self.folder,
            "status": self.status,
            "exit_code": self.exit_code,
            "seconds": self.summary.get("seconds", round(self.seconds, 1)),
            "monitor": self.summary.get("monitor") or "",
            **metrics,
        }


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


class FreshProcessLauncher(Launcher):
    """Runs ``python -m kinoscope <verb> <overrides>`` for each job and keeps ``sweep.csv``.

    The last line of a job's stdout is its run folder, where ``summary.json`` tells how it went.
    """

    __module__ = ALIAS  # see register()

    latest: ClassVar[FreshProcessLauncher | None] = None

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.interrupted = False
        self._process: Child | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.verb = str(config.hydra.job.config_name)
        self.folder = Path(config.hydra.sweep.dir)
        own = [line for line in config.hydra.overrides.hydra if not line.lstrip("+~").startswith(_PARENTS_OWN)]
        extra = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
        self._always = [*own, *(part for path in extra for part in ("--config-dir", path))]
        FreshProcessLauncher.latest = self

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs in order; a failing one does not stop the rest, an interrupt does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results: list[JobReturn] = []
        with self._signals():
            for number, overrides in enumerate(job_overrides, start=initial_job_idx):
                if self.interrupted:
                    break
                job = Job(number, list(overrides))
                print(f"\njob {number}: {' '.join(overrides)}", file=sys.stderr, flush=True)
                self._run(job)
                self.jobs.append(job)
                self._write()
                result = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
                result.return_value = job.objective
                results.append(result)
        if self.interrupted:
            raise SystemExit(self.finish())
        return results

    def finish(self) -> int:
        """Prints the table, and the sweep's folder as the last line of stdout; returns the sweep's exit code."""
        print(f"\n{table(self.jobs)}", file=sys.stderr, flush=True)
        print(self.folder, flush=True)
        if self.interrupted:
            return Interrupted.exit_code
        return int(any(job.exit_code != 0 for job in self.jobs))

    def _run(self, job: Job) -> None:
        started = time.monotonic()
        command = [sys.executable, "-m", "kinoscope", self.verb, *job.overrides, *self._always]
        environment = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP") or self.folder.name}
        process = self._process = Child(command, environment, stdout=subprocess.PIPE)
        lines: list[str] = []
        reader = threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            job.exit_code = process.wait()
        finally:
            self._process = None
            process.end()
        reader.join(timeout=5)  # a process that left the group may hold the pipe for ever
        job.seconds = time.monotonic() - started
        job.folder = lines[-1] if lines and Path(lines[-1]).is_dir() else ""
        job.summary = _read_summary(job.folder)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and the like are passed on to the running job, which saves itself; the second one kills it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(signum: int, frame: object) -> None:
            again, self.interrupted = self.interrupted, True
            if self._process is None:
                return
            if again:
                self._process.kill()
            else:
                print("kinoscope: stopping the sweep; again to kill its job", file=sys.stderr, flush=True)
                self._process.signal(signal.SIGTERM)

        ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # What is ignored stays ignored: a sweep under nohup outlives its terminal.
        before = {n: signal.signal(n, stop) for n in ours if signal.getsignal(n) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _write(self) -> None:
        """``sweep.csv`` with the jobs so far, whole at any time."""
        rows = [job.row() for job in self.jobs]
        columns = _columns(rows)
        temporary = self.folder / ".sweep.csv"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.folder / "sweep.csv")


def register() -> None:
    """Makes Hydra know the launcher, as ``hydra/launcher=fresh_process``.

    Hydra takes plugins by their name from the package ``hydra_plugins`` alone. It would not find such a folder in an
    editable install, which is finder-based; so this module is entered under a name there.
    """
    FreshProcessLauncher.latest = None
    Plugins.instance().register(FreshProcessLauncher)
    package = ALIAS.partition(".")[0]
    try:
        importlib.import_module(package)  # another plugin is installed
    except ModuleNotFoundError:
        sys.modules[package] = ModuleType(package)
    sys.modules[ALIAS] = sys.modules[__name__]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The union of all rows' columns: overrides, then the fixed ones, then metrics."""
    union = list(dict.fromkeys(name for row in rows for name in row))
    fixed = ["folder", "status", "exit_code", "seconds", "monitor"]
    metrics = [name for name in union if name.startswith(("best/", "test/"))]
    rest = [name for name in union if name not in fixed and name not in metrics]
    return [*rest, *fixed, *metrics]


def table(jobs: Sequence[Job]) -> str:
    """The sweep at a glance: what varied, how each job ended, its monitor's best value and its test metrics."""
    rows = [job.row() for job in jobs]
    varied = [key for key in _columns(rows) if key in {_split(o)[0] for job in jobs for o in job.overrides}]
    if len(jobs) > 1:
        varied = [key for key in varied if len({row.get(key) for row in rows}) > 1]
    monitors = [f"best/{row['monitor']}" for row in rows if row["monitor"]]
    tests = [name for name in _columns(rows) if name.startswith("test/")]
    columns = list(dict.fromkeys(["job", *varied, "status", "seconds", *monitors, *tests, "folder"]))
    lines = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pass_on(stream: IO[str], lines: list[str]) -> None:
    """Keeps the last line; the others were meant for a reader and go to stderr with the rest of the sweep's talk."""
    for line in stream:
        if lines:
            print(lines.pop(), file=sys.stderr, flush=True)
        if line.strip():
            lines.append(line.strip())


def _read_summary(folder: str) -> dict[str, Any]:
    if not folder:
        return {}
    try:
        return json.loads((Path(folder) / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
