"""A child outlives its owner only for as long as it needs to save itself, whatever it says meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweeping import wait_for

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
    for _ in range(32):  # more than a pipe holds, in pieces of which it takes all or nothing
        print("x" * 4095, file=stream, flush=True)
Path("saved").touch()
"""
OWNER = f"""
import subprocess, sys
from kinoscope.launch.processes import Child

child = Child([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""
ENDS = {
    "at once": "child.wait()",
    "one pipe after the other": "import os, time; os.close(child._ours); time.sleep(0.5); os._exit(0)",
}


@pytest.mark.skipif(os.name == "nt", reason="process groups")
@pytest.mark.parametrize("how", ENDS)
def test_what_nobody_reads_any_more_does_not_end_the_last_save(tmp_path: Path, how: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER + ENDS[how]], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        if how == "at once":
            owner.kill()
        wait_for((tmp_path / "saved").exists)
    finally:
        owner.communicate()
        if not (tmp_path / "saved").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
