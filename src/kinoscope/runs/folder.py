"""A run on disk: one folder, one identity, one process at a time.

outputs/<experiment>/<date_time>-<signature>/
config.yaml  provenance.json  train.log  metrics.csv  summary.json
checkpoints/{best,last,previous}.ckpt  pictures/  wandb/
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from kinoscope.errors import KinoscopeError, Refusal

if TYPE_CHECKING:
    from omegaconf import DictConfig

TELL = "KINOSCOPE_TELL"  # names a file in which whoever started this process looks for its run folder
Status = Literal["running", "interrupted", "failed", "finished"]


class RunFolder:
    """The files of one run. Use `create` or `open`.

    Attributes:
        path: the folder, relative to the working directory where it can be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(str(path / ".lock"))

    def __reduce__(self) -> tuple[type[RunFolder], tuple[Path]]:
        return type(self), (self.path,)  # in another process, the same folder without this one's lock

    @classmethod
    def create(cls, output_dir: str | Path, name: str, signature: str) -> RunFolder:
        """Makes ``<output_dir>/<name>/<date_time>-<signature>``. Raises `Refusal` where nothing can be written."""
        parent = Path(output_dir) / name
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(1, 1000):  # two runs may start in one second
                path = parent / (f"{stamp}-{signature}" if attempt == 1 else f"{stamp}.{attempt}-{signature}")
                try:
                    return cls.make(path)
                except FileExistsError:
                    continue
            raise OSError("a thousand runs in one second")
        except OSError as error:
            raise Refusal(f"output_dir: no run folder can be made in '{parent}' ({error.strerror or error})") from error

    @classmethod
    def make(cls, path: Path) -> RunFolder:
        """An empty run folder at ``path``. Raises `OSError`, `FileExistsError` if there is something already."""
        path.mkdir(parents=True)
        for inner in ("checkpoints", "pictures"):
            (path / inner).mkdir()
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run's folder. Raises `Refusal` if it is not one."""
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise Refusal(f"'{path}' is not a folder; runs lie in outputs/<experiment>/<date_time>-<signature>")
        missing = [file.name for file in (folder.config_file, folder.summary_file) if not file.is_file()]
        if missing:
            raise Refusal(f"'{path}' is not a run folder: it holds no {' and no '.join(missing)}")
        return folder

    @property
    def stamp(self) -> str:
        """When the run began, from its folder's name; a stage's is its run's, with its own name."""
        if self.path.parent.name == "stages":
            return f"{RunFolder(self.path.parent.parent).stamp}-{self.path.name}".replace("_", "-")
        return self.path.name.rpartition("-")[0].replace("_", "-")

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance_file(self) -> Path:
        return self.path / "provenance.json"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def log_file(self) -> Path:
        return self.path / "train.log"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def checkpoint(self, name: Literal["best", "last", "previous"]) -> Path:
        return self.path / "checkpoints" / f"{name}.ckpt"

    def trained(self, name: Literal["best", "last"] = "best") -> Path:
        """What the run has come to: the checkpoint of that name; ``best`` is ``last`` where nothing is monitored.

        Raises:
            Refusal: there is none yet.
        """
        paths = [self.checkpoint(name), self.checkpoint("last")]
        for path in paths:
            if path.exists():
                return path
        raise Refusal(f"'{self.path}' holds no checkpoint yet: let it train first, or resume it")

    def lock(self) -> None:
        """Claims the folder for this process until it ends. Raises `Refusal` while another process works in it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Refusal(f"another process is working in '{self.path}': wait for it, or stop it first") from None
        except OSError as error:
            raise Refusal(f"'{self.path}' cannot be worked in ({error.strerror or error})") from error

    def is_live(self) -> bool:
        """Whether a process holds the folder's lock now. It is freed when that process ends, however it ends."""
        lock = self.path / ".lock"
        if not lock.exists():
            return False
        try:
            with FileLock(str(lock), timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that may only be read; whoever works there may write
            return _is_held(lock)

    def unlock(self) -> None:
        self._lock.release()

    def drop_unfinished_writes(self) -> None:
        """Removes the temporary files that a kill in the middle of a write leaves; only for the folder's owner."""
        for leftover in (*self.path.glob(".*.*.*"), *(self.path / "checkpoints").glob(".*")):
            leftover.unlink(missing_ok=True)

    def begin_anew(self) -> None:
        """Drops what a run left that never got as far as its first ``last.ckpt``."""
        self.metrics_file.unlink(missing_ok=True)
        self.checkpoint("best").unlink(missing_ok=True)
        self.write_summary(seconds=0.0, steps=0, best={}, last={}, test={}, time={}, memory={})

    def read_config(self) -> DictConfig:
        """The run's config, resolved, in today's names. Raises `Refusal` if the file is damaged."""
        from omegaconf import DictConfig, OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        from kinoscope.runs.renames import current

        try:
            config = OmegaConf.load(self.config_file)
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            raise Refusal(f"'{self.config_file}' is damaged ({reason}); take it back from a copy") from None
        if not isinstance(config, DictConfig) or not {"model", "data"} <= config.keys():
            raise Refusal(f"'{self.config_file}' is not a run's config")
        return current(config)

    def read_summary(self) -> dict[str, Any]:
        try:
            return json.loads(self.summary_file.read_text())
        except ValueError as error:
            raise Refusal(f"'{self.summary_file}' is damaged ({error}); take it back from a copy") from None

    def write_summary(self, **fields: Any) -> None:
        """Updates some fields of ``summary.json``; readers see the old file or the new one, never half."""
        summary = self.read_summary() if self.summary_file.exists() else {}
        write_json(self.summary_file, {**summary, **fields})


def _is_held(lock: Path) -> bool:
    """What FileLock would say, if the file could be written."""
    try:
        import fcntl

        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def require_writable(output_dir: str | Path) -> None:
    """Raises `Refusal` where no folder can be made in ``output_dir``, and leaves nothing behind."""
    nearest = Path(output_dir).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    try:
        Path(tempfile.mkdtemp(prefix=".kinoscope-", dir=nearest)).rmdir()
    except OSError as error:
        raise Refusal(f"output_dir: nothing can be written in '{nearest}' ({error.strerror or error})") from error


def tell(folder: Path) -> None:
    """Notes a run's folder for whoever started this process and wants to know it before the run ends."""
    note = os.environ.pop(TELL, None)  # it is not for this process's own children
    if note is not None:
        write_text(Path(note), f"{folder}\n")


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to a temporary neighbour and renames it over ``path``. Raises `KinoscopeError` if it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise KinoscopeError(f"'{path}' cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
