"""Weights & Biases: begun without a prompt, kept without a network, ended with the run's exit code.

Nothing that W&B does may stop or hold up a training. Online mode waits for its server for a bounded time, at the
beginning and at the end; whatever does not arrive lies in the run folder, and ``kinoscope sync`` sends it later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kinoscope.errors import Interrupted, KinoscopeError
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.loggers import Histogram
from kinoscope.runs.wandb_files import UNSENT, has_account, marked

log = logging.getLogger("kinoscope")

Mode = Literal["offline", "online", "disabled"]

PATIENCE = 240.0  # seconds for W&B's own process on a busy machine, where there is no server to wait for
LONGEST_TAG = 64  # characters; W&B refuses more


class WandB(Logger):
    """Weights & Biases, with the system's clock as every x-axis.

    Args:
        run: an initialised ``wandb`` run.
        folder: the run's folder.
        artifacts: whether the best checkpoint and the config are uploaded at the end.
    """

    def __init__(self, run: Any, folder: RunFolder, artifacts: bool = False) -> None:
        super().__init__()
        self.run = run
        self.folder = folder
        self.artifacts = artifacts
        self._gone = False
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")  # never step=: W&B drops what arrives out of order there
        if not run.offline and not run.disabled:
            marked(_file(run), UNSENT).touch()

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.run.id

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config is handed over when the run begins."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            self._send({**metrics, "step": step})
        except Exception as error:  # its own process is gone, or someone has ended the run
            self._gone = True
            log.warning("W&B has gone (%s); the run goes on, and what it logs is in metrics.csv", _said(error))

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Any]) -> None:
        """Pictures: PIL images, arrays or paths."""
        self._send({key: [_shown(image) for image in images]})

    @rank_zero_only
    def log_video(self, key: str, path: Path) -> None:
        """An encoded video file, copied as it is."""
        self._send({key: _shown(path)})

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Words, numbers, PIL images and paths of mp4 files, which play in their cells."""
        import wandb

        data = [[_shown(cell) for cell in row] for row in rows]
        with _staging_in(self.folder.path / "wandb"):
            self._send({key: wandb.Table(columns=list(columns), data=data)})

    @rank_zero_only
    def log_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        import wandb

        content = {name: wandb.Histogram(np_histogram=histogram) for name, histogram in histograms.items()}
        self._send({**content, "step": step})

    def _send(self, content: Mapping[str, Any]) -> None:
        if not self._gone:
            self.run.log(dict(content))

    @rank_zero_only
    def finish(self, exit_code: int, failure: BaseException | None = None) -> None:
        """Ends the run with its exit code. Never raises, and waits for a server no longer than the run was told to.

        The summary shows the best checkpoint's metrics and the test's, not the last ones, and what the run has cost. A
        run that failed alerts.

        Args:
            exit_code: of the training.
            failure: what ended it, if it did not finish.
        """
        try:
            if not self._gone:
                self._conclude(failure)
                if self.artifacts and exit_code == 0:
                    self._upload()
        except Exception as error:  # no training fails for W&B
            log.warning(
                "W&B did not take all of the run's results (%s); they are in %s", _said(error), self.folder.path
            )
        try:
            if not self._gone:
                self.run.finish(exit_code=exit_code)
                marked(_file(self.run), UNSENT).unlink(missing_ok=True)
                return
        except Exception as error:  # a TimeoutError where the server does not answer
            log.warning("W&B did not confirm the end of the run (%s)", _said(error))
        import wandb

        with contextlib.suppress(Exception):  # else its exit hook meets the same fault, with a traceback
            wandb.teardown(exit_code)
        log.warning("what W&B was told is kept; to send it: kinoscope sync output_dir=%s", self.folder.path)

    def _conclude(self, failure: BaseException | None) -> None:
        summary = self.folder.read_summary()
        best = {("best/step" if name == "step" else name): value for name, value in summary["best"].items()}
        spent = {
            f"{part}/{name}": value for part in ("time", "memory") for name, value in summary.get(part, {}).items()
        }
        self.run.summary.update({**best, **summary["test"], **spent})
        if isinstance(failure, Interrupted):
            self.run.mark_preempting()  # shown as preempted, not as failed: it is to be continued
        elif failure is not None and not isinstance(failure, KeyboardInterrupt | SystemExit):
            text = f"{_said(failure)}\n{self.folder.path}"
            self.run.alert(f"{self.run.group} failed", text, level="ERROR")

    def _upload(self) -> None:
        """The best checkpoint (the last, where nothing is monitored) with its config, as one artifact."""
        if self.run.offline or self.run.disabled:
            log.info("W&B: logger.artifacts needs logger.mode=online; the checkpoint stays in %s", self.folder.path)
            return
        import wandb

        best = self.folder.checkpoint("best")
        path = best if best.exists() else self.folder.checkpoint("last")
        artifact = wandb.Artifact(f"run-{self.run.id}", type="model", metadata=self.folder.read_summary()["best"])
        for file in (path, self.folder.config_file):
            # Immutable: a checkpoint is replaced, never changed, so W&B need not copy it first.
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact, aliases=[path.stem])


