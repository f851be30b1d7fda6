"""The jobs of a sweep: fresh processes, some at a time, that do not outlive it.

Jobs that share a process leak W&B runs and CUDA contexts from one into the next, and Lightning's DDP ranks re-run the
command of their parent: with ``-m`` in it, each rank starts a sweep of its own and trains with other values. So each
job here is a plain command with plain values, ``python -m kinoscope train …``, in a process group that is ended with
the sweep. Neither the job nor its ranks know of the sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from kinoscope.errors import Interrupted
from kinoscope.launch.processes import Child, listening
from kinoscope.runs.folder import TELL

# Hydra's settings that are for the process of the sweep alone.
PARENTS_OWN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep", "hydra.mode")
POLL = 0.05  # seconds between two looks at the jobs
_STATUS = {0: "finished", 2: "refused", Interrupted.exit_code: "interrupted"}


@dataclass
class Job:
    """One job of a sweep and what became of it.

    Attributes:
        number: counts from 0; with a search, the trial's number.
        overrides: what is typed behind the verb.
        values: those of them that vary, by their key.
        resume: the run folder that the job continues.
        folder: its run's folder, as soon as there is one.
        exit_code: of its process; None while it has not ended.
        seconds: that the process ran.
        summary: its run's ``summary.json``, when it has ended.
        pruned: whether it was stopped because others do better.
    """

    number: int
    overrides: list[str]
    values: dict[str, str] = field(default_factory=dict)
    resume: str = ""
    folder: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    pruned: bool = False

    @property
    def status(self) -> str:
        """finished, pruned, interrupted (can be resumed), refused (before work), failed, or running."""
        if self.exit_code is None:
            return "running"
        if self.pruned and self.exit_code == Interrupted.exit_code:
            return "pruned"
        return _STATUS.get(self.exit_code, "failed")

    def metric(self, name: str) -> float | None:
        """A metric at the best checkpoint; without one (the run has no monitor), at the end."""
        for kind in ("best", "last"):
            value = (self.summary.get(kind) or {}).get(name)
            if value is not None:
                return float(value)
        return None

    @property
    def objective(self) -> float | None:
        """The run's own monitor at its best checkpoint."""
        return self.metric(str(self.summary.get("monitor")))

    def read_summary(self) -> None:
        """Looks at the run's ``summary.json``; a run without one has none."""
        with contextlib.suppress(OSError, ValueError):
            self.summary = json.loads((Path(self.folder) / "summary.json").read_text()) if self.folder else {}


