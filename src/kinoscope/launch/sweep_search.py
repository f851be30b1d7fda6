"""``sweep=grid``, ``random`` and ``optuna``: optuna suggests values, jobs try them, and a killed search goes on.

The loop is ours: optuna's ask and tell around jobs that are plain commands. hydra-optuna-sweeper declares optuna < 3,
runs a trial in the process of the sweep, and knows no pruning. Here the sweep's own process reads each run's
``metrics.csv`` as it grows and asks the pruner; the job knows nothing of optuna, so the ranks of a job cannot disagree.

Suggestions are keyed, not streamed: trial n draws from (seed, n), so that a search that was killed suggests what it
would have suggested. With several jobs at a time what is known when a trial begins depends on which job was faster.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import math
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinoscope.config.space import Choice, Dimension, Interval, Range, Space
from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.launch.fresh_process import conclude, program
from kinoscope.launch.processes import LAST_SAVE
from kinoscope.launch.sweep import Command, interval_faults
from kinoscope.launch.sweep_folder import SweepFolder
from kinoscope.launch.sweep_jobs import Job, Jobs
from kinoscope.launch.sweep_pictures import Pictures, quiet_optuna
from kinoscope.launch.sweep_table import Objectives, write_results
from kinoscope.runs.folder import RunFolder, require_writable

if TYPE_CHECKING:
    import optuna

SHARE = 0.02  # of the time that looking at the jobs' metrics may take


class Search:
    """Looks for the values with which an experiment does best.

    Args:
        sampler: suggests values (sweep/sampler=…); null tries all combinations in order.
        pruner: stops a job that does worse than the others (sweep/pruner=…); null lets all of them finish.
        trials: jobs in all, pruned and failed ones included; null for as many as a grid has points.
        n_jobs: how many jobs run at a time.
        devices_per_job: CUDA devices of each; by default trainer.devices, and 0 lets the jobs share all there are.
        objectives: metrics and their directions, {val/video_accuracy: max}; by default the experiment's monitor.
        seed: every suggestion follows from it.
        storage: the study's SQLite file; by default study.db in the sweep's folder.
        space: what varies besides what is typed, {model.optimizer.lr: "interval(0.001,0.1)"}; what is typed wins.
        resume: the folder of a search to go on with.
    """

    def __init__(
        self,
        sampler: Callable[..., optuna.samplers.BaseSampler] | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        trials: int | None = None,
        n_jobs: int = 1,
        devices_per_job: int | None = None,
        objectives: dict[str, Literal["min", "max"]] | None = None,
        seed: int = 0,
        storage: str | None = None,
        space: dict[str, str] | None = None,  # read by preflight, with what is typed
        resume: str | None = None,
    ) -> None:
        self.sampler, self.trials, self.seed = sampler, trials, seed
        self.pruner = None if type(pruner).__name__ == "NopPruner" else pruner
        self.n_jobs, self.devices_per_job = n_jobs, devices_per_job
        self.objectives, self.storage, self.resume = objectives, storage, resume

    def faults(self, command: Command) -> Iterator[str]:
        """What stands in the way, one sentence each. Nothing is left on disk."""
        yield from command.search_faults()
        if self.sampler is None:
            yield from interval_faults(command.space)
        elif self.trials is None:
            yield "sweep.trials is not set: give sweep.trials=… (only a grid has an end of its own)"
        elif getattr(self.sampler, "keywords", {}).get("seed") is not None:
            yield "sweep.sampler.seed: give sweep.seed instead, from which every trial has its own"
        if self.trials is not None and self.trials < 1:
            yield f"sweep.trials must be at least 1, got {self.trials}"
        for attempt in (
            lambda: command.places(self.n_jobs, self.devices_per_job),
            lambda: self._try(command),
            lambda: require_usable(self.storage, str(command.config["output_dir"])),
            self._require_study,
        ):
            try:
                attempt()
            except Refusal as refusal:
                yield str(refusal)

    def _require_study(self) -> None:
        if self.resume is not None:
            study = Path(self.storage) if self.storage else SweepFolder.open(self.resume).study
            if not study.is_file():
                raise Refusal(f"sweep.resume: the study '{study}' is gone; start a new search")

    def _try(self, command: Command) -> None:
        """Asks a study in memory, for what sampler, pruner and objectives refuse together."""
        import optuna

        objectives = command.objectives(self.objectives)
        if len(objectives) > 1 and self.pruner is not None:
            raise Refusal("sweep.pruner: a pruner needs one objective; give one, or sweep/pruner=none")
        distributions = {key: distribution(dimension) for key, dimension in command.space.items()}
        with quiet_optuna():
            try:
                study = optuna.create_study(directions=_directions(objectives), sampler=self.sampler_of(0))
                study.tell(study.ask(distributions), [0.0] * len(objectives))
                study.ask(distributions)  # some look for what they need only when there is something to learn from
            except (ImportError, ValueError, TypeError, NotImplementedError) as error:
                raise Refusal(f"sweep.sampler: {str(error).splitlines()[0]}") from error

    def sampler_of(self, number: int) -> optuna.samplers.BaseSampler | None:
        """The sampler of one trial. A quasi-random sequence is one only if its seed stays the same."""
        if self.sampler is None:
            return None
        import optuna

        fixed = getattr(self.sampler, "func", None) is optuna.samplers.QMCSampler
        digest = hashlib.sha256(f"{self.seed}/{0 if fixed else number}".encode()).digest()
        return self.sampler(seed=int.from_bytes(digest[:4]))

    def run(self, command: Command) -> int:
        """Searches; prints the sweep's folder as the last line of stdout, and returns the exit code."""
        objectives = command.objectives(self.objectives)
        folder = SweepFolder.open(self.resume) if self.resume else SweepFolder.named(str(command.config["output_dir"]))
        folder.lock()
        # Its own name, so that the folder may be renamed, and a storage shared.
        study = str(folder.read_command().get("study")) if self.resume else f"{folder.path.name}_{secrets.token_hex(4)}"
        typed = [line for line in command.typed if not line.startswith("sweep.resume=")]
        folder.write_command(study=study, overrides=typed, config_dir=command.config_dir, objectives=dict(objectives))
        flags = [] if command.config_dir is None else [command.config_dir]
        jobs = Jobs(program(command.verb, [], flags), command.places(self.n_jobs, self.devices_per_job), folder.notes)
        numbers = {
            k.lstrip("+"): dimension for k, dimension in command.space.items() if not isinstance(dimension, Choice)
        }
        log = {key: isinstance(dimension, Interval) and dimension.log for key, dimension in numbers.items()}
        pictures = Pictures(folder.path, str(command.config["name"]), objectives, log)
        with quiet_optuna():
            trials = _Trials(self, command, folder, study, objectives, jobs)
            try:
                with contextlib.closing(jobs.run(trials.source(), trials.watch)) as ended:
                    for job in ended:
                        trials.told(job)
                        write_results(folder.path, trials.jobs(), objectives)
                        pictures.draw(trials.jobs())
                        trials.require_sense(job)
            finally:
                ran = [job for job in trials.jobs() if job.exit_code is not None]
                write_results(folder.path, ran, objectives)
                pictures.draw(ran, final=True)
                conclude(folder, ran, objectives)
        if jobs.interrupted or any(job.status in ("interrupted", "running") for job in trials.jobs()):
            print(f"go on with: python -m train sweep.resume={folder.path}", file=sys.stderr, flush=True)
            return Interrupted.exit_code
        return int(not any(job.status == "finished" for job in trials.jobs()))


