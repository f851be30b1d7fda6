"""Several devices on this node: one process for each, started, watched and ended by one that imports no torch.

The command is composed once, here, and handed to the ranks in a file, so that no resolver can give two ranks different
values. Lightning's own launcher would run the command again in every rank, and its ranks outlive a killed parent.
Processes that torchrun or srun has started are ranks already and are left alone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.console import show
from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.launch.processes import GRACE, LAST_SAVE, STOP_SIGNALS, Child, listening
from kinoscope.runs.folder import TELL, RunFolder, Status, tell, write_json

SCRATCH = "KINOSCOPE_RANKS"  # in a rank: the folder through which it talks to the process that started it
POLL = 0.05  # seconds between two looks at the ranks
ABORT = 5.0  # seconds that a second Ctrl-C leaves them


def are_set() -> bool:
    """Whether this process is a rank already: of ours, of torchrun, or a task of a SLURM step with several."""
    return "LOCAL_RANK" in os.environ or is_slurm_task()


def is_slurm_task() -> bool:
    """Whether ``srun`` has started this process as one of several tasks (an ``sbatch`` script alone is one)."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def started(default: int) -> int:
    """How many processes the environment says this run has, over all nodes; ``default`` where it says nothing."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", default))
    return int(os.environ["SLURM_STEP_NUM_TASKS"]) if is_slurm_task() else default


def on_this_node(trainer: Mapping[str, Any]) -> int:
    """How many devices ``trainer.devices`` means on one node. Imports torch only where CUDA devices must be counted."""
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if not isinstance(devices, str | int):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if str(devices) not in ("auto", "-1"):
        return int(devices)
    if accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def world_size(trainer: Mapping[str, Any]) -> int:
    """The number of processes of a run, over all nodes."""
    return on_this_node(trainer) * int(trainer.get("num_nodes", 1))


def to_start(verb: str, config: DictConfig, overrides: Sequence[str]) -> int:
    """How many processes a command needs started here; 0 where this one does the work itself."""
    if verb not in ("train", "evaluate") or are_set() or config.get("check"):
        return 0
    trainer = _trainer(config, overrides)
    return on_this_node(trainer) if world_size(trainer) > 1 else 0


def _trainer(config: DictConfig, overrides: Sequence[str]) -> Mapping[str, Any]:
    """What says how many devices there are: evaluate's own keys, a training's trainer, or that of a resumed run."""
    if config.get("resume") in (None, "auto"):
        return config.get("trainer") or config
    from kinoscope.runs import resume

    return resume.find(config, overrides).config.trainer


def report(code: int, sentence: str = "", traceback: str = "") -> None:
    """In a rank: how it ended. One that ends without a report was ended by something else."""
    content = {"code": code, "sentence": sentence, "traceback": traceback, "time": time.time()}
    # Whole or not at all: a rank may be killed while it reports.
    write_json(Path(os.environ[SCRATCH]) / f"rank-{os.environ['LOCAL_RANK']}.json", content)


def supervise(
    verb: str, config: DictConfig, overrides: Sequence[str], processes: int, result: Callable[[str], None]
) -> None:
    """Runs a verb in ``processes`` ranks on this node, and returns when all of them are done and gone.

    Args:
        verb: train or evaluate.
        config: as composed; it is resolved here, once.
        overrides: as typed.
        processes: how many ranks this node has.
        result: is told the last line that rank 0 has put on stdout, which is the run's folder, however the run ended.

    Raises:
        Interrupted: the run was asked to stop, and did.
        KinoscopeError: what ended a rank, said once; ``exit_code`` is that rank's.
    """
    nodes = int(_trainer(config, overrides).get("num_nodes", 1))
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    job = {"verb": verb, "config": resolved, "overrides": list(overrides), "argv": sys.argv, "path": sys.path}
    with kept_port() as port, tempfile.TemporaryDirectory(prefix="kinoscope-ranks-") as scratch:
        rendezvous = _rendezvous(nodes, processes, port)
        file = Path(scratch) / "job.yaml"
        file.touch(mode=0o600)
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(job)))
        team = _Team(Path(scratch))
        try:
            team.run([sys.executable, "-m", "kinoscope.launch.rank", str(file)], rendezvous)
        finally:
            if team.folder and team.last_line not in ("", team.folder):
                print(team.last_line, flush=True)  # rank 0 has not got as far as naming its folder
            if line := team.folder or team.last_line:
                result(line)


def _rendezvous(nodes: int, processes: int, port: int) -> list[dict[str, str]]:
    """The environment of each rank of this node, by which they find one another; on one node at ``port``."""
    here = {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0"}
    if nodes > 1:
        names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise Refusal(
                f"trainer.num_nodes={nodes}: {' and '.join(missing)} must be set on each node (address and free "
                f"port of the first node, and this node's number from 0 to {nodes - 1}), or let srun or torchrun start "
                "the processes"
            )
        here = {name: os.environ[name] for name in names}
    here.setdefault("MASTER_PORT", str(port))
    first = int(here["NODE_RANK"]) * processes
    size = str(nodes * processes)
    return [here | {"LOCAL_RANK": str(r), "RANK": str(first + r), "WORLD_SIZE": size} for r in range(processes)]


@contextmanager
def kept_port() -> Iterator[int]:
    """A free port, which nobody else is given inside; the ranks, who reuse addresses too, may listen there.

    They need seconds to get that far, in which a port that is only looked up can become another process's.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


@dataclass(frozen=True)
class _End:
    """How a rank ended: by its own report, or without one."""

    rank: int
    code: int
    sentence: str = ""
    traceback: str = ""
    time: float = 0.0
    reported: bool = True


