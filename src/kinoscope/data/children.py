"""Runs a function of this package in child processes that can be killed.

A video decoder can spin for ever inside native code, where no thread or exception reaches it; only the end of its
process does. ``multiprocessing`` would do, but its ``fork`` copies locks that torch's threads hold, and its ``spawn``
runs the user's main script again. These children are plain interpreters that read calls from a pipe, as JSON lines.
They end with their parent, in the midst of a call too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from kinoscope.errors import KinoscopeError
from kinoscope.launch.processes import Child, end_with_owner

SIGN = "\n"  # an empty line instead of a reply
BEAT = 1.0  # seconds between two of them
TICK = 1.0  # seconds, at most, that a time limit counts at once


@dataclass(frozen=True)
class Outcome:
    """What became of one call: its value, or one clause that says why there is none."""

    call: int
    value: Any = None
    fault: str | None = None


def in_children(
    function: str, calls: Sequence[Sequence[Any]], workers: int, time_limit: float | None = None
) -> Iterator[Outcome]:
    """Calls a function once for each element of ``calls`` and yields the outcomes as they come, in any order.

    Args:
        function: ``package.module:name``; its arguments and its value must survive JSON.
        calls: the positional arguments of each call.
        workers: number of child processes, at most.
        time_limit: seconds without a `sign_of_life` after which a call is killed and reported; a new child goes on
            with the next. Seconds in which this process is suspended do not count. A call whose child was killed from
            outside is tried again.

    Raises:
        KinoscopeError: the function raised; what it is expected to meet, it returns.
    """
    todo = iter(enumerate(calls))
    take = threading.Lock()
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    children: list[_Child | None] = [None] * max(1, min(workers, len(calls)))
    stopped = threading.Event()

    def work(slot: int) -> None:
        try:
            while not stopped.is_set():
                with take:
                    number, arguments = next(todo, (-1, ()))
                if number < 0:
                    return
                for last in (False, False, True):
                    child = children[slot]
                    if child is None or not child.alive():
                        _kill(child)  # closes the pipes of the dead one
                        child = children[slot] = _Child(function)
                    outcome = child.call(number, arguments, time_limit)
                    if last or stopped.is_set() or not child.was_killed():
                        break
                done.put(outcome)
        except BaseException as error:  # it belongs to the thread that reads the outcomes
            done.put(error)

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(len(children))]
    try:
        for thread in threads:
            thread.start()
        for _ in range(len(calls)):
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        stopped.set()
        for slot, thread in enumerate(threads):
            while thread.is_alive():  # a thread may have been about to start its child
                _kill(children[slot])
                thread.join(0.05)
            _kill(children[slot])


def _kill(child: _Child | None) -> None:
    if child is not None:
        child.kill()


class _Child:
    """One interpreter that serves calls of one function until it is killed."""

    def __init__(self, function: str) -> None:
        # -P keeps the working directory off sys.path: a file there must not stand in for a module.
        self._process = Child(
            [sys.executable, "-P", "-c", "from kinoscope.data.children import serve; serve()", function],
            environment={"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._expired = threading.Event()
        if not self._process.stdout.readline():  # so that a call's time does not include the start and the imports
            self.kill()
            raise KinoscopeError(f"a child process for {function} cannot be started by {sys.executable}.")

    def alive(self) -> bool:
        return self._process.poll() is None

    def was_killed(self) -> bool:
        """Whether somebody else did it: a person, or a machine that is short of memory."""
        return not self._expired.is_set() and self._process.poll() in (-signal.SIGKILL, -signal.SIGTERM)

    def call(self, number: int, arguments: Sequence[Any], time_limit: float | None) -> Outcome:
        answer = ""
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            while (answer := self._answer(time_limit)) == SIGN:
                pass
        except (BrokenPipeError, ValueError):  # it died, or was killed, before it could read
            pass
        if not answer.endswith("\n"):  # or in the midst of its reply
            answer = ""
        code = self._process.wait() if not answer or self._expired.is_set() else 0
        if not answer:
            if self._expired.is_set():
                return Outcome(number, fault=f"took more than {time_limit:g} s and was stopped")
            return Outcome(number, fault=f"ended the process that worked on it ({ending(code)})")
        reply = json.loads(answer)
        if "error" in reply:
            raise KinoscopeError(reply["error"])
        return Outcome(number, value=reply["value"])

    def _answer(self, time_limit: float | None) -> str:
        """The next line; a child that gives none in time is killed."""
        if time_limit is None:
            return self._process.stdout.readline()
        answered = threading.Event()
        threading.Thread(target=self._watch, args=(time_limit, answered), daemon=True).start()
        try:
            return self._process.stdout.readline()
        finally:
            answered.set()

    def _watch(self, time_limit: float, answered: threading.Event) -> None:
        """Kills the child at its time limit. A clock would go on while all of us are suspended; ticks do not."""
        left = time_limit
        while left > 0:
            tick, began = min(TICK, left), time.monotonic()
            if answered.wait(tick):
                return
            if time.monotonic() - began < tick + TICK:  # or it was a suspension
                left -= tick
        self._expired.set()
        self._process.kill()

    def kill(self) -> None:
        self._process.end(0.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if not pipe.closed:
                with contextlib.suppress(OSError):  # an unsent call to a child that is gone
                    pipe.close()


def ending(code: int) -> str:
    """A process's exit code in words; it is negative where a signal ended it."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


_replies: IO[str] | None = None  # in a child
_last_sign = 0.0


def sign_of_life() -> None:
    """In a function that works long, from time to time: its time limit begins anew."""
    global _last_sign
    if _replies is not None and time.monotonic() - _last_sign > BEAT:
        _last_sign = time.monotonic()
        _replies.write(SIGN)
        _replies.flush()


def serve() -> None:
    """The child's main loop: one call a line in, one reply a line out."""
    global _replies
    end_with_owner()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; it decides
    _replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not reach the replies
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    _replies.write("ready\n")
    _replies.flush()
    for line in sys.stdin:
        try:
            reply = {"value": function(*json.loads(line))}
        except KinoscopeError as error:
            reply = {"error": str(error)}
        except Exception:
            reply = {"error": f"{sys.argv[1]} failed in a child process:\n{traceback.format_exc()}"}
        _replies.write(json.dumps(reply) + "\n")
        _replies.flush()
