"""Processes that this one starts, owns and ends: jobs of a sweep, stages of a run, ranks of a job.

Each child leads a session of its own, so that Ctrl-C at the terminal reaches the owner alone, who decides, and so that
whatever a child has started (loader workers, decoders, ranks) can be ended with it. A tether is the other direction:
the read end of a pipe whose write end only the owner holds. It closes when the owner ends, by SIGKILL too; the child
then asks itself to stop as if by SIGTERM, which saves a run, and is gone a while later in any case.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any

TETHER = "KINOSCOPE_TETHER"
# What asks a process of ours to stop: Ctrl-C, a kill or a preemption, and a cluster's warning before its time is up,
# which is SIGUSR1 by custom and SIGUSR2 from submitit. Left alone, either would end the process.
STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
GRACE = 10.0  # seconds between asking a child to end and killing what is left of it
LAST_SAVE = 60.0  # seconds that a child without an owner has for saving itself


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Child:
    """A command in a process group of its own, which does not outlive its owner.

    Args:
        command: program and arguments.
        environment: what is added to this process's environment.
        stdout: as `subprocess.Popen`'s; with ``subprocess.PIPE`` the stream is text.
        stderr: likewise.
        stdin: likewise.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> None:
        theirs, self._ours = os.pipe()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {}), TETHER: f"{theirs} {os.getpid()}"},
                start_new_session=True,
                pass_fds=(theirs,),
            )
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[str]:
        assert self._process.stderr is not None
        return self._process.stderr

    def poll(self) -> int | None:
        """The exit code (minus the signal's number if one ended it), or None while the child runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the exit code. Raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout)

    def signal(self, number: int) -> None:
        """To the leader alone; it decides about the rest of its group."""
        if self.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the whole group at once."""
        _kill_group(self.pid)

    def end(self, grace: float = GRACE) -> int:
        """Asks the child to end if it still runs, kills what is left of its group, and returns its exit code."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(grace)
        self.kill()
        code = self.wait()
        with contextlib.suppress(OSError):
            os.close(self._ours)
        self._ours = -1
        return code


@contextlib.contextmanager
def listening(answer: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, ``answer`` handles whatever asks this process to stop, the end of its terminal included.

    What is ignored stays ignored: under nohup it outlives its terminal. Outside of the main thread Python allows no
    handlers, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = (*STOP_SIGNALS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
    before = {n: signal.signal(n, answer) for n in ours if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold_tether() -> None:
    """In a child: from now on, the end of the owner is this process's SIGTERM. Does nothing in any other process."""
    if TETHER not in os.environ:
        return
    threading.Thread(target=_watch, args=_take_tether(), name="tether", daemon=True).start()


def end_with_owner() -> None:
    """In a child whose work is worth nothing half done: the end of the owner is its end.

    At once, and also in the midst of native code that keeps Python's lock, where no thread and no handler runs.
    """
    tether, _ = _take_tether()
    if hasattr(os, "O_ASYNC"):  # where it is not, the child ends when it reads its next order
        import fcntl

        fcntl.fcntl(tether, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(tether, fcntl.F_SETFL, os.O_ASYNC)  # SIGIO when the pipe closes, which ends whoever has no handler
        if select.select([tether], [], [], 0)[0]:  # it closed before that
            os._exit(1)


def _take_tether() -> tuple[int, int]:
    """The tether and the owner's number. Neither is for this process's own children."""
    tether, owner = map(int, os.environ.pop(TETHER).split())
    os.set_inheritable(tether, False)
    return tether, owner


def _watch(tether: int, owner: int) -> None:
    poll = select.poll()
    for descriptor in (1, 2, tether):
        poll.register(descriptor, 0)  # that the other end of a pipe is gone is reported unasked
    deadline = float("inf")
    while (left := deadline - time.monotonic()) > 0:
        broken = poll.poll(left * 1000 if left < float("inf") else None)
        if tether in dict(broken):  # a process that ends closes one pipe after the other, and is gone after the last
            until = time.monotonic() + GRACE
            while os.getppid() == owner and time.monotonic() < until:
                time.sleep(0.01)
            broken = poll.poll(0)  # 1 and 2 before the tether, as they were registered
        for descriptor, _ in broken:
            poll.unregister(descriptor)
            if descriptor != tether:  # nobody reads it any more, and what is said there must not end the last save
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
                continue
            deadline = time.monotonic() + LAST_SAVE
            with contextlib.suppress(OSError):
                print("kinoscope: the process that started this one is gone; stopping", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
    _kill_group(os.getpgrp() if os.getpgrp() == os.getpid() else 0)
    os._exit(1)


def _kill_group(group: int) -> None:
    if group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
