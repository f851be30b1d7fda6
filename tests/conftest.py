"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two workers of pytest share the machine, and an exact comparison needs the same thread count everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing a test does may look for an account or a network.
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture
def datasets() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not named."""
    folder = os.environ.get("KINOSCOPE_DATASETS")
    if not folder:
        pytest.skip("KINOSCOPE_DATASETS is not set")
    return Path(folder)
