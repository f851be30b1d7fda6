"""Real runs, killed at random moments by all that kills runs, and resumed until they are finished.

For each system one run that nobody touches is the measure: of the time over which the moments are spread evenly, and of
what the killed ones must equal to the last bit. Processes are killed and resumed in a chain, each with another number
of workers than the one before, until so many kills have struck; then the run is continued to its end. A run that ends
before a kill strikes is compared as well, and the next one begins.

``-s`` shows a line of figures for each system; ``-m slow`` kills twenty times instead of three.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from same_run import COMMON, IMAGES, SYSTEMS, assert_same_run

import kinoscope
from kinoscope.runs.folder import RunFolder

FAULTS = Path(__file__).parents[1] / "faults"
COMMANDS = {
    # Short tests, so that most of the time is training, validation and the writing of checkpoints.
    name: [*overrides, "callbacks.checkpoint.every_n_steps=2", "trainer.max_epochs=6", "trainer.limit_test_batches=1"]
    for name, overrides in SYSTEMS.items()
}
COMMANDS["fitted"] = [
    "experiment=autoencoder/pca_small", *IMAGES, "callbacks.reconstructions=null", "trainer.max_epochs=1"
]  # fmt: skip
# What saves nothing counts double. SIGALRM is an exception: the witness raises it.
WAYS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "SIGALRM")
LONGEST = 2.0  # seconds between two events; when the whole machine stood still, moments in that would strike nothing
CODES = {"SIGKILL": -signal.SIGKILL, "SIGALRM": 1}  # of a process that was killed so; 75 for the others


@dataclass(frozen=True)
class Event:
    """A line of the witness; number is that of the batch."""

    time: float
    word: str
    number: int = -1


def read(witness: Path) -> list[Event]:
    lines, _, _ = (witness.read_text() if witness.exists() else "").rpartition("\n")  # the last may be half written
    return [Event(float(when), word, int(number)) for when, word, number in map(str.split, lines.splitlines())]


def watched(system: str, witness: Path, *extra: str) -> list[str]:
    return [*COMMANDS[system], *COMMON, f"+callbacks.witness={{_target_: faults.Witness, path: {witness}}}", *extra]


class Reference:
    """The run that nobody touches, and what it did when."""

    def __init__(self, system: str, home: Path) -> None:
        threads = torch.get_num_threads()
        handler = signal.getsignal(signal.SIGALRM)
        witness = home / f"{system}-whole"
        self.run = RunFolder.open(home / kinoscope.train(watched(system, witness, "data.workers=0", "threads=1")))
        signal.signal(signal.SIGALRM, handler)
        torch.set_num_threads(threads)
        self.events = [Event(self.run.config_file.stat().st_mtime, "made"), *read(witness)]
        self.end = time.time()

    def moment(self, draw: random.Random, kept: int) -> tuple[int, float]:
        """A moment of a run that goes on with batch ``kept``: after so many events, and so many seconds after that.

        A process is as slow as the machine lets it be, so the time is counted from what it does.
        """
        times = [*(event.time for event in self.events), self.end]
        gaps = [min(max(after - before, 0.0), LONGEST) for before, after in itertools.pairwise(times)]
        starts = [i for i, event in enumerate(self.events) if event.word == "train" and event.number >= kept]
        gaps = gaps[:2] + gaps[(starts[0] if starts else len(gaps) - 1) :]
        left = draw.uniform(0, sum(gaps))
        for count, gap in enumerate(gaps):
            if left < gap:
                return count, left
            left -= gap
        return len(gaps) - 1, 0.0


class Chain:
    """One run, carried on by one process after the other.

    Args:
        folder: the working directory.
        system: what is trained.
        whole: the run that this one must equal.
        draw: of moments, ways and workers.

    Attributes:
        run: its folder, once there is one.
        done: the batches behind it when the last process ended.
        doing: what that process was doing then.
        lost: batches that were trained twice.
    """

    def __init__(self, folder: Path, system: str, whole: Reference, draw: random.Random) -> None:
        self.folder, self.whole, self.draw = folder, whole, draw
        self.witness = folder / "witness"
        self.witness.unlink(missing_ok=True)
        self.command = watched(system, self.witness, "resume=auto")
        self.run: RunFolder | None = None
        self.done, self.lost, self.workers, self.doing = 0, 0, 0, ""
        self._before = set(self._configs())

    @property
    def status(self) -> str | None:
        return self.run.read_summary()["status"] if self.run else None

    def go_on(self, way: str | None) -> bool:
        """Begins or resumes the run, and kills it somewhere unless ``way`` is None; whether a kill has struck."""
        self.workers = self.draw.choice([count for count in (0, 1, 2) if count != self.workers])
        by_name = self.run and (self.status == "failed" or self.draw.random() < 0.5)
        command = [f"resume={self.run.path}"] if self.run and by_name else self.command
        seen = len(read(self.witness))
        process, err = self._start([*command, f"data.workers={self.workers}"], way, seen)
        self._look_back(seen)
        for path in set(self._configs()) - self._before:
            if (path.parent / "summary.json").exists():  # else it was killed before it was a run
                self.run = RunFolder.open(path.parent)
        if self.status == "finished":
            return False
        assert way is not None, err
        assert process.returncode == CODES.get(way, 75), err
        if way not in CODES:
            assert self.status in (None, "interrupted"), err
            assert "Traceback" not in err
            assert not self.run or re.search(f"resume=.*{self.run.path.name}", err)  # the command that goes on
        return True

    def _start(self, overrides: list[str], way: str | None, seen: int) -> tuple[subprocess.Popen[bytes], str]:
        """``python -m kinoscope train`` in a process group of its own, which is ended with it; killed by ``way``."""
        environment = os.environ | {"PYTHONPATH": str(FAULTS), "OMP_NUM_THREADS": "1"}
        before = self._configs()
        with (self.folder / "stderr").open("w+") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "kinoscope", "train", *overrides],
                cwd=self.folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
            )  # fmt: skip
            try:
                if way is not None:
                    self._kill(process, way, before, seen)
                process.wait(300)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            err.seek(0)
            return process, err.read()

    def _kill(self, process: subprocess.Popen[bytes], way: str, before: dict[Path, int], seen: int) -> None:
        kept = self.done if self.run and self.run.checkpoint("last").exists() else 0
        count, seconds = self.whole.moment(self.draw, kept)
        count = max(count, int(way == "SIGALRM"))  # before it is there, the witness cannot raise anything
        while process.poll() is None and self._configs() == before:
            time.sleep(0.005)
        while process.poll() is None and len(read(self.witness)) < seen + count:
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.poll() is None:
            # Ctrl-C and a cluster's signals reach the workers, too; a kill -9 takes nobody along.
            send = os.kill if way in CODES else os.killpg
            send(process.pid, signal.Signals[way])

    def _configs(self) -> dict[Path, int]:
        """When each run's config was last written: the first thing in a new folder, and in one that is resumed."""
        return {path: path.stat().st_mtime_ns for path in self.whole.run.path.parent.glob("*/config.yaml")}

    def _look_back(self, seen: int) -> None:
        """Reads what the last process did: where it began, how far it came, what it was doing at its end."""
        events = read(self.witness)[seen:]
        begun = [event.number for event in events if event.word == "train"]
        ended = [event.number for event in events if event.word == "trained"]
        self.doing = events[-1].word if events else "made"
        if begun:
            assert begun[0] <= self.done, "batches were left out"
            self.lost += self.done - begun[0]
            self.done = 1 + ended[-1] if ended else begun[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working directory for the module, so that the videos are generated once."""
    return tmp_path_factory.mktemp("kill")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("system", COMMANDS)
def test_random_kills_change_nothing(system: str, kills: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(FAULTS))
    whole = Reference(system, home)
    draw = random.Random(f"{system} {kills}")
    struck: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    resumes = lost = runs = 0
    while struck.total() < kills:
        chain = Chain(home, system, whole, draw)
        while chain.status != "finished":
            resumes += chain.run is not None
            way = None if struck.total() == kills else draw.choice(WAYS) if struck else "SIGKILL"
            if chain.go_on(way):
                struck[str(way)] += 1
                moments[chain.doing] += 1
        assert chain.run is not None
        assert_same_run(chain.run, whole.run)
        lost, runs = lost + chain.lost, runs + 1
    # Every run has been compared with the one that nobody touched: there is no difference if this line is reached.
    figures = {"system": system, "kills": kills, "resumes": resumes, "runs": runs, "lost_steps": lost, "differences": 0}
    print(json.dumps({**figures, "ways": struck, "moments": moments}))


def test_a_second_ctrl_c_aborts(tmp_path: Path) -> None:
    """Two Ctrl-C in one batch: the second does not wait for the batch's end."""
    twice = "{_target_: faults.Fault, at: 3, moment: batch, sends: SIGINT}"
    command = [*SYSTEMS["autoencoder"], *COMMON, "trainer.max_epochs=3"]
    done = subprocess.run(
        [sys.executable, "-m", "train", *command, f"+callbacks.first={twice}", f"+callbacks.second={twice}"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(FAULTS)}, start_new_session=True, timeout=300,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "aborted; resume from the last checkpoint with: resume=" in done.stderr
    (path,) = (tmp_path / "outputs").glob("*/*/*")
    assert RunFolder.open(path).read_summary()["status"] == "interrupted"
