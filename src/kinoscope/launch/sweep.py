"""What every kind of sweep is told of the command that was typed, and the plain product behind ``-m``.

Which kind a sweep is says the config group ``sweep``: none (``-m`` alone), grid, random, optuna or wandb. Each option
names a class with a method ``faults``; those that run themselves, without Hydra's sweeper, have a method ``run``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinoscope.config.space import Interval, Space
from kinoscope.errors import Refusal
from kinoscope.launch.places import places, require_devices
from kinoscope.launch.sweep_folder import SweepFolder
from kinoscope.launch.sweep_table import Objectives

CHANGEABLE = ("sweep.resume", "sweep.trials", "sweep.n_jobs", "sweep.devices_per_job")


@dataclass(frozen=True)
class Command:
    """A command that starts several runs.

    Attributes:
        verb: what each job does.
        typed: the overrides as they were typed, those with several values too.
        config_dir: a folder of the user's own yaml.
        shared: the overrides that all jobs are given.
        space: what varies.
        config: the composed config of the first values, as plain containers.
        launcher: the chosen ``hydra/launcher``.
    """

    verb: str
    typed: Sequence[str]
    config_dir: str | None
    shared: Sequence[str]
    space: Space
    config: Mapping[str, Any]
    launcher: str

    def places(self, n_jobs: int, devices_per_job: int | None) -> list[dict[str, str]]:
        """The places for its jobs. Raises `Refusal` where there are fewer devices than they need."""
        data, trainer = self.config.get("data") or {}, self.config.get("trainer") or {}
        found = places(n_jobs, devices_per_job, trainer, int(data.get("workers") or 0))
        if self.launcher != "submitit_slurm":  # whose jobs run elsewhere
            require_devices(trainer)
        return found

    def objectives(self, given: Objectives | None) -> Objectives:
        """What is sought: the given metrics, or the experiment's monitor. Raises `Refusal` if there is none."""
        monitor = self.config.get("monitor")
        found: Objectives = given or ({monitor: self.config["mode"]} if monitor else {})
        if not found:
            raise Refusal(f"{self.config['name']} has no monitor to search by: give 'sweep.objectives={{val/…: min}}'")
        for name in found:
            if name.startswith("test/"):
                raise Refusal(f"sweep.objectives: '{name}' would choose by the test data; choose by a metric of val/")
        return found

    def search_faults(self) -> Iterator[str]:
        """What no search can do, one sentence each."""
        if not self.space:
            yield "sweep: nothing varies; give a key several values (lr=0.1,0.01), a range(…), or an interval(…)"
        if self.config.get("resume") is not None:
            yield "resume= continues one run; a search goes on with sweep.resume=<its folder>"
        if self.config.get("check"):
            yield "check=true looks at one run; leave it out of a search"
        if self.launcher != "fresh_process":
            yield f"hydra/launcher={self.launcher} takes the jobs of -m; a search runs its own on this machine"


class Product:
    """Every combination of the values that are typed, with ``-m``.

    Args:
        n_jobs: how many jobs run at a time.
        devices_per_job: CUDA devices of each; by default trainer.devices, and 0 lets the jobs share all there are.
        space: what sweep=grid, random, optuna and wandb vary besides what is typed; -m alone leaves it.
    """

    def __init__(
        self, n_jobs: int = 1, devices_per_job: int | None = None, space: Mapping[str, str] | None = None
    ) -> None:
        self.n_jobs, self.devices_per_job = n_jobs, devices_per_job

    def faults(self, command: Command) -> Iterator[str]:
        """What stands in the way, one sentence each."""
        yield from interval_faults(command.space)
        try:
            command.places(self.n_jobs, self.devices_per_job)
        except Refusal as refusal:
            yield str(refusal)


def interval_faults(space: Space) -> Iterator[str]:
    """A product has no place for what holds endlessly many values."""
    for key, dimension in space.items():
        if isinstance(dimension, Interval):
            yield f"{key}: an interval has no end of values; use range(…) or a list, or search it with sweep=random"


def continued(typed: Sequence[str], config_dir: str | None) -> tuple[list[str], str | None]:
    """The command that ``sweep.resume=<folder>`` continues, with what was typed beside it; others are as they were.

    Raises:
        Refusal: not the folder of a search, or overrides that would make it another one; all of them are listed.
    """
    folders = [line.partition("=")[2] for line in typed if line.startswith("sweep.resume=")]
    if not folders or folders[-1] in ("null", ""):
        return list(typed), config_dir
    stored = SweepFolder.open(folders[-1]).read_command()
    new = [line for line in typed if line not in stored["overrides"]]
    refused = [line for line in new if line.partition("=")[0] not in CHANGEABLE]
    if refused:
        what = "it" if len(refused) == 1 else "them"
        raise Refusal(
            f"sweep.resume: {', '.join(refused)} would make this another search; leave {what} out, or start a new one"
        )
    changed = {line.partition("=")[0] for line in new}
    kept = [line for line in stored["overrides"] if line.partition("=")[0] not in changed]
    return [*kept, *new], config_dir or stored["config_dir"]
