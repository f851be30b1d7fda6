"""From a command to its first training step, and what a job of a sweep costs beside its training.

    python benchmarks/startup.py [--seconds 120] [--jobs 8]

    first_step_vs_imports   from the start of `kinoscope train` with logger=csv on a tiny experiment to the end of its
                            first step, over the time in which a bare Python has imported torch and lightning
    job_vs_imports          the time of one job of a sweep of ``--jobs`` jobs, its own training and test included, over
                            the same

1 is a command that costs nothing but those imports; less is better. Both kinds of process alternate, so that whatever
else the machine does meets both; a first one of each, which fills the disk's cache, is not counted.

A table names what a job consists of. Its parts are measured inside one process that does what a job does, one part at a
time; what is none of them is the last line.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import parser, print_ratios, rounds, show, spread

TINY = [
    "experiment=autoencoder/conv_small",
    "model.network.widths=[4,4,4]",
    "logger=csv",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "callbacks.reconstructions=null",
]
PARTS = {
    "interpreter": "from the start of the process to the first line of Python",
    "torch and lightning": "their imports, without looking for garbage meanwhile",
    "kinoscope's own imports": "the command line, Hydra, the verb and what it needs",
    "preflight": "every fault of command and config looked for",
    "data, model, optimizer": "built, and the Trainer tried",
    "run folder": "made, with provenance (git, versions) and the summary",
    "Trainer": "built, with callbacks and loggers",
    "training and test": "two batches of training, one of validation and of test; checkpoints and pictures",
    "composing and the rest": "Hydra's own composition, and what has no name here",
    "exit": "the end of the interpreter",
}
BARE = "import torch, lightning"


def run(command: list[str], folder: Path, **environment: str) -> tuple[float, str]:
    """Seconds from the start of a process to its end, and what it wrote."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout


def bare(folder: Path) -> float:
    """Seconds until a bare Python has imported torch and lightning."""
    began = time.perf_counter()
    _, out = run([sys.executable, "-c", f"{BARE}; import time; print(time.perf_counter())"], folder)
    return float(out) - began  # perf_counter is the same clock in all processes of one machine


def first_step(folder: Path) -> float:
    """Seconds until ``kinoscope train`` has done its first step; the process then ends at once."""
    note = folder / "first_step"
    began = time.perf_counter()
    stop = f"+callbacks.first={{_target_: startup.FirstStep, path: '{note}'}}"
    run([sys.executable, "-m", "kinoscope", "train", *TINY, stop], folder, PYTHONPATH=str(Path(__file__).parent))
    return float(note.read_text()) - began


def FirstStep(path: str) -> Any:
    """A callback that notes the time of the first step's end and ends the process."""
    import lightning.pytorch as pl

    class Callback(pl.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            Path(path).write_text(repr(time.perf_counter()))
            os._exit(0)

    return Callback()


def sweep(folder: Path, jobs: int) -> float:
    """Seconds per job of a sweep over seeds."""
    seeds = ",".join(map(str, range(jobs)))
    seconds, _ = run([sys.executable, "-m", "kinoscope", "train", "-m", *TINY, f"seed={seeds}"], folder)
    return seconds / jobs


class Parts:
    """Seconds per part of a job: the innermost part that runs has the time."""

    def __init__(self, began: float) -> None:
        self.seconds: dict[str, float] = {"interpreter": time.perf_counter() - began}
        self._running = ["composing and the rest"]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        name = self._running[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Counts each call of ``owner.name`` as that part."""
        function: Callable[..., Any] = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return function(*args, **kwargs)

        setattr(owner, name, measured)

    def end(self) -> dict[str, float]:
        self._switch()
        return self.seconds


def job(began: float) -> None:
    """In a process of its own: does what a job of a sweep does, and prints its parts and the time of its end."""
    parts = Parts(began)
    gc.disable()  # as the command line does while it imports
    with parts("torch and lightning"):
        for name in ("torch", "lightning"):
            importlib.import_module(name)
    with parts("kinoscope's own imports"):
        cli, train, preflight, _ = map(
            importlib.import_module,
            ("kinoscope.cli", "kinoscope.verbs.train", "kinoscope.config.preflight", "hydra"),
        )
    gc.enable()
    parts.wrap(preflight, "preflight", "preflight")
    parts.wrap(train, "parts", "data, model, optimizer")
    parts.wrap(train, "_create", "run folder")
    parts.wrap(train, "_train", "training and test")
    for name in ("build_callbacks", "build_logger", "build_trainer"):
        parts.wrap(train, name, "Trainer")
    code = cli.main(["train", *TINY])
    seconds = parts.end()
    print(json.dumps({"code": code, "seconds": seconds, "ended": time.perf_counter()}), flush=True)


def parts_of_a_job(folder: Path) -> dict[str, float]:
    """Seconds per part of one job."""
    began = time.perf_counter()
    took, out = run([sys.executable, __file__, "--job", repr(began)], folder)
    told = json.loads(out.splitlines()[-1])
    assert told["code"] == 0, out
    return {**told["seconds"], "exit": began + took - told["ended"]}


def main() -> None:
    began = time.monotonic()
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, default=8, help="jobs of the sweep (default 8)")
    options.add_argument("--once", action="store_true", help="one of each, counted: shows that the benchmark works")
    options.add_argument("--job", type=float, help="used by itself: one job, begun at that time")
    args = options.parse_args()
    if args.job is not None:
        job(args.job)
        return
    samples: dict[str, list[float]] = {"bare imports": [], "first step": []}
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in rounds(began + args.seconds, least=1 if args.once else 2):
            measured = {"bare imports": bare(folder), "first step": first_step(folder)}
            found = parts_of_a_job(folder)
            if number > 0 or args.once:
                for kind, seconds in measured.items():
                    samples[kind].append(seconds)
                for part in PARTS:
                    parts[part].append(found.pop(part))
                assert not found, found
        per_job = sweep(folder, args.jobs)
    show("Start", "s", samples)
    show("A job, part by part", "s", parts)
    for part, what in PARTS.items():
        print(f"    {part}: {what}")
    alone = sum(spread(seconds)[1] for seconds in parts.values())
    print(f"\na job of a sweep of {args.jobs}: {per_job:.3f} s, of which the sweep's start, table and pictures")
    print(f"are {per_job - alone:.3f} s: all that a job alone, {alone:.3f} s, does not need")
    imports = spread(samples["bare imports"])[1]
    print_ratios({
        "first_step_vs_imports": spread(samples["first step"])[1] / imports,
        "job_vs_imports": per_job / imports,
    })  # fmt: skip


if __name__ == "__main__":
    main()
