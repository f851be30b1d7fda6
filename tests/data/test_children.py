"""Calls in child processes that can be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinoscope.data.children import in_children
from kinoscope.errors import KinoscopeError


def test_every_call_is_answered_once() -> None:
    outcomes = sorted(in_children("os.path:basename", [(f"a/{k}",) for k in range(50)], 2), key=lambda o: o.call)
    assert [outcome.value for outcome in outcomes] == [str(k) for k in range(50)]
    assert not any(outcome.fault for outcome in outcomes)
    assert list(in_children("os.path:basename", [], 2)) == []


def test_a_spinning_call_is_killed_and_the_others_go_on() -> None:
    began = time.monotonic()
    calls = [(0.0,), (600.0,), (0.0,), (0.0,)]
    outcomes = {outcome.call: outcome for outcome in in_children("time:sleep", calls, 1, time_limit=2.0)}
    assert time.monotonic() - began < 60
    assert outcomes[1].fault == "took more than 2 s and was stopped"
    assert [outcomes[k].fault for k in (0, 2, 3)] == [None] * 3


def test_a_suspension_is_not_a_call_that_takes_too_long() -> None:
    """Ctrl-Z, or a machine that freezes a job: parent and child stand still for longer than the limit."""
    code = """if True:
        from kinoscope.data.children import in_children
        outcomes = in_children("preparing:steps", [(1,), (20,)], 1, time_limit=3.0)
        print(next(outcomes), flush=True)
        print(next(outcomes), flush=True)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    both = [process.pid]
    try:
        assert process.stdout.readline() == "Outcome(call=0, value=1, fault=None)\n"
        children = [file.read_text() for file in Path(f"/proc/{process.pid}/task").glob("*/children")]
        both += [int(child) for child in " ".join(children).split()]
        assert len(both) == 2
        for number, seconds in ((signal.SIGSTOP, 4.0), (signal.SIGCONT, 0.0)):
            for each in both:
                os.kill(each, number)
            time.sleep(seconds)
        assert process.stdout.readline() == "Outcome(call=1, value=20, fault=None)\n"
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
    outcomes = in_children("time:sleep", [(0.0,), (600.0,)], 2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 60


def test_a_child_that_cannot_start_is_reported() -> None:
    with pytest.raises(KinoscopeError, match="cannot be started"):
        list(in_children("no.such.module:f", [()], 1))
