"""A sweep on disk. Its runs are ordinary run folders, and lie where all others do.

outputs/sweeps/<date_time>/
sweep.csv  best.json  pictures/  jobs/<number>: each job's run folder
sweep.json, study.db: only of a search; the command, and what optuna knows
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kinoscope.errors import Refusal
from kinoscope.runs.folder import write_json


class SweepFolder:
    """The files of one sweep. Use `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(str(path / ".lock"))

    @classmethod
    def create(cls, path: Path) -> SweepFolder:
        """Makes the folder; if there is one of that name (two sweeps began in one second), another beside it."""
        for attempt in range(1, 1000):
            own = path if attempt == 1 else path.with_name(f"{path.name}.{attempt}")
            try:
                own.mkdir(parents=True)
                return cls(own)
            except FileExistsError:
                continue
            except OSError as error:
                raise Refusal(f"output_dir: no folder can be made in '{own.parent}' ({error.strerror})") from error
        raise Refusal(f"output_dir: a thousand sweeps of one second lie in '{path.parent}'")

    @classmethod
    def named(cls, output_dir: str) -> SweepFolder:
        """A new one, called after the time."""
        return cls.create(Path(output_dir) / "sweeps" / time.strftime("%Y-%m-%d_%H-%M-%S"))

    @classmethod
    def open(cls, path: str | Path) -> SweepFolder:
        """The folder of a search that can go on. Raises `Refusal` if it is not one."""
        folder = cls(Path(path))
        if not folder.command_file.is_file():
            raise Refusal(f"sweep.resume: '{path}' is not the folder of a search, it holds no sweep.json")
        return folder

    @property
    def command_file(self) -> Path:
        return self.path / "sweep.json"

    @property
    def notes(self) -> Path:
        return self.path / "jobs"

    @property
    def study(self) -> Path:
        """What optuna knows of a search, a SQLite file."""
        return self.path / "study.db"

    def lock(self) -> None:
        """Claims the folder for this process until it ends. Raises `Refusal` while another process works in it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Refusal(f"sweep.resume: another process is working in '{self.path}': stop it first") from None

    def write_command(self, **content: Any) -> None:
        write_json(self.command_file, content)

    def read_command(self) -> dict[str, Any]:
        try:
            return json.loads(self.command_file.read_text())
        except ValueError as error:
            raise Refusal(f"'{self.command_file}' is damaged ({error}); start a new sweep") from None

    def run_of(self, number: int) -> str:
        """The run folder that a job noted; empty if it never got so far."""
        note = self.notes / str(number)
        return note.read_text().strip() if note.is_file() else ""
