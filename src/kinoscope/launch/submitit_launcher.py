"""``hydra/launcher=submitit_slurm`` and ``submitit_local``: each job of ``-m`` is a job of a cluster.

hydra-submitit-launcher pickles Hydra's task function and calls it in the job's own process: the config is composed once
more there, signals are submitit's and not the run's, and a preempted job is the same call again, which knows nothing of
the run that it began. Here a job is the plain command in a process of its own (see submitit_task.py), so that a run on
a cluster is what it is anywhere else, and is continued exactly.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kinoscope.config.tree import node_faults
from kinoscope.errors import Interrupted
from kinoscope.launch.fresh_process import FreshProcessLauncher
from kinoscope.launch.places import cuda_devices
from kinoscope.launch.processes import LAST_SAVE
from kinoscope.launch.ranks import on_this_node
from kinoscope.launch.submitit_task import Task
from kinoscope.launch.sweep_jobs import Job
from kinoscope.runs.interrupt import StopRequest

ALIAS = "hydra_plugins.kinoscope_submitit"
POLL = 0.5  # seconds between two looks at the jobs


class SubmititLauncher(FreshProcessLauncher):
    """What both have in common: the sweep's folder and table, and waiting for the jobs."""

    __module__ = ALIAS  # see fresh_process.register()

    cluster: ClassVar[str]

    def __init__(self, folder: str | None, signal_delay_s: int, max_num_timeout: int) -> None:
        super().__init__()
        self.logs, self.signal_delay_s, self.max_num_timeout = folder, signal_delay_s, max_num_timeout

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.trainer = trainer_of(config)

    def runner(self) -> Submissions:
        return Submissions(self, self.executor(Path(self.logs or self.folder.path / "submitit")))

    def executor(self, folder: Path) -> Any:
        """submitit's, told what each job needs."""
        raise NotImplementedError


