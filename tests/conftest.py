"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

# Two workers of pytest share the machine, and an exact comparison needs the same thread count everywhere.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing a test does may look for an account or a network.
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ["WANDB__SERVICE_WAIT"] = "240"  # seconds for W&B's own process to start, which are 30 otherwise
# Inside a cluster's job, too, what a test starts is a run of its own.
RANK = {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
for name in [name for name in os.environ if name in RANK or name.startswith(("SLURM_", "SUBMITIT_"))]:
    del os.environ[name]
# What is ignored (Ctrl-C in a shell's background, the end of the terminal under nohup) is inherited by what a test
# starts, and kinoscope leaves it at that. A handler that does nothing is not inherited.
if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture
def datasets() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not named."""
    folder = os.environ.get("KINOSCOPE_DATASETS")
    if not folder:
        pytest.skip("KINOSCOPE_DATASETS is not set")
    return Path(folder)
