"""Calls in child processes that can be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kinoscope.data import children
from kinoscope.data.children import in_children
from kinoscope.errors import KinoscopeError


def test_every_call_is_answered_once() -> None:
    outcomes = sorted(in_children("os.path:basename", [(f"a/{k}",) for k in range(50)], 2), key=lambda o: o.call)
    assert [outcome.value for outcome in outcomes] == [str(k) for k in range(50)]
    assert not any(outcome.fault for outcome in outcomes)
    assert list(in_children("os.path:basename", [], 2)) == []


def test_a_spinning_call_is_killed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    call = children._Child.call

    def limited(child: children._Child, number: int, arguments: Any, time_limit: float) -> children.Outcome:
        """Only the call that spins is ended soon: the others may meet a busy machine."""
        return call(child, number, arguments, 0.5 if number == 1 else time_limit)

    monkeypatch.setattr(children._Child, "call", limited)
    began = time.monotonic()
    calls = [(0.0,), (6000.0,), (0.0,), (0.0,)]
    outcomes = {outcome.call: outcome for outcome in in_children("time:sleep", calls, 1, time_limit=120.0)}
    assert time.monotonic() - began < 500
    assert outcomes[1].fault == "took more than 0.5 s and was stopped"
    assert [outcomes[k].fault for k in (0, 2, 3)] == [None] * 3


def test_a_suspension_is_not_a_call_that_takes_too_long(tmp_path: Path) -> None:
    """Ctrl-Z, or a machine that freezes a job: parent and child stand still for longer than the limit.

    By the parent's clock it is a thousand seconds. The parent looks at it a few times before and after, of which the
    call knows nothing: it lasts until then.
    """
    code = """if True:
        import sys, time
        from pathlib import Path
        from types import SimpleNamespace
        from kinoscope.data import children

        begun, until, suspended = map(Path, sys.argv[1:])
        before = after = 0

        def monotonic():
            global before, after
            was_suspended = suspended.exists()
            before += begun.exists() and not was_suspended
            after += was_suspended
            if after == 4:
                until.touch()
            elif before == 4 and not after:
                print("watched", flush=True)
            return time.monotonic() + 1000.0 * was_suspended

        children.TICK = 0.1
        children.time = SimpleNamespace(monotonic=monotonic)
        calls = [("/dev/null", "/dev/null"), sys.argv[1:3]]
        for outcome in children.in_children("preparing:waits", calls, 1, time_limit=300.0):
            print(outcome.value, outcome.fault, flush=True)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("begun", "until", "suspended"))]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    both = [process.pid]
    try:
        first = process.stdout.readline()
        both.append(int(first.split()[0]))
        assert process.stdout.readline() == "watched\n"
        for each in both:
            os.kill(each, signal.SIGSTOP)
        time.sleep(0.5)
        (tmp_path / "suspended").touch()
        for each in both:
            os.kill(each, signal.SIGCONT)
        assert process.stdout.readline() == first == f"{both[1]} None\n"  # from the same child
    finally:
        for each in both:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.communicate()


def test_a_crash_is_reported_and_the_others_go_on() -> None:
    # os._exit(code) ends the child without an answer, as a decoder's segmentation fault would.
    outcomes = {outcome.call: outcome for outcome in in_children("os:_exit", [(3,), (4,)], 1)}
    assert outcomes[0].fault == "ended the process that worked on it (exit code 3)"
    assert outcomes[1].fault == "ended the process that worked on it (exit code 4)"
    signalled = next(in_children("os:abort", [()], 1))
    assert signalled.fault == "ended the process that worked on it (SIGABRT)"


def test_an_exception_in_the_child_ends_the_parents_loop() -> None:
    with pytest.raises(KinoscopeError, match="FileNotFoundError"):
        list(in_children("os:listdir", [("/does/not/exist",)], 1))


def test_an_abandoned_loop_leaves_no_child() -> None:
    began = time.monotonic()
    outcomes = in_children("time:sleep", [(0.0,), (6000.0,)], 2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 500


def test_a_child_that_cannot_start_is_reported() -> None:
    with pytest.raises(KinoscopeError, match="cannot be started"):
        list(in_children("no.such.module:f", [()], 1))