class SlurmLauncher(SubmititLauncher):
    """Jobs of a SLURM cluster, submitted as one array.

    Args:
        timeout_min: minutes after which SLURM ends a job.
        partition: where it may run.
        account: whom it is charged to.
        qos: its quality of service.
        constraint: features that its nodes must have.
        nodes: of each job, trainer.num_nodes by default.
        tasks_per_node: by default one on a single node, whose ranks are then started in the job, and trainer.devices on
            several.
        gpus_per_node: by default trainer.devices, where the accelerator is a GPU.
        cpus_per_task: cores; the loader's workers want one each.
        mem_gb: memory of each node.
        array_parallelism: how many jobs run at a time.
        signal_delay_s: seconds before its end at which SLURM warns a job, which then saves itself and asks for another
            start.
        max_num_timeout: how often a job whose time was up is started again; preemptions do not count.
        name: what squeue shows.
        setup: commands that the batch script runs before the job's own.
        srun_args: further arguments of srun.
        additional_parameters: further options of sbatch, {mail-type: END}.
        folder: where submitit keeps scripts and logs; by default in the sweep's folder. All nodes must see it.
    """

    __module__ = ALIAS
    cluster = "slurm"

    def __init__(
        self,
        timeout_min: int = 60,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        nodes: int | None = None,
        tasks_per_node: int | None = None,
        gpus_per_node: int | None = None,
        cpus_per_task: int | None = None,
        mem_gb: float | None = None,
        array_parallelism: int = 256,
        signal_delay_s: int = 120,
        max_num_timeout: int = 20,
        name: str = "kinoscope",
        setup: list[str] | None = None,
        srun_args: list[str] | None = None,
        additional_parameters: dict[str, Any] | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__(folder, signal_delay_s, max_num_timeout)
        self.srun_args = list(srun_args or ())
        self.resources = {
            "name": name, "timeout_min": timeout_min, "cpus_per_task": cpus_per_task, "mem_gb": mem_gb,
            "slurm_partition": partition, "slurm_account": account, "slurm_qos": qos, "slurm_constraint": constraint,
            "slurm_array_parallelism": array_parallelism, "slurm_signal_delay_s": signal_delay_s,
            "slurm_setup": setup and list(setup), "slurm_srun_args": self.srun_args,
            "slurm_additional_parameters": {"requeue": True, **(additional_parameters or {})},
        }  # fmt: skip
        self.shape = {"nodes": nodes, "tasks_per_node": tasks_per_node, "gpus_per_node": gpus_per_node}

    def executor(self, folder: Path) -> Any:
        import submitit

        made = submitit.AutoExecutor(folder, cluster=self.cluster, slurm_max_num_timeout=self.max_num_timeout)
        each = shape(self.shape, self.trainer)
        made.update_parameters(**self.resources, **each)
        if (each["nodes"], each["tasks_per_node"]) != (1, 1):  # ranks, which would wait for one that has failed
            made.update_parameters(slurm_srun_args=["--kill-on-bad-exit=1", *self.srun_args])
        return made


class LocalLauncher(SubmititLauncher):
    """The same on this machine, without a cluster: for trying out, and for machines that are rebooted at night.

    As many jobs run at a time as ``sweep.n_jobs`` says.

    Args:
        timeout_min: minutes after which a job is ended.
        signal_delay_s: seconds before its end at which it is warned, saves itself and starts again.
        max_num_timeout: how often it is started again. submitit's local jobs have six starts in all.
        folder: where submitit keeps its logs; by default in the sweep's folder.
    """

    __module__ = ALIAS
    cluster = "local"

    def __init__(
        self,
        timeout_min: float = 10080,
        signal_delay_s: int = 30,
        max_num_timeout: int = 5,
        folder: str | None = None,
    ) -> None:
        super().__init__(folder, signal_delay_s, max_num_timeout)
        self.timeout_min = timeout_min

    def executor(self, folder: Path) -> Any:
        import submitit

        made = submitit.LocalExecutor(folder, max_num_timeout=self.max_num_timeout)
        made.update_parameters(timeout_min=self.timeout_min, signal_delay_s=self.signal_delay_s)
        return made


@dataclass
class _Submitted:
    """A job that submitit has: its own handle of it, when it got it, and which of the places the job has here."""

    job: Job
    handle: Any
    since: float
    place: int


class Submissions:
    """The jobs of a sweep at submitit: in place of `sweep_jobs.Jobs`."""

    def __init__(self, launcher: SubmititLauncher, executor: Any) -> None:
        self.program, self.notes = launcher.program, launcher.folder.notes
        self.places, self.is_local = launcher.places, launcher.cluster == "local"
        self.executor = executor
        self.time_to_save = max(1.0, 0.8 * launcher.signal_delay_s)  # the rest is for asking for another start
        self.interrupted = False
        self._waiting: list[_Submitted] = []

    def run(self, source: Iterator[Job]) -> Iterator[Job]:
        """Submits the jobs, and yields each when it has ended for good.

        Ctrl-C and the like stop local jobs, which save themselves; those of a cluster are left to it.
        """
        self.notes.mkdir(parents=True, exist_ok=True)
        with StopRequest("no longer waiting for the jobs") as stop:
            while not stop:
                self._submit(source)
                if not self._waiting:
                    return
                time.sleep(POLL)
                yield from self._ended()
        self.interrupted = True
        yield from self._leave()

    def _submit(self, source: Iterator[Job]) -> None:
        """A cluster is given all there is, as one array; this machine as many as there are places."""
        taken = {submitted.place for submitted in self._waiting}
        free = [place for place in range(len(self.places)) if place not in taken] if self.is_local else repeat(0)
        jobs = list(zip(free, source, strict=False))  # in this order: no job is taken that has no place
        if not jobs:
            return
        # Ctrl-C at the terminal would reach submitit's local processes, too, which end their jobs at once.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if self.is_local else None
        try:
            with self.executor.batch():
                handles = [self.executor.submit(self._task(job, place)) for place, job in jobs]
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
        for (place, job), handle in zip(jobs, handles, strict=True):
            self._waiting.append(_Submitted(job, handle, time.monotonic(), place))
            words = shlex.join(f"{key}={value}" for key, value in job.values.items()) or shlex.join(job.overrides)
            where = "process" if self.is_local else "SLURM's job"
            print(f"job {job.number}: {words} is {where} {handle.job_id}", file=sys.stderr, flush=True)

    def _task(self, job: Job, place: int) -> Task:
        environment = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP") or self.notes.parent.name}
        if self.is_local:  # submitit hides the GPUs from its local jobs
            environment |= {"CUDA_VISIBLE_DEVICES": ",".join(cuda_devices()), **self.places[place]}
        note = (self.notes / str(job.number)).resolve()
        return Task([*self.program, *job.overrides], note, environment, self.time_to_save)

    def _ended(self) -> Iterator[Job]:
        for submitted in list(self._waiting):
            job, first = submitted.job, submitted.handle.task(0)  # the other tasks are ranks of the same run
            with contextlib.suppress(OSError):
                job.folder = (self.notes / str(job.number)).read_text().strip()
            if not first.done():
                continue
            self._waiting.remove(submitted)
            job.read_summary()
            job.seconds = round(time.monotonic() - submitted.since, 1)
            job.exit_code = _exit_code(job, first)
            if job.exit_code:
                print(f"job {job.number} {job.status}: its log is {first.paths.stderr}", file=sys.stderr, flush=True)
            yield job

    def _leave(self) -> Iterator[Job]:
        """What becomes of the jobs when nobody waits for them any more."""
        numbers = [str(submitted.handle.job_id) for submitted in self._waiting]
        if not self.is_local:
            print(f"kinoscope: the jobs go on; 'scancel {' '.join(numbers)}' ends them", file=sys.stderr, flush=True)
            yield from (submitted.job for submitted in self._waiting)
            return
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGTERM)  # submitit's process, which passes it on
        deadline = time.monotonic() + LAST_SAVE
        while self._waiting and time.monotonic() < deadline:
            time.sleep(POLL)
            yield from self._ended()


