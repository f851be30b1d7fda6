"""A child outlives its owner only for as long as it needs to save itself, whatever it says meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import signal, sys, time
from pathlib import Path
from kinoscope.launch.processes import hold_tether

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
hold_tether()
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
for stream in (sys.stdout, sys.stderr):
    print("x" * 100_000, file=stream, flush=True)  # more than a pipe holds
Path("saved").touch()
"""
OWNER = f"""
import subprocess, sys
from kinoscope.launch.processes import Child

child = Child([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_what_nobody_reads_any_more_does_not_end_the_last_save(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        owner.kill()
        until = time.monotonic() + 20
        while not (tmp_path / "saved").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / "saved").exists()
    finally:
        owner.communicate()
        if not (tmp_path / "saved").exists():
            os.killpg(child, signal.SIGKILL)
