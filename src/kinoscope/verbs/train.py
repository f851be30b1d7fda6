"""``kinoscope train``: one run, from a checked config to a tested checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from kinoscope.config.compose import compose_checked, plain
from kinoscope.config.stages import STAGE
from kinoscope.console import show
from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.launch import ranks
from kinoscope.launch.processes import cores
from kinoscope.runs import agreement, provenance, resume, stopwatch, warm_start
from kinoscope.runs.build import (
    build_callbacks,
    build_datamodule,
    build_logger,
    build_system,
    build_trainer,
    try_callbacks,
    try_network,
    try_optimizers,
    try_trainer,
)
from kinoscope.runs.checkpoints import AtomicCheckpointIO, resumable
from kinoscope.runs.folder import RunFolder, require_writable, tell, write_json, write_text
from kinoscope.runs.interrupt import StopRequest
from kinoscope.runs.loggers import LastWindow, MetricsFile
from kinoscope.runs.quiet import quiet
from kinoscope.runs.report import in_one_line
from kinoscope.runs.signature import essence, signature
from kinoscope.runs.stages import after_stages, source_of
from kinoscope.runs.wandb import WandB
from kinoscope.runs.warm_start import WarmStart
from kinoscope.systems.base import System
from kinoscope.systems.tuning import tune

log = logging.getLogger("kinoscope")


@dataclass
class Claim:
    """Where a run writes and what it continues, as rank 0 tells it to all."""

    config: DictConfig
    folder: RunFolder
    signature: str
    checkpoint: Path | None


@dataclass
class Prepared(Claim):
    """A run that is ready to begin or to continue."""

    datamodule: Any
    system: System
    start: WarmStart | None


def train(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Path:
    """``kinoscope.train(["experiment=…", …])``: trains from a notebook or a script.

    Args:
        overrides: what would follow ``python -m train`` on the command line (one run, no sweep).
        config_dir: a folder of your own yaml, as ``--config-dir``.

    Returns:
        The run's folder, ready for `kinoscope.load_run`.

    Raises:
        Refusal: a fault in the overrides, config or data; nothing was started.
        KinoscopeError: the run failed, or was interrupted.
    """
    stopwatch.begin()
    config = compose_checked("train", list(overrides), config_dir)
    with after_stages(config, overrides, config_dir) as left:
        processes = ranks.to_start("train", left, overrides)
        if processes:
            folders: list[str] = []
            ranks.supervise("train", left, overrides, processes, result=folders.append)
            return Path(folders[-1])
        return execute(left, list(overrides))


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """The verb: trains, and prints the run's folder as the last line of stdout, also of a run that did not finish."""
    made: list[Path] = []

    def begun(folder: Path) -> None:
        made.append(folder)
        tell(folder)

    try:
        execute(config, overrides, begun)
    finally:
        for folder in made:
            show(folder)
    return 0


def execute(config: DictConfig, overrides: Sequence[str], begun: Callable[[Path], None] = lambda folder: None) -> Path:
    """Prepares, trains and tests one run; returns its folder, and tells it to ``begun`` as soon as there is one."""
    with StopRequest() as stop:
        found = resume.find(config, overrides)
        if found.finished:
            log.info("'%s' is finished; nothing is left to do (raise trainer.max_epochs to go on)", found.finished.path)
            rank_zero_only(begun)(found.finished.path)
            return found.finished.path
        pl.seed_everything(found.config.seed, workers=False, verbose=False)
        datamodule, system, trainer = parts(found.config)
        start = _warm_start(found.config, found.folder, system, config.check)
        if config.check:
            from kinoscope.verbs.check import check

            check(found.config, datamodule, system)
            return Path()
        with agreement.joined(trainer, system):
            agreement.together(lambda: datamodule.prepare_data() if trainer.local_rank == 0 else None)
            agreement.together(lambda: datamodule.setup("fit"))
            _require_same_command(found.config, datamodule)
            agreement.together(lambda: _require_no(stop))
            claim = agreement.from_zero(lambda: _claim(found, datamodule, trainer.world_size, start))
            torch.set_num_threads(claim.config.threads)
            run = Prepared(**vars(claim), datamodule=datamodule, system=system, start=start)
            if agreement.rank() == 0:
                begun(run.folder.path)
                with _recorded(run.folder, stop):
                    _train(run, stop)
            else:
                _train(run, stop)
        return run.folder.path