def _exit_code(job: Job, handle: Any) -> int:
    """The run's own; of a job that submitit or the cluster has ended, by what the run has written down."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return int(handle.result())
    except (FailedJobError, UncompletedJobError):
        return Interrupted.exit_code if job.summary.get("status") == "interrupted" else 1


def trainer_of(config: DictConfig) -> Mapping[str, Any]:
    """The node that says how many devices a command wants: a training's trainer, or the config itself."""
    own = {"devices": config.get("devices", 1), "accelerator": config.get("accelerator", "auto")}
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True) if "trainer" in config else own
    return trainer


def shape(asked: Mapping[str, int | None], trainer: Mapping[str, Any]) -> dict[str, int | None]:
    """Nodes, tasks and GPUs of a job, with what follows from the trainer where nothing is asked."""
    nodes = asked["nodes"] or int(trainer.get("num_nodes", 1))
    on_gpus = trainer.get("accelerator") in ("gpu", "cuda")
    return {
        "nodes": nodes,
        "tasks_per_node": asked["tasks_per_node"] or (1 if nodes == 1 else on_this_node(trainer)),
        "gpus_per_node": asked["gpus_per_node"] or (on_this_node(trainer) if on_gpus else None),
    }


def launcher_faults(config: DictConfig) -> list[str]:
    """What stands in the way of these launchers, one sentence each; nothing for any other."""
    node = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(node, dict)
    kinds = {f"{ALIAS}.{kind.__name__}": kind for kind in (SlurmLauncher, LocalLauncher)}
    kind = kinds.get(str(node.get("_target_")))
    if kind is None:
        return []
    faults = node_faults(node, f"{__name__}.{kind.__name__}", "hydra.launcher")
    if find_spec("submitit") is None:
        faults.append("hydra/launcher: submitit is not installed: pip install 'kinoscope[slurm]'")
    if kind is SlurmLauncher and not faults:
        faults += _slurm_faults(node, config)
    return faults


def _slurm_faults(node: Mapping[Any, Any], config: DictConfig) -> Iterator[str]:
    missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
    if missing:
        yield (
            f"hydra/launcher=submitit_slurm: there is no {' and no '.join(missing)} here; submit from a machine of the "
            "cluster, or try the jobs with hydra/launcher=submitit_local"
        )
    trainer = trainer_of(config)
    if str(trainer.get("devices", 1)) in ("auto", "-1") and trainer.get("accelerator") != "cpu":
        yield "trainer.devices=auto counts the devices of this machine, not of the cluster's; give their number"
        return
    nodes, devices = int(trainer.get("num_nodes", 1)), on_this_node(trainer)
    given = shape({name: node.get(name) for name in ("nodes", "tasks_per_node", "gpus_per_node")}, trainer)
    if given["nodes"] != nodes:
        yield f"hydra.launcher.nodes is {given['nodes']}, but trainer.num_nodes is {nodes}"
    if given["tasks_per_node"] not in (devices, 1 if nodes == 1 else devices):
        yield (
            f"hydra.launcher.tasks_per_node is {given['tasks_per_node']}, but each task is a rank of "
            f"trainer.devices={devices}" + ("; one task starts its ranks itself" if nodes == 1 else "")
        )
    if (config.get("sweep") or {}).get("n_jobs", 1) != 1:
        yield "sweep.n_jobs counts jobs on this machine; on the cluster give hydra.launcher.array_parallelism"
