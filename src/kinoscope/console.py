"""Stdout, which is for results alone: what a verb is called for. All that is said on the way goes to stderr."""

from __future__ import annotations

import os
import sys


def show(*lines: object) -> None:
    """Puts lines on stdout, at once; where nobody reads it any more (``| head``), they and all to come are dropped."""
    if not lines:
        return
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