def _require_same_command(config: DictConfig, datamodule: Any) -> None:
    """Ranks that torchrun or srun has started have composed the command each for itself."""
    agreement.require_same({**essence(plain(config)), "the data": datamodule.fingerprint()})


def _require_no(stop: StopRequest) -> None:
    if stop:
        raise Interrupted(f"{stop.reason} before the run had begun; nothing was trained")


def _claim(found: resume.Found, datamodule: Any, devices: int, start: WarmStart | None) -> Claim:
    """Finds the folder to continue in, or makes one, and locks it."""
    config = found.config
    identity = found.folder and found.folder.read_summary()["signature"]  # a prolonged run keeps its own
    identity = identity or signature(plain(config), datamodule.fingerprint(), devices)
    folder = found.folder or resume.newest(config, identity)
    if folder is not None and found.folder is None:
        resume.take_up(config, folder)
    config.threads = config.threads or _threads(int(config.data.get("workers", 0)), ranks.on_this_node(config.trainer))
    if folder is None:
        return Claim(config, _create(config, datamodule, identity, devices, start), identity, None)
    resume.warn_of_changed_commit(folder)
    folder.lock()
    begun = folder.provenance_file.exists()
    if not begun:  # made with its stages, before its turn came
        folder.write_summary(devices=devices)
        _trace(folder, config, datamodule, start)
    resume.require_same_devices(folder, devices)
    resume.require_same_data(folder, datamodule.fingerprint())
    resume.require_same_start(folder, start)
    checkpoint = resumable(folder, identity)
    folder.drop_unfinished_writes()
    # Before the config: a longer training is not finished any more.
    folder.write_summary(status="running", signature=identity)
    write_text(folder.config_file, OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    if checkpoint is None:
        folder.begin_anew()
    if begun:
        log.info("resuming '%s' from %s", folder.path, checkpoint or "its beginning: it has no checkpoint yet")
    return Claim(config, folder, identity, checkpoint)


def _threads(workers: int, ranks_here: int) -> int:
    """The cores that the loader's workers leave to a training process, which may be one of several on this node.

    torch takes every core for itself, and then waits for those threads whose core a worker has. The number is kept in
    the run's config: sums are equal to the last bit only where it is the same.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else max(1, cores() // ranks_here - workers)


def _require_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise Refusal(f"threads must be at least 1, got {threads}; null takes the cores that data.workers leave")


def parts(config: DictConfig) -> tuple[Any, System, pl.Trainer]:
    """Data, system and a first Trainer, and with them everything that can be refused before a folder is made."""
    faults: list[str] = []

    def tried(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except Refusal as refusal:
            faults.append(str(refusal))

    tried(lambda: require_writable(config.output_dir))
    tried(lambda: _require_threads(config.threads))
    datamodule = tried(lambda: build_datamodule(config))
    system = tried(lambda: build_system(config))
    trainer = None
    tried(lambda: try_callbacks(config))
    if system is not None:
        tried(lambda: system.freeze_named(config.freeze))
        tried(lambda: try_network(system))
        tried(lambda: try_optimizers(system))
        trainer = tried(lambda: try_trainer(config, system))
    if faults:
        raise Refusal("; ".join(faults))
    assert system is not None
    assert trainer is not None
    return datamodule, system, trainer


def _warm_start(config: DictConfig, folder: RunFolder | None, system: System, check: bool) -> WarmStart | None:
    """What the run begins with; None where it has begun, or where it is only checked and its stages are not trained."""
    if config.init_from is None or (folder is not None and folder.checkpoint("last").exists()):
        return None
    source = source_of(config.init_from, folder)
    if check and config.init_from.startswith(STAGE) and not RunFolder.open(source).checkpoint("last").exists():
        return None
    return warm_start.read(source, system, config.fresh)


def _create(config: DictConfig, datamodule: Any, identity: str, devices: int, start: WarmStart | None) -> RunFolder:
    folder = RunFolder.create(config.output_dir, config.name, identity)
    folder.lock()
    try:
        _describe(folder, config, datamodule, identity, devices, start)
    except KinoscopeError as error:
        folder.unlock()
        shutil.rmtree(folder.path, ignore_errors=True)
        raise Refusal(f"output_dir: {error}") from error
    return folder


def _trace(folder: RunFolder, config: DictConfig, datamodule: Any, start: WarmStart | None) -> None:
    origin = provenance.collect(config.seed, datamodule.fingerprint(), start and start.origin)
    write_json(folder.provenance_file, origin)


def _describe(
    folder: RunFolder, config: DictConfig, datamodule: Any, identity: str, devices: int, start: WarmStart | None
) -> None:
    """What makes a folder a run's; ``summary.json`` comes last."""
    write_text(folder.config_file, OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    _trace(folder, config, datamodule, start)
    folder.write_summary(
        status="running", signature=identity, devices=devices, seconds=0.0, steps=0, monitor=config.monitor,
        best={}, last={}, test={}, time={}, memory={},
    )  # fmt: skip


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
        cause = None if isinstance(error, KinoscopeError) else (type(error), error, error.__traceback__)
        # To the file alone: whoever called shows what is raised.
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "failed: %s", (error,), cause))
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
        "run_id": f"{run.signature}-{folder.stamp}",
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
    callbacks.insert(0, LastWindow())
    if agreement.is_joined():
        callbacks.append(agreement.OneOfSeveral(config.seed))
    second = build_logger(config, context) if agreement.rank() == 0 else None
    loggers = [metrics, *([second] if second else [])]
    exit_code = 1
    try:
        with quiet():
            trainer = build_trainer(config, run.system, folder.path, callbacks, loggers, plugins=[AtomicCheckpointIO()])
            if run.start is not None and run.checkpoint is None:
                run.start.apply(run.system)
            tune(run.system, config.get("compile"), config.get("channels_last"))
            trainer.fit(
                run.system,
                datamodule=run.datamodule,
                ckpt_path=run.checkpoint and str(run.checkpoint),
                weights_only=True,
            )
            tested = _test(trainer, run)
            skipped = agreement.left_out(run.datamodule)
        if agreement.rank() == 0:
            folder.write_summary(skipped=skipped)
        exit_code = 0
        _say(folder, tested)
    except Interrupted as error:
        exit_code = error.exit_code
        raise
    except RuntimeError as error:
        operation, lacking, _ = str(error).partition(" does not have a deterministic implementation")
        if not lacking:
            raise
        raise KinoscopeError(
            f"deterministic=true: {operation} has no deterministic form on this device; choose deterministic=warn to "
            "be told of such operations, or leave it out"
        ) from error
    finally:
        if isinstance(second, WandB):
            second.finish(exit_code, sys.exception() if exit_code else None)


def _test(trainer: pl.Trainer, run: Prepared) -> Mapping[str, float]:
    """Tests the best checkpoint (the last, where nothing is monitored) and writes the result down."""
    kept = (run.folder.checkpoint("best"), run.folder.checkpoint("last"))
    path = agreement.from_zero(lambda: next((file for file in kept if file.exists()), None))
    if trainer.limit_test_batches == 0 or path is None:
        return {}
    trainer.test(run.system, datamodule=run.datamodule, ckpt_path=str(path), weights_only=True, verbose=False)
    tested = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    if agreement.rank() == 0:
        run.folder.write_summary(test=tested)
    return tested


def _say(folder: RunFolder, tested: Mapping[str, float]) -> None:
    for name, value in sorted(tested.items()):
        log.info("%s = %.4g", name, value)
    summary = folder.read_summary()
    seconds = summary["seconds"]
    if summary.get("time"):
        log.info("%s", in_one_line(summary))
    log.info("finished in %s, steps and metrics in %s", time.strftime("%H:%M:%S", time.gmtime(seconds)), folder.path)
