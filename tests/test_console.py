from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinoscope.console import show


def test_each_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show("a", Path("b"))
    show()
    assert capsys.readouterr().out == "a\nb\n"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["report", "runs=nowhere"]])
def test_a_reader_that_has_gone_is_no_fault(words: list[str]) -> None:
    """As in ``kinoscope train --help | head -1``; what the command itself has to complain of is still said."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kinoscope", *words], stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(theirs)
    assert done.returncode == (2 if "runs=nowhere" in words else 0), done.stderr
    assert done.stderr.count("\n") == done.stderr.count("kinoscope: ") == (1 if done.returncode else 0)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_what_comes_later_is_dropped_too() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    program = (
        "from kinoscope.console import show; show('a'); show('b'); import sys; print('c'); print('d', file=sys.stderr)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "d\n")
