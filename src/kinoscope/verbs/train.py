"""``kinoscope train``: one run, from a checked config to a tested checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf

from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.runs import provenance, resume
from kinoscope.runs.build import (
    build_callbacks,
    build_datamodule,
    build_logger,
    build_system,
    build_trainer,
    plain,
    require_one_device,
    try_optimizers,
    try_trainer,
)
from kinoscope.runs.checkpoints import AtomicCheckpointIO, resumable
from kinoscope.runs.folder import RunFolder, require_writable, write_json, write_text
from kinoscope.runs.interrupt import StopRequest
from kinoscope.runs.loggers import MetricsFile, WandB
from kinoscope.runs.quiet import quiet
from kinoscope.runs.signature import signature
from kinoscope.systems.base import System

log = logging.getLogger("kinoscope")


@dataclass
class Prepared:
    """A run that is ready to begin or to continue."""

    config: DictConfig
    folder: RunFolder
    datamodule: Any
    system: System
    signature: str
    checkpoint: Path | None


def train(overrides: Sequence[str] = ()) -> Path:
    """``kinoscope.train(["experiment=…", …])``: trains from a notebook or a script.

    Args:
        overrides: what would follow ``python -m train`` on the command line (one run, no sweep).

    Returns:
        The run's folder, ready for `kinoscope.load_run`.

    Raises:
        Refusal: a fault in the overrides, config or data; nothing was started.
        KinoscopeError: the run failed, or was interrupted.
    """
    from kinoscope.config.compose import compose_checked

    config = compose_checked("train", list(overrides))
    return execute(config, list(overrides))


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """The verb: trains, and prints the run's folder as the last line of stdout, also of a run that did not finish."""
    made: list[Path] = []
    try:
        execute(config, overrides, made.append)
    finally:
        for folder in made:
            print(folder, flush=True)
    return 0


def execute(config: DictConfig, overrides: Sequence[str], begun: Callable[[Path], None] = lambda folder: None) -> Path:
    """Prepares, trains and tests one run; returns its folder, and tells it to ``begun`` as soon as there is one."""
    with StopRequest() as stop:
        found = resume.find(config, overrides)
        if found.finished:
            log.info("'%s' is finished; nothing is left to do (raise trainer.max_epochs to go on)", found.finished.path)
            begun(found.finished.path)
            return found.finished.path
        pl.seed_everything(found.config.seed, workers=False, verbose=False)
        datamodule, system, identity = _build(found.config)
        if stop:
            raise Interrupted(f"{stop.reason} before the run had begun; nothing was trained")
        if config.check:
            from kinoscope.verbs.check import check

            check(found.config, datamodule, system)
            return Path()
        folder = found.folder or resume.newest(found.config, identity)
        if folder is not None and found.folder is None:  # resume=auto, with the run's thread count
            found.config.threads = folder.read_config().threads
        found.config.threads = found.config.threads or _threads(int(found.config.data.get("workers", 0)))
        checkpoint = None
        if folder is not None:
            folder.lock()
            identity = folder.read_summary()["signature"]  # a prolonged run keeps its own
            resume.require_same_data(folder, datamodule.fingerprint())
            checkpoint = resumable(folder, identity)
            folder.drop_unfinished_writes()
            write_text(folder.config_file, OmegaConf.to_yaml(OmegaConf.create(plain(found.config))))
            if checkpoint is None:
                folder.begin_anew()
            log.info("resuming '%s' from %s", folder.path, checkpoint or "its beginning: it has no checkpoint yet")
        else:
            folder = _create(found.config, datamodule, identity)
        begun(folder.path)
        torch.set_num_threads(found.config.threads)
        with _recorded(folder, stop):
            _train(Prepared(found.config, folder, datamodule, system, identity, checkpoint), stop)
        return folder.path