class _Team:
    """The ranks of one node.

    Only the first of them is told to stop: the ranks agree on the batch after which they do.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.last_line = ""
        self._children: list[Child] = []
        self._readers: list[threading.Thread] = []
        self._asked: list[signal.Signals] = []

    @property
    def folder(self) -> str:
        """The run's, as soon as there is one."""
        file = self.scratch / "folder"
        return file.read_text().strip() if file.exists() else ""

    def run(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        """Starts a rank in each environment, waits for all and ends them; raises what ended the first that failed."""
        with listening(self._note):
            try:
                for environment in environments:
                    self._start(command, environment)
                failed = self._watch()
            finally:
                for child in self._children:
                    child.end(grace=0.0)  # loader workers of a rank that has ended already, too
                for reader in self._readers:
                    reader.join(timeout=5)  # a process that left the group may hold the pipe for ever
        if failed is not None:
            error = self._error(failed)
            known = {end.sentence for end in self._ends() if end.reported and end.rank == 0}
            if self.folder and failed.sentence not in known:
                resumable = failed.code == Interrupted.exit_code or failed.code < 0  # as after a kill of a lone process
                _write_down(RunFolder(Path(self.folder)), "interrupted" if resumable else "failed", error)
            raise error

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        leads = environment["LOCAL_RANK"] == "0"
        child = Child(
            command,
            {**environment, SCRATCH: str(self.scratch), TELL: str(self.scratch / "folder")},
            stdout=subprocess.PIPE,
            stderr=None if leads else subprocess.STDOUT,  # the first has the terminal, for its progress bar
        )
        self._children.append(child)
        arguments = (child.stdout, None if leads else f"[rank {environment['RANK']}] ")
        self._readers.append(threading.Thread(target=self._pass_on, args=arguments, daemon=True))
        self._readers[-1].start()

    def _pass_on(self, stream: IO[str], prefix: str | None) -> None:
        """The first rank's stdout is this process's, but for its last line; the others' goes to stderr."""
        with stream:
            for line in stream:
                if prefix is not None:
                    print(prefix + line, end="", file=sys.stderr, flush=True)  # at once: the others talk, too
                    continue
                if self.last_line:
                    show(self.last_line)
                self.last_line = line.rstrip("\n")

    def _note(self, number: int, frame: FrameType | None) -> None:
        """A signal, which `_watch` acts upon."""
        self._asked.append(signal.Signals(number))

    def _watch(self) -> _End | None:
        """Waits until all ranks have ended, or those that are left have had their time; returns the first bad end."""
        failed: _End | None = None
        deadline = float("inf")
        answered = 0
        while True:
            if self.folder:
                tell(Path(self.folder))
            running = any(child.poll() is None for child in self._children)  # asked first, so that no end is missed
            if failed is None and (failed := self._failed()) is not None:
                stopping = failed.code == Interrupted.exit_code
                grace = LAST_SAVE if stopping else GRACE if self.folder else ABORT
                deadline = min(deadline, time.monotonic() + grace)
            if not running:
                return failed
            if time.monotonic() > deadline:  # without a failure, it is a second Ctrl-C that has set one
                return failed or _End(0, Interrupted.exit_code, "aborted" + self._hint())
            for number in self._asked[answered:]:
                answered += 1
                if not self.folder:
                    sentence = f"stopped by {number.name}; there was nothing yet to be saved"
                    return _End(0, Interrupted.exit_code, sentence)
                if number == signal.SIGINT and answered > 1:
                    deadline = min(deadline, time.monotonic() + ABORT)
                self._children[0].signal(number if number in STOP_SIGNALS else signal.SIGTERM)
            time.sleep(POLL)

    def _ends(self) -> list[_End]:
        """The ranks that have ended."""
        ends: list[_End] = []
        for rank, child in enumerate(self._children):
            code, report = child.poll(), self.scratch / f"rank-{rank}.json"
            if code is not None:
                said = json.loads(report.read_text()) if report.exists() else {"code": code, "reported": False}
                ends.append(_End(rank, **said))
        return ends

    def _failed(self) -> _End | None:
        """The first rank that has ended badly. One that was killed says nothing; the others then say they lost it."""
        bad = [end for end in self._ends() if not end.reported or end.code != 0]
        return min(bad, key=lambda end: (end.reported, end.time), default=None)

    def _error(self, failed: _End) -> KinoscopeError:
        """What ended the job, in one sentence, with the exit code that tells it."""
        rank, code, sentence = failed.rank, failed.code, failed.sentence
        if not failed.reported:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
            sentence, code = f"rank {rank} {how} in the middle of its work{self._hint()}", max(code, 0) or 1
        elif failed.traceback:
            print(failed.traceback, file=sys.stderr, flush=True)
            sentence = f"rank {rank} failed: {sentence}"
        elif code != Interrupted.exit_code and any(end.sentence != sentence for end in self._ends()):
            sentence = f"rank {rank}: {sentence}"
        error = {2: Refusal, Interrupted.exit_code: Interrupted}.get(code, KinoscopeError)(sentence)
        error.exit_code = code
        return error

    def _hint(self) -> str:
        return f"; resume with: python -m train resume={self.folder}" if self.folder else ""


def _write_down(folder: RunFolder, status: Status, error: KinoscopeError) -> None:
    """Leaves in a run's folder what its rank 0 cannot know, or could not write any more."""
    folder.write_summary(status=status)
    with folder.log_file.open("a") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR {error}\n")
