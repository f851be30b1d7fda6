"""kinoscope: the classic papers of video recognition and generative modelling as experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinoscope.runs.load import Run, load_run
    from kinoscope.verbs.train import train

__all__ = ["Run", "load_run", "train"]

_HOMES = {"Run": "kinoscope.runs.load", "load_run": "kinoscope.runs.load", "train": "kinoscope.verbs.train"}


def __getattr__(name: str) -> Any:
    """Imports torch and Lightning only when something that needs them is asked for."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kinoscope' has no attribute '{name}'")
