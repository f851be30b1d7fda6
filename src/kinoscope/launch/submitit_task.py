"""What a job of a cluster does: the plain command in a process of its own, which continues its run if it has one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinoscope.errors import Interrupted, KinoscopeError
from kinoscope.launch.processes import LAST_SAVE, Child
from kinoscope.launch.ranks import is_slurm_task
from kinoscope.runs.folder import TELL

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

POLL = 0.1  # seconds between two looks at the process
AGAIN = (0, Interrupted.exit_code)  # exit codes of a run for which being asked to stop was no failure


@dataclass
class Task:
    """One run, as often as the cluster starts its job.

    The run notes its folder as soon as there is one. A job that is started again, because it asked for it or because
    its node broke down, finds the note and continues that run: same folder, same W&B run.

    Args:
        command: the program and its arguments.
        note: the file in which the run notes its folder.
        environment: what is added to the process's environment.
        time_to_save: seconds between the cluster's warning and the moment at which the run must have ended.
    """

    command: Sequence[str]
    note: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    time_to_save: float = LAST_SAVE

    def __post_init__(self) -> None:
        self._child: Child | None = None
        self._ended: list[int] = []

    def __call__(self) -> int:
        """Runs the command to its end; returns its exit code.

        submitit handles signals of its own in this process: its warning calls `checkpoint` and ends this call by an
        exception. SIGTERM alone (a preemption, or scancel) is passed on, so that the run saves itself; what follows it,
        the warning or the end of the job, decides whether there is another start.

        Raises:
            KinoscopeError: the command has failed and is one of several ranks, each a task of a SLURM step. Its process
                then ends badly, too, so that srun ends the ranks that would wait for this one.
        """
        self._child = child = Child(self._command(), {**self.environment, TELL: str(self.note)})
        # Waiting in a thread: a handler that strikes in the middle of Popen.wait could not wait for the process itself.
        threading.Thread(target=lambda: self._ended.append(child.wait()), daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, frame: child.signal(number))
        try:
            while not self._ended:
                time.sleep(POLL)
            if self._ended[0] == Interrupted.exit_code and "SLURM_JOB_ID" in os.environ:
                time.sleep(LAST_SAVE)
        finally:
            child.end()
        if is_slurm_task() and self._ended[0] not in AGAIN:
            raise KinoscopeError(f"this rank left with exit code {self._ended[0]}")
        return self._ended[0]

    def checkpoint(self) -> DelayedSubmission | None:
        """Called when the cluster warns of a preemption or of the end of the job's time: lets the run save itself.

        Returns:
            What the job does when it is started again; None if the run has failed and is not to be started again.
        """
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.signal(signal.SIGTERM)
            deadline = time.monotonic() + self.time_to_save
            while not self._ended and time.monotonic() < deadline:
                time.sleep(POLL)
        if self._ended and self._ended[0] > 0 and self._ended[0] not in AGAIN:
            return None
        return DelayedSubmission(replace(self))

    def _command(self) -> list[str]:
        known = self.note.read_text().strip() if self.note.is_file() else ""
        return [*self.command, *([f"resume={known}"] if known else [])]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.__post_init__()
