"""Reads a run's W&B file back from the disk, by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


@dataclass(frozen=True)
class Records:
    """The records of one ``run-<id>.wandb``, in the order in which they were written."""

    all: list[tuple[str, dict[str, Any]]]

    @classmethod
    def of(cls, file: Path) -> Records:
        # What `wandb leet inspect --json <file>` starts, without a second for importing W&B.
        reader = [get_core_path(), "leet", "inspect", "--json", "--run-file", str(file), str(file.parents[1])]
        done = subprocess.run(reader, capture_output=True, text=True, check=True, timeout=300)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return cls([(line["type"], line[line["type"]]) for line in lines])

    def kind(self, name: str) -> list[dict[str, Any]]:
        return [content for kind, content in self.all if kind == name]

    @property
    def run(self) -> dict[str, Any]:
        (run,) = self.kind("run")
        return run

    @property
    def config(self) -> dict[str, Any]:
        return {name: value for name, value in self.run["config"]["update"].items() if name != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Each call of ``log``; nested values have dotted names."""
        return [content["item"] for content in self.kind("history")]

    @property
    def names(self) -> set[str]:
        """Everything that was logged, media by their key."""
        return {name.removesuffix("._type") for row in self.history for name in row}

    @property
    def summary(self) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for content in self.kind("summary"):
            whole |= content.get("update", {})
        return whole

    @property
    def exit_code(self) -> int:
        (end,) = self.kind("exit")
        return end.get("exit_code", 0)


def files(run: Path) -> list[Path]:
    """The files of a run folder, oldest first."""
    return sorted(
        (run / "wandb").glob("*run-*/run-*.wandb"), key=lambda file: file.parent.name.removeprefix("offline-")
    )
