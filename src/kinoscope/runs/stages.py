"""A run made of several: what ``stages:`` names is trained before it, each in a folder of its own inside the run's.

    outputs/autoencoder/conv_classifier_small/<date_time>-<signature>/     the run itself, which is the last stage
        stages/1-pretrain/                                                 an ordinary run folder

All folders are made before anything is trained, each with its config, and a stage is started by resuming its folder, in
a fresh process. So a new run and one that was killed anywhere take the same way: what is finished is passed over, what
was begun goes on exactly, and the rest begins. Imports no torch: the process that waits for the stages holds no device.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.config.compose import plain
from kinoscope.config.preflight import Checked, preflight
from kinoscope.config.stages import STAGE, shared, stage_lines
from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.launch.processes import LAST_SAVE, Child
from kinoscope.runs import resume, stopwatch
from kinoscope.runs.folder import RunFolder, tell, write_text
from kinoscope.runs.interrupt import StopRequest
from kinoscope.runs.signature import inside, signature

log = logging.getLogger("kinoscope")

FOLDER = "stages"
STDERR = 2
POLL = 0.2  # seconds between two looks at a stage


def stages_of(run: RunFolder) -> dict[str, RunFolder]:
    """The stages before the last, in order, by name; none for an ordinary run."""
    paths = (run.path / FOLDER).glob("*-*")
    numbered = sorted((int(path.name.partition("-")[0]), path) for path in paths)
    return {path.name.partition("-")[2]: RunFolder.open(path) for _, path in numbered}


def source_of(init_from: str, run: RunFolder | None) -> Path:
    """The folder that ``init_from`` means: a run's, or that of a stage of ``run``, or beside it among the stages.

    Raises:
        Refusal: there is no such stage.
    """
    if not init_from.startswith(STAGE):
        return Path(init_from)
    name = init_from.removeprefix(STAGE)
    found = [] if run is None else [*run.path.glob(f"{FOLDER}/*-{name}"), *run.path.parent.glob(f"*-{name}")]
    if not found:
        raise Refusal(f"init_from={init_from}: this run has no stage '{name}'; give the folder of a run")
    return found[0]


@dataclass(frozen=True)
class Plan:
    """A run and what is trained before it.

    Attributes:
        config: the run's own, checked.
        stages: by name, in order; a stage may have stages of its own.
    """

    config: DictConfig
    stages: dict[str, Plan]

    @classmethod
    def of(cls, config: DictConfig, typed: Sequence[str], config_dir: str | Path | None) -> Plan:
        """The plan of a command. Raises `Refusal` for the faults of any stage."""
        checked = preflight("train", typed, config_dir)
        if checked.faults:
            raise Refusal("; ".join(checked.faults))
        return cls._of(config, checked.stages)

    @classmethod
    def _of(cls, config: DictConfig, checked: Mapping[str, Checked]) -> Plan:
        stages = {name: cls._of(stage.config, stage.stages) for name, stage in checked.items() if stage.config}
        for stage in stages.values():
            logger = stage.config.get("logger")
            if isinstance(logger, DictConfig) and "group" in logger and logger.group is None:
                logger.group = config.name  # W&B shows stages together with what they are for
        return cls(config, stages)

    @property
    def inside(self) -> dict[str, Any]:
        """What can change the result."""
        stages = {name: stage.inside for name, stage in self.stages.items()}
        return {**inside({**plain(self.config), FOLDER: {}}), FOLDER: stages}

    @property
    def signature(self) -> str | None:
        """That of a run with stages, whose data are not known yet; the data of one without are part of its own."""
        from kinoscope.launch import ranks

        if not self.stages:
            return None
        return signature(self.inside, data_hash="", devices=ranks.world_size(self.config.trainer))

    def describe(self, run: RunFolder) -> None:
        """Makes ``run`` and its stages folders of runs that have not begun; the run's own summary comes last."""
        for number, (name, stage) in enumerate(self.stages.items(), start=1):
            stage.describe(RunFolder.make(run.path / FOLDER / f"{number}-{name}"))
        from kinoscope.launch import ranks

        content = {**plain(self.config), "resume": None, "check": False}
        write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.create(content)))
        run.write_summary(
            status="running", signature=self.signature, devices=ranks.world_size(self.config.trainer),
            seconds=0.0, steps=0, monitor=self.config.monitor, best={}, last={}, test={}, **_entries(run),
        )  # fmt: skip


@contextmanager
def after_stages(
    config: DictConfig,
    overrides: Sequence[str],
    config_dir: str | Path | None = None,
    ended: Callable[[Path], None] = lambda folder: None,
) -> Iterator[DictConfig]:
    """Trains what comes before a run, and gives the config that is left: the run's, in the folder made for it.

    Args:
        config: of the command, as composed. One without stages is given back as it is.
        overrides: as typed.
        config_dir: the user's own yaml, where the stages' experiments may lie.
        ended: is told the run's folder if it ends here.

    Raises:
        Refusal: a fault in a stage that only building it shows; nothing was trained and no folder is left.
        Interrupted: a stage was asked to stop, and did.
        KinoscopeError: a stage failed.
    """
    command = _Command(config, overrides, config_dir, ended)
    if config.get("resume") not in (None, "auto"):
        command.go_on(RunFolder.open(config.resume))
        yield config
    elif config.get("stages"):
        _require_one_process()
        plan = Plan.of(config, overrides, config_dir)
        with tempfile.TemporaryDirectory(prefix="kinoscope-check-") if config.check else nullcontext() as elsewhere:
            found = None if elsewhere else resume.newest(config, str(plan.signature))
            run = found or _make(plan, elsewhere or config.output_dir)
            left = config.copy()
            left.resume = str(run.path)
            command.go_on(run)
            yield left
    else:
        yield config