class _Trials:
    """The study of one search, as jobs to run and jobs that have ended."""

    def __init__(
        self, search: Search, command: Command, folder: SweepFolder, study: str, objectives: Objectives, jobs: Jobs
    ) -> None:
        import optuna

        self._search, self._command, self._folder = search, command, folder
        self._objectives, self._running = objectives, jobs
        self._distributions = {key: distribution(dimension) for key, dimension in command.space.items()}
        file = search.storage or folder.study
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
        pruner = search.pruner or optuna.pruners.NopPruner()
        try:
            self._study = (
                optuna.load_study(study_name=study, storage=storage, pruner=pruner)
                if search.resume
                else optuna.create_study(
                    study_name=study, storage=storage, pruner=pruner, directions=_directions(objectives)
                )
            )
        except KeyError:
            raise Refusal(f"sweep.resume: there is no study '{study}' in '{file}'; start a new search") from None
        if search.sampler is None:
            for point in itertools.islice(product(command.space), len(self._study.trials), search.trials):
                self._study.enqueue_trial(point)
        self._trials: dict[int, optuna.Trial] = {}
        self._jobs = {trial.number: self._past(trial) for trial in self._study.trials if trial.state.name != "WAITING"}
        self._reported: dict[int, set[int]] = {}  # job → steps
        self._looked: dict[int, tuple[float, float]] = {}  # job → when to look again, and how old the file then was

    def jobs(self) -> list[Job]:
        """All jobs that were ever begun, in their order."""
        return [self._jobs[number] for number in sorted(self._jobs)]

    # Asking

    def source(self) -> Iterator[Job]:
        """First the jobs that did not end, then new ones."""
        import optuna

        for frozen in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self._trials[frozen.number] = optuna.Trial(self._study, frozen._trial_id)
            self._reported[frozen.number] = set(frozen.intermediate_values)
            job = self._jobs[frozen.number] = self._past(frozen)
            job.resume, job.exit_code = self._resumable(job.folder), None
            job.folder = job.resume
            yield job
        while (number := self._next()) is not None:
            sampler = self._search.sampler_of(number)
            if sampler is not None:
                self._study.sampler = sampler
            trial = self._study.ask(self._distributions)
            self._trials[trial.number] = trial
            self._jobs[trial.number] = Job(trial.number, self._overrides(trial.params), self._values(trial.params))
            yield self._jobs[trial.number]

    def _next(self) -> int | None:
        states = [trial.state.name for trial in self._study.get_trials(deepcopy=False)]
        if self._search.sampler is None:
            return len(states) if "WAITING" in states else None
        wanted = self._search.trials or 0
        return len(states) if len(states) < wanted else None

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        return [*self._command.shared, *(f"{key}={_typed(value)}" for key, value in params.items())]

    def _values(self, params: Mapping[str, Any]) -> dict[str, str]:
        return {key.lstrip("+"): _typed(value) for key, value in params.items()}

    def _past(self, trial: optuna.trial.FrozenTrial) -> Job:
        """A trial of the study as the job that it was."""
        known = trial.user_attrs
        job = Job(
            trial.number,
            self._overrides(trial.params),
            self._values(trial.params),
            folder=known.get("folder") or self._folder.run_of(trial.number),
            exit_code=known.get("exit_code"),
            seconds=known.get("seconds", 0.0),
            pruned=trial.state.name == "PRUNED",
        )
        job.read_summary()
        return job

    def _resumable(self, run: str) -> str:
        """The run to go on with, once the process that had it is gone; empty to begin anew."""
        try:
            folder = RunFolder.open(run) if run else None
        except Refusal:
            folder = None  # killed while the folder was made
        if folder is None:
            return ""
        until = time.monotonic() + LAST_SAVE
        while folder.is_live():
            if time.monotonic() > until:
                raise Refusal(f"sweep.resume: another process is working in '{run}': stop it first")
            time.sleep(0.2)
        return run

    # Telling

    def told(self, job: Job) -> None:
        """Tells the study how a job ended. An interrupted one stays open: it is gone on with."""
        from optuna.trial import TrialState

        trial = self._trials[job.number]
        for name, value in (("folder", job.folder), ("exit_code", job.exit_code), ("seconds", job.seconds)):
            trial.set_user_attr(name, value)
        if self._search.pruner is not None and job.folder:
            self._report(job, trial)
        values = [job.metric(name) for name in self._objectives]
        match job.status:
            case "finished" if all(value is not None and math.isfinite(value) for value in values):
                self._study.tell(trial, [value for value in values if value is not None])
            case "pruned":
                self._study.tell(trial, state=TrialState.PRUNED)
            case "interrupted":
                pass
            case _:
                self._study.tell(trial, state=TrialState.FAIL)

    def require_sense(self, job: Job) -> None:
        """Raises `KinoscopeError` where a job that has ended shows that the others would be in vain.

        So it is when the first is refused, and when a finished one has not logged what is sought.
        """
        if all(other.status in ("refused", "running") for other in self.jobs()):
            raise KinoscopeError(
                f"job {job.number} was refused before its work, and the search ends, as the others would be refused "
                f"alike; if its values alone are at fault, go on with: python -m train sweep.resume={self._folder.path}"
            )
        if job.status != "finished":
            return
        for name in self._objectives:
            if job.metric(name) is None:
                logged = sorted({*(job.summary.get("best") or {}), *(job.summary.get("last") or {})} - {"step"})
                said = ", ".join(logged) or "nothing"
                raise KinoscopeError(f"sweep.objectives: '{name}' is not logged; job {job.number} logged {said}")

    # Pruning

    def watch(self, job: Job) -> None:
        """Reports what a running job has logged, and stops it where the pruner says so."""
        due, age = self._looked.get(job.number, (0.0, 0.0))
        began = time.monotonic()
        if self._search.pruner is None or job.pruned or not job.folder or began < due:
            return
        with contextlib.suppress(OSError):
            changed = (Path(job.folder) / "metrics.csv").stat().st_mtime
            if changed != age:
                trial = self._trials[job.number]
                if self._report(job, trial) and trial.should_prune():
                    job.pruned = True
                    print(f"job {job.number} is pruned: others were better at its step", file=sys.stderr, flush=True)
                    self._running.stop(job)
            age = changed
        took = time.monotonic() - began
        self._looked[job.number] = (began + max(0.5, took / SHARE), age)

    def _report(self, job: Job, trial: optuna.Trial) -> bool:
        """Hands new values of the objective to the trial; returns whether there were any."""
        (name,) = self._objectives
        known = self._reported.setdefault(job.number, set())
        new = {step: value for step, value in read_metric(Path(job.folder), name) if step not in known}
        for step, value in new.items():
            trial.report(value, step)
        known.update(new)
        return bool(new)