class Jobs:
    """Runs the jobs of a sweep.

    Args:
        program: what starts a job, before its own overrides.
        places: the environment of each place in which a job can run; there are as many jobs at a time.
        notes: a folder where each job's run folder is noted, so that it is known while the job runs, and to who comes
            after this process.
    """

    def __init__(self, program: Sequence[str], places: Sequence[Mapping[str, str]], notes: Path) -> None:
        self.program, self.places, self.notes = list(program), [dict(place) for place in places], notes
        self.interrupted = False
        self._running: dict[int, _Running] = {}  # by place

    def run(self, source: Iterator[Job], watch: Callable[[Job], None] = lambda job: None) -> Generator[Job, None, None]:
        """Starts jobs as places become free, and yields each when it has ended.

        A failing job does not stop the rest. Ctrl-C and the like are passed on to all jobs, which save themselves, and
        no more are begun; the second one kills them.

        Args:
            source: is asked for the next job when there is a place for it.
            watch: is shown the running jobs now and then; it may `stop` one.
        """
        self.notes.mkdir(parents=True, exist_ok=True)
        try:
            with listening(self._stop):
                while True:
                    self._fill(source)
                    if not self._running:
                        return
                    time.sleep(POLL)
                    for place, running in list(self._running.items()):
                        running.job.folder = running.job.folder or self._noted(running.job)
                        if running.process.poll() is None:
                            watch(running.job)
                            continue
                        del self._running[place]
                        running.end()
                        yield running.job
        finally:
            for running in self._running.values():
                running.ask()
            for running in self._running.values():
                running.end()
            self._running.clear()

    def stop(self, job: Job) -> None:
        """Asks one running job to save itself and end."""
        for running in self._running.values():
            if running.job is job:
                running.ask()

    def _fill(self, source: Iterator[Job]) -> None:
        for place, environment in enumerate(self.places):
            if place in self._running or self.interrupted:
                continue
            job = next(source, None)
            if job is None or self.interrupted:  # a search may think for a while, and Ctrl-C come meanwhile
                return
            if not job.resume:
                (self.notes / str(job.number)).unlink(missing_ok=True)
            self._running[place] = _Running(
                job,
                [*self.program, *job.overrides, *([f"resume={job.resume}"] if job.resume else [])],
                {
                    "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP") or self.notes.parent.name,
                    TELL: str((self.notes / str(job.number)).resolve()),
                    **environment,
                },
                alone=len(self.places) == 1,
            )
            if self.interrupted:
                self._running[place].ask()

    def _noted(self, job: Job) -> str:
        with contextlib.suppress(OSError):
            return (self.notes / str(job.number)).read_text().strip()
        return job.resume

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.interrupted = self.interrupted, True
        for running in self._running.values():
            if again:
                running.process.kill()
            else:
                running.ask()
        if not again:
            print("kinoscope: stopping the sweep; again to kill its jobs", file=sys.stderr, flush=True)


class _Running:
    """A job's process, with the threads that read what it says."""

    def __init__(self, job: Job, command: Sequence[str], environment: Mapping[str, str], alone: bool) -> None:
        self.job = job
        self._started = time.monotonic()
        self._asked = False
        self._last: list[str] = []
        prefix = "" if alone else f"[{job.number}] "
        words = shlex.join(f"{key}={value}" for key, value in job.values.items()) or shlex.join(job.overrides)
        print(f"\njob {job.number}: {words}" if alone else f"{prefix}begins: {words}", file=sys.stderr, flush=True)
        # A job alone keeps the terminal, and with it its progress bar.
        self.process = Child(command, environment, stdout=subprocess.PIPE, stderr=None if alone else subprocess.PIPE)
        out = threading.Thread(target=_keep_last, args=(self.process.stdout, self._last, prefix), daemon=True)
        err = [] if alone else [threading.Thread(target=_pass_on, args=(self.process.stderr, prefix), daemon=True)]
        self._readers = [out, *err]
        for reader in self._readers:
            reader.start()

    def ask(self) -> None:
        """Asks the job to save itself and end."""
        self._asked = True
        self.process.signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends what is left of the process, and completes the job."""
        code = self.process.end()
        # Asked before it could listen, it had nothing to save.
        self.job.exit_code = Interrupted.exit_code if self._asked and code == -signal.SIGTERM else code
        for reader in self._readers:
            reader.join(timeout=5)  # a process that left the group may hold the pipe for ever
        self.job.seconds = round(time.monotonic() - self._started, 1)
        if self._last and Path(self._last[-1]).is_dir():  # the last line of a verb's stdout is its folder
            self.job.folder = self._last[-1]
        self.job.read_summary()


def _keep_last(stream: IO[str], last: list[str], prefix: str) -> None:
    """Keeps the last line; the others were meant for a reader and go to stderr with the rest of the sweep's talk."""
    with stream:
        for line in stream:
            if not line.strip():
                continue
            if last:
                _say(prefix + last.pop())
            last.append(line.strip())


def _pass_on(stream: IO[str], prefix: str) -> None:
    with stream:
        for line in stream:
            if line.strip():
                _say(prefix + line.rstrip())


def _say(line: str) -> None:
    """Its end with it: where stderr is not buffered, that of another thread's line would come between."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)