@contextlib.contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """W&B copies what a table shows into the user's home, until it is sent; a run keeps what is its own."""
    name = "WANDB_DATA_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ[name]


def _shown(content: Any) -> Any:
    """What W&B makes of a cell or a picture: media for PIL images and files, anything else as it is."""
    import wandb
    from PIL.Image import Image

    if isinstance(content, Path) and content.suffix == ".mp4":
        return wandb.Video(str(content), format="mp4")
    if isinstance(content, Path | Image):
        return wandb.Image(str(content) if isinstance(content, Path) else content)
    return content


def _said(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _file(run: Any) -> Path:
    """The file that W&B keeps its records in."""
    return Path(run.settings.sync_file)


def wandb_logger(
    run: RunFolder,
    config: Mapping[str, Any],
    run_id: str,
    name: str,
    project: str = "kinoscope",
    entity: str | None = None,
    mode: Mode = "offline",
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
    timeout: float = 20.0,
    finish_timeout: float = 60.0,
    artifacts: bool = False,
) -> WandB:
    """Begins a W&B run. It never prompts, and no network is needed: online falls back to offline, and says so.

    Args:
        run: the run folder; W&B writes below it.
        config: the resolved config, shown once.
        run_id: begins with the signature; the same on resume.
        name: the experiment's name, which is also the default group.
        project: W&B project.
        entity: W&B team or user.
        mode: where the run is written.
        group: runs that belong together; the experiment by default.
        job_type: what kind of job it is.
        tags: shown in the W&B table, beside the family, the paper's year and the lecture, from the card.
        timeout: seconds to wait for W&B's server in online mode.
        finish_timeout: seconds to wait at the end until it has taken everything.
        artifacts: upload the best checkpoint and the config at the end; online mode only.
    """
    import wandb

    if mode == "online" and not has_account():
        log.warning("W&B: no API key, so this run is kept offline; 'wandb login' once, then 'kinoscope sync' sends it")
        mode = "offline"

    def begin(mode: Mode) -> WandB:
        started = wandb.init(
            dir=run.path.resolve(),  # W&B's service outlives a change of directory, and keeps its own
            id=run_id,
            # Offline too: it is written down, and a later sync joins the parts of a resumed run to one.
            resume="allow",
            project=project,
            entity=entity,
            mode=mode,
            name=run.path.name,
            group=group or name,
            job_type=job_type,
            tags=[tag[:LONGEST_TAG] for tag in dict.fromkeys((*_card_tags(config.get("card") or {}, name), *tags))],
            config={**config, "provenance": _provenance(run)},
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=timeout if mode == "online" else PATIENCE,
                finish_timeout=finish_timeout,
                finish_timeout_raises=True,
            ),
        )
        return WandB(started, run, artifacts)

    try:
        return begin(mode)
    except Exception as error:  # whatever W&B says, a training does not fail for it
        if mode != "online":
            raise KinoscopeError(
                f"W&B could not begin a run ({_said(error)}); choose logger=csv to do without"
            ) from error
        log.warning("W&B is out of reach (%s); this run is kept offline, 'kinoscope sync' sends it later", _said(error))
        wandb.teardown(1)  # its service still holds the run's id
        return begin("offline")


def _provenance(run: RunFolder) -> dict[str, Any]:
    """What `provenance.json` holds, less the text of uncommitted changes: W&B's config is a table of values."""
    if not run.provenance_file.exists():
        return {}
    content = json.loads(run.provenance_file.read_text())
    if content.get("git"):
        content["git"].pop("diff", None)
    return content


def _card_tags(card: Mapping[str, Any], name: str) -> list[str]:
    return [name.partition("/")[0], *(str(card[key]) for key in ("year", "lecture") if card.get(key))]