def read_metric(run: Path, name: str) -> list[tuple[int, float]]:
    """A metric's values so far, with their steps, from a run's ``metrics.csv``; empty where there are none yet."""
    try:
        with (run / "metrics.csv").open(newline="") as file:
            return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    except (OSError, ValueError, KeyError):  # not there, or caught in the middle of a line
        return []


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """A dimension of the search space as optuna knows it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match dimension:
        case Choice(values):
            return CategoricalDistribution(values)
        case Range(low, high, step):
            whole = isinstance(low, int)
            return IntDistribution(low, int(high), step=int(step)) if whole else FloatDistribution(low, high, step=step)
        case Interval(low, high, log):
            return IntDistribution(low, int(high), log) if isinstance(low, int) else FloatDistribution(low, high, log)


def product(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations, the last key running fastest, as with ``-m``."""
    numbers = {
        key: [type(dimension.low)(value) for value in dimension.values]
        if isinstance(dimension, Range)
        else dimension.values
        for key, dimension in space.items()
        if not isinstance(dimension, Interval)
    }
    for point in itertools.product(*numbers.values()):
        yield dict(zip(numbers, point, strict=True))


def _typed(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _directions(objectives: Objectives) -> list[Literal["minimize", "maximize"]]:
    return ["maximize" if mode == "max" else "minimize" for mode in objectives.values()]


def require_usable(storage: str | None, output_dir: str) -> None:
    """Raises `Refusal` where a study cannot be written, and leaves nothing behind."""
    if storage is None:
        require_writable(output_dir)
        return
    existed = Path(storage).exists()
    try:
        with contextlib.closing(sqlite3.connect(storage, timeout=5)) as database:
            database.execute("PRAGMA schema_version").fetchone()
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        raise Refusal(f"sweep.storage: '{storage}' cannot be used as a SQLite file ({error})") from error
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                Path(storage).unlink(missing_ok=True)
