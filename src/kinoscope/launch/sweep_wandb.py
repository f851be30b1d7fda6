"""``sweep=wandb``: the search space as a W&B sweep file. W&B's server suggests, its agents run our command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import yaml

from kinoscope.config.space import Choice, Dimension, Interval, Range
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.launch.sweep import Command, interval_faults
from kinoscope.launch.sweep_folder import SweepFolder
from kinoscope.launch.sweep_table import Objectives
from kinoscope.runs.folder import require_writable, write_text

LISTED = 1000  # values of one key that a sweep file may hold


class WandbSweep:
    """Writes ``sweep.yaml`` and starts nothing.

    Args:
        method: how W&B chooses values.
        objectives: the metric and its direction, {val/video_accuracy: max}; by default the experiment's monitor.
        trials: how many runs W&B makes at most; null for no end (a grid has one of its own).
        space: what varies besides what is typed, {model.optimizer.lr: "interval(0.001,0.1)"}; what is typed wins.
    """

    def __init__(
        self,
        method: Literal["grid", "random", "bayes"] = "bayes",
        objectives: dict[str, Literal["min", "max"]] | None = None,
        trials: int | None = None,
        space: dict[str, str] | None = None,
    ) -> None:
        self.method, self.objectives, self.trials = method, objectives, trials

    def faults(self, command: Command) -> Iterator[str]:
        """What stands in the way, one sentence each. Nothing is left on disk."""
        yield from command.search_faults()
        if self.method == "grid":
            yield from interval_faults(command.space)
        for key, dimension in command.space.items():
            if isinstance(dimension, Range) and len(dimension.values) > LISTED:
                yield f"{key}: this range holds more than the {LISTED} values that W&B is given; use an interval(…)"
        if "wandb" not in str((command.config.get("logger") or {}).get("_target_")):
            yield "sweep=wandb needs logger=wandb: its runs report to W&B"
        try:
            if len(command.objectives(self.objectives)) > 1:
                yield "sweep.objectives: a W&B sweep has one; sweep=optuna takes several"
            require_writable(str(command.config["output_dir"]))
        except Refusal as refusal:
            yield str(refusal)

    def run(self, command: Command) -> int:
        """Writes the file, and says how an agent is started; its path is the last line of stdout."""
        logger = command.config["logger"]
        objectives = command.objectives(self.objectives)
        folder = SweepFolder.named(str(command.config["output_dir"]))
        path = folder.path / "sweep.yaml"
        content = sweep_file(command, self.method, objectives, self.trials)
        write_text(path, yaml.safe_dump(content, sort_keys=False, width=120))
        entity = f" --entity {logger['entity']}" if logger.get("entity") else ""
        print(
            f"1. wandb sweep{entity} --project {logger['project']} {path}\n"
            "2. wandb agent <what it prints>, from this folder, on as many machines as you like",
            file=sys.stderr,
            flush=True,
        )
        print(path, flush=True)
        return 0


def sweep_file(command: Command, method: str, objectives: Objectives, trials: int | None = None) -> dict[str, Any]:
    """The content of a W&B sweep file: the command with its fixed values, and the space of the others."""
    ((metric, mode),) = objectives.items()
    shared = [line for line in command.shared if not line.startswith("logger.mode=")]
    folders = [] if command.config_dir is None else ["--config-dir", command.config_dir]
    return {
        "name": command.config["name"],
        "project": command.config["logger"]["project"],
        "method": method,
        "metric": {"name": metric, "goal": "maximize" if mode == "max" else "minimize"},
        **({} if trials is None else {"run_cap": trials}),
        "parameters": {key: parameter(dimension) for key, dimension in command.space.items()},
        # An agent hands its server's values over as words of ours: key=value.
        "command": [
            *("${env}", "python", "-m", command.verb, *folders, *shared),
            *("logger.mode=online", "${args_no_hyphens}"),
        ],
    }


def parameter(dimension: Dimension) -> Mapping[str, Any]:
    """A dimension of the search space in W&B's words."""
    match dimension:
        case Choice(values) | Range(values=values):  # W&B's q_uniform knows multiples of its step alone
            return {"values": [_number(value) for value in values]}
        case Interval(low, high, log) if isinstance(low, int):
            if log:
                return {"distribution": "q_log_uniform_values", "min": low, "max": high, "q": 1}
            return {"distribution": "int_uniform", "min": low, "max": high}
        case Interval(low, high, log):
            return {"distribution": "log_uniform_values" if log else "uniform", "min": low, "max": high}
    raise KinoscopeError(f"{dimension} has no counterpart in a W&B sweep")


def _number(text: str) -> int | float | str:
    """A number as such, so that W&B may interpolate; anything else as it is typed (null, [1,2], true)."""
    for cast in (int, float):
        try:
            return cast(text)
        except ValueError:
            continue
    return text