def _threads(workers: int) -> int:
    """The cores that the loader's workers leave to the training process.

    torch takes every core for itself, and then waits for those threads whose core a worker has. The number is kept in
    the run's config: sums are equal to the last bit only where it is the same.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(asked) if asked.isdigit() else max(1, cores - workers)


def _build(config: DictConfig) -> tuple[Any, System, str]:
    """Data and system, and with them everything that can be refused before a folder is made."""
    faults: list[str] = []

    def tried(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except Refusal as refusal:
            faults.append(str(refusal))

    tried(lambda: require_one_device(config.trainer))
    tried(lambda: require_writable(config.output_dir))
    datamodule = tried(lambda: build_datamodule(config))
    system = tried(lambda: build_system(config))
    if system is not None:
        tried(lambda: try_optimizers(system))
        tried(lambda: try_trainer(config, system))
    if faults:
        raise Refusal("; ".join(faults))
    assert system is not None
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule, system, signature(plain(config), datamodule.fingerprint())


def _create(config: DictConfig, datamodule: Any, identity: str) -> RunFolder:
    folder = RunFolder.create(config.output_dir, config.name, identity)
    folder.lock()
    try:
        _describe(folder, config, datamodule, identity)
    except KinoscopeError as error:
        folder.unlock()
        shutil.rmtree(folder.path, ignore_errors=True)
        raise Refusal(f"output_dir: {error}") from error
    return folder


def _describe(folder: RunFolder, config: DictConfig, datamodule: Any, identity: str) -> None:
    """What makes a folder a run's; ``summary.json`` comes last."""
    write_text(folder.config_file, OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    write_json(folder.provenance_file, provenance.collect(config.seed, datamodule.fingerprint()))
    folder.write_summary(
        status="running", signature=identity, seconds=0.0, steps=0, monitor=config.monitor, best={}, last={}, test={}
    )


class _LogFile(logging.FileHandler):
    """``train.log``. A full disk must not bury the run's own message under tracebacks of the logging."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Gives the line up; it is on stderr as well."""


@contextmanager
def _recorded(folder: RunFolder, stop: StopRequest) -> Iterator[None]:
    """Whatever happens inside is written to ``train.log``, and ends as a status in ``summary.json``."""
    handler = _LogFile(folder.log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if log.level == logging.NOTSET:  # called from Python, where nobody has said how much is to be heard
        log.setLevel(logging.INFO)
    loggers = [logging.getLogger(name) for name in ("kinoscope", "lightning.pytorch", "py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    folder.write_summary(status="running")
    status = "failed"
    try:
        yield
        status = "finished"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    except SystemExit as error:  # what Lightning makes of a second Ctrl-C
        if stop:
            status = "interrupted"
            raise Interrupted(f"aborted; resume from the last checkpoint with: resume={folder.path}") from error
        raise
    except BaseException as error:
        log.error("failed: %s", error, exc_info=not isinstance(error, KinoscopeError))
        raise
    finally:
        try:
            folder.write_summary(status=status)
        except KinoscopeError as error:  # a full disk; what ended the run is the better message
            log.error("%s", error)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
        folder.unlock()


def _train(run: Prepared, stop: StopRequest) -> None:
    config, folder = run.config, run.folder
    resolved = plain(config)
    metrics = MetricsFile(folder.metrics_file)
    context = {
        "run": folder,
        "config": resolved,
        "run_id": f"{run.signature}-{folder.path.name.rsplit('-', 1)[0].replace('_', '-')}",
        "name": config.name,
    }
    callbacks = build_callbacks(
        config,
        {
            "run": folder,
            "stop": stop,
            "metrics": metrics,
            "identity": {"signature": run.signature, "config": resolved},
            "monitor": config.monitor,
            "mode": config.mode,
        },
    )
    second = build_logger(config, context)
    loggers = [metrics, *([second] if second else [])]
    exit_code = 1
    try:
        with quiet():
            trainer = build_trainer(config, folder.path, callbacks, loggers, plugins=[AtomicCheckpointIO()])
            trainer.fit(
                run.system,
                datamodule=run.datamodule,
                ckpt_path=run.checkpoint and str(run.checkpoint),
                weights_only=True,
            )
            tested = _test(trainer, run)
        exit_code = 0
        _say(folder, tested)
    except Interrupted as error:
        exit_code = error.exit_code
        raise
    finally:
        if isinstance(second, WandB):
            summary = folder.read_summary()
            second.finish(exit_code, {**summary["best"], **summary["test"]})


def _test(trainer: pl.Trainer, run: Prepared) -> Mapping[str, float]:
    """Tests the best checkpoint (the last, where nothing is monitored) and writes the result down."""
    best = run.folder.checkpoint("best")
    path = best if best.exists() else run.folder.checkpoint("last")
    if trainer.limit_test_batches == 0 or not path.exists():
        return {}
    trainer.test(run.system, datamodule=run.datamodule, ckpt_path=str(path), weights_only=True, verbose=False)
    tested = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    run.folder.write_summary(test=tested)
    return tested


def _say(folder: RunFolder, tested: Mapping[str, float]) -> None:
    for name, value in sorted(tested.items()):
        log.info("%s = %.4g", name, value)
    seconds = folder.read_summary()["seconds"]
    log.info("finished in %s, steps and metrics in %s", time.strftime("%H:%M:%S", time.gmtime(seconds)), folder.path)