def _require_one_process() -> None:
    from kinoscope.launch import ranks

    if ranks.are_set():
        raise Refusal(
            "stages: each stage starts its own processes, so start one task per run (no torchrun, srun --ntasks=1) and "
            "say how many devices it has with trainer.devices"
        )


def _make(plan: Plan, output_dir: str) -> RunFolder:
    """The folders of a run and its stages, all of them checked and none begun."""
    run = RunFolder.create(output_dir, plan.config.name, str(plan.signature))
    try:
        plan.describe(run)
        if faults := _rehearse(run):
            raise Refusal("; ".join(faults))
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def _entries(run: RunFolder) -> dict[str, Any]:
    """What the run's summary says of its stages."""
    entries: dict[str, Any] = {}
    for name, stage in stages_of(run).items():
        kept = {key: value for key, value in stage.read_summary().items() if key in ("status", "best", "test")}
        entries[name] = {"folder": str(stage.path.relative_to(run.path)), **kept}
    return {FOLDER: entries} if entries else {}


def _rehearse(run: RunFolder) -> list[str]:
    """What only building shows to be wrong in any stage, and whether each fits the one it begins with."""
    command = [sys.executable, "-m", "kinoscope.runs.rehearsal", str(run.path)]
    with _child(command, stdout=subprocess.PIPE) as child, child.stdout as stream:
        answer = stream.read()
        code = child.wait()
    if code != 0:
        raise KinoscopeError(f"the stages could not be built (exit code {code}); the lines above say why")
    return json.loads(answer)


@dataclass(frozen=True)
class _Command:
    """What was typed, and who is told the run's folder if it ends with a stage."""

    config: DictConfig
    typed: Sequence[str]
    config_dir: str | Path | None
    ended: Callable[[Path], None]

    def go_on(self, run: RunFolder) -> None:
        """Trains the stages of ``run`` that are not finished, one after the other (or checks them, with check=true)."""
        if all(stage.read_summary()["status"] == "finished" for stage in stages_of(run).values()):
            return
        _require_one_process()
        if self.config.resume is not None:
            asked = self.config.copy()
            asked.resume = str(run.path)
            resume.find(asked, self.typed)  # what may not be changed is refused before a stage goes on
        run.lock()
        status = "failed"
        try:
            if not self.config.check:
                tell(run.path)
                run.write_summary(status="running")
            with StopRequest() as stop:
                self._train(run, stop)
            status = "running"
            stopwatch.begin()  # of the run itself: its stages have watches of their own
        except (Interrupted, KeyboardInterrupt):
            status = "interrupted"
            raise
        finally:
            if not self.config.check:
                run.write_summary(status=status, **_entries(run))
            run.unlock()
            if status != "running" and not self.config.check:
                self.ended(run.path)

    def _train(self, run: RunFolder, stop: StopRequest) -> None:
        stages = stages_of(run)
        hint = f"resume with: python -m train resume={run.path}"
        for number, (name, stage) in enumerate(stages.items(), start=1):
            if stage.read_summary()["status"] == "finished":
                log.info("stage %d of %d, '%s', is finished: '%s'", number, len(stages) + 1, name, stage.path)
                continue
            command = self._line(run, name, stage)
            log.info("stage %d of %d, '%s': kinoscope %s", number, len(stages) + 1, name, shlex.join(command[3:]))
            code = _wait(command, stage, stop, stdout=None if self.config.check else STDERR)
            run.write_summary(**_entries(run))
            if code == Interrupted.exit_code:
                raise Interrupted(f"stopped in stage '{name}'; {hint}")
            if code != 0:
                kind = Refusal if code == Refusal.exit_code else KinoscopeError
                raise kind(f"stage '{name}' ended with exit code {code}, the lines above say why; {hint}")
        log.info("stage %d of %d: the run itself", len(stages) + 1, len(stages) + 1)

    def _line(self, run: RunFolder, name: str, stage: RunFolder) -> list[str]:
        """The command of a stage. Its folder knows everything, but for what was typed to resume it."""
        command = [sys.executable, "-m", "kinoscope", "train", f"resume={stage.path}"]
        if self.config.resume not in (None, "auto") and shared(self.typed):
            command += stage_lines(run.read_config(), self.typed)[name]
            command += [] if self.config_dir is None else ["--config-dir", str(self.config_dir)]
        return [*command, *(["check=true"] if self.config.check else [])]


def _wait(command: Sequence[str], stage: RunFolder, stop: StopRequest, stdout: int | None) -> int:
    """Runs a stage to its end, or asks it to save itself when this process is asked to stop; returns its exit code."""
    deadline = time.monotonic() + LAST_SAVE
    while stage.is_live() and time.monotonic() < deadline and not stop:
        time.sleep(POLL)  # the stage of a killed command is still saving itself
    if stop:
        return Interrupted.exit_code
    with _child(command, stdout) as child:
        asked = False
        while True:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=POLL)
            if stop and not asked:
                asked = True
                child.signal(signal.SIGTERM)


@contextmanager
def _child(command: Sequence[str], stdout: int | IO[Any] | None) -> Iterator[Child]:
    """A process of ours that finds the packages this one finds; it is gone at the end."""
    child = Child(command, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, stdout=stdout)
    try:
        yield child
    except KeyboardInterrupt:
        child.kill()
        raise
    finally:
        child.end()
