"""The launcher behind ``-m``: hands Hydra's list of jobs to fresh processes (see sweep_jobs.py)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from kinoscope.config.compose import plain
from kinoscope.console import show
from kinoscope.errors import Interrupted
from kinoscope.launch.places import places
from kinoscope.launch.sweep_folder import SweepFolder
from kinoscope.launch.sweep_jobs import PARENTS_OWN, Job, Jobs
from kinoscope.launch.sweep_pictures import Pictures
from kinoscope.launch.sweep_table import Objectives, in_words, split, table, write_results

ALIAS = "hydra_plugins.kinoscope_launcher"


class Runner(Protocol):
    """Runs the jobs of a sweep, somewhere."""

    interrupted: bool

    def run(self, source: Iterator[Job]) -> Iterator[Job]:
        """Yields each job when it has ended."""
        ...


class FreshProcessLauncher(Launcher):
    """Runs ``python -m kinoscope <verb> <overrides>`` for each job and keeps the sweep's table.

    The last line of a job's stdout is its run folder, where ``summary.json`` tells how it went.
    """

    __module__ = ALIAS  # see register()

    latest: ClassVar[FreshProcessLauncher | None] = None

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.interrupted = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        HydraConfig.instance().set_config(config)  # as in a job: ${choice:…} reads it
        own = [line for line in config.hydra.overrides.hydra if not line.lstrip("+~").startswith(PARENTS_OWN)]
        extra = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
        self.program = program(str(config.hydra.job.config_name), own, extra)
        self.objectives: Objectives = {config.monitor: config.mode} if config.get("monitor") else {}
        self.places = of_config(config)
        self.name = str(config.get("name") or config.hydra.job.config_name)
        self.folder = SweepFolder.create(Path(config.hydra.sweep.dir))
        with read_write(config.hydra.sweep):
            config.hydra.sweep.dir = str(self.folder.path)  # Hydra's sweeper writes multirun.yaml there
        FreshProcessLauncher.latest = self

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, as many at a time as there are places."""
        job_overrides = [
            [line for line in lines if not line.startswith(("sweep.", "sweep="))] for lines in job_overrides
        ]
        fixed = set.intersection(*map(set, job_overrides))
        jobs = [
            Job(number, list(lines), dict(split(line) for line in lines if line not in fixed))
            for number, lines in enumerate(job_overrides, start=initial_job_idx)
        ]
        running = self.runner()
        for job in running.run(iter(jobs)):
            self.jobs.append(job)
            self.jobs.sort(key=lambda job: job.number)
            write_results(self.folder.path, self.jobs, self.objectives)
        self.interrupted = running.interrupted
        if self.interrupted:
            raise SystemExit(self.finish())
        return [_as_return(job) for job in jobs]

    def runner(self) -> Runner:
        """What runs the jobs."""
        return Jobs(self.program, self.places, self.folder.notes)

    def finish(self) -> int:
        """Prints the table, and the sweep's folder as the last line of stdout; returns the sweep's exit code."""
        Pictures(self.folder.path, self.name, self.objectives).draw(self.jobs, final=True)
        conclude(self.folder, self.jobs, self.objectives)
        if self.interrupted:
            return Interrupted.exit_code
        return int(any(job.exit_code != 0 for job in self.jobs))


def conclude(folder: SweepFolder, jobs: Sequence[Job], objectives: Objectives) -> None:
    """What a sweep says at its end: its table and its best runs on stderr, its folder on stdout."""
    words = "\n".join(in_words(jobs, objectives))
    print(f"\n{table(jobs, objectives)}\n\n{words}" if jobs else "no job was begun", file=sys.stderr, flush=True)
    show(folder.path)


def program(verb: str, hydra_overrides: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """What starts a job, before its own overrides."""
    folders = [part for folder in config_dirs for part in ("--config-dir", str(folder))]
    return [sys.executable, "-m", "kinoscope", verb, *folders, *hydra_overrides]


def of_config(config: DictConfig) -> list[dict[str, str]]:
    """The places for the jobs of a command, as its config describes them (see places.py)."""
    sweep, data = config.get("sweep") or {}, config.get("data") or {}
    trainer = plain(config.trainer) if "trainer" in config else {}
    return places(sweep.get("n_jobs", 1), sweep.get("devices_per_job"), trainer, int(data.get("workers", 0)))


def _as_return(job: Job) -> JobReturn:
    result = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    result.return_value = job.objective
    return result


def register() -> None:
    """Makes Hydra know the launchers, as ``hydra/launcher=fresh_process``, ``submitit_slurm`` and ``submitit_local``.

    Hydra takes plugins by their name from the package ``hydra_plugins`` alone. It would not find such a folder in an
    editable install, which is finder-based; so the modules are entered under names there.
    """
    from kinoscope.launch import submitit_launcher as submitit

    FreshProcessLauncher.latest = None
    for launcher in (FreshProcessLauncher, submitit.SlurmLauncher, submitit.LocalLauncher):
        Plugins.instance().register(launcher)
    package = ALIAS.partition(".")[0]
    try:
        importlib.import_module(package)  # another plugin is installed
    except ModuleNotFoundError:
        sys.modules[package] = ModuleType(package)
    sys.modules[ALIAS] = sys.modules[__name__]
    sys.modules[submitit.ALIAS] = submitit
