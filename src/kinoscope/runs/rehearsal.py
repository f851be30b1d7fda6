"""Builds every stage of a run once, for what only building shows: ``python -m kinoscope.runs.rehearsal <run folder>``.

Started by stages.py before anything is trained. Prints a JSON list, one sentence for each fault. A stage that begins
with another's weights is held against the names and shapes of that stage's model, of which there are no weights yet.
"""

from __future__ import annotations

import json
import sys

from kinoscope.config.stages import STAGE
from kinoscope.errors import Refusal
from kinoscope.launch.processes import hold_tether
from kinoscope.runs import warm_start
from kinoscope.runs.build import build_system
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.stages import source_of, stages_of
from kinoscope.verbs.train import parts


def rehearse(run: RunFolder, name: str = "") -> list[str]:
    """The faults of a run and its stages, each with the stage's name before it."""
    faults: list[str] = []
    for stage, folder in stages_of(run).items():
        faults += rehearse(folder, f"{name}stages.{stage}: ")
    config = run.read_config()
    try:
        _, system, _ = parts(config)
        if str(config.init_from).startswith(STAGE):
            source = source_of(config.init_from, run)
            theirs = warm_start.weights(build_system(RunFolder.open(source).read_config()).state_dict())
            ours = warm_start.weights(system.state_dict())
            warm_start.match(theirs, ours, config.fresh, config.init_from)
    except Refusal as refusal:
        faults.append(f"{name}{refusal}")
    return faults


if __name__ == "__main__":
    hold_tether()
    print(json.dumps(rehearse(RunFolder.open(sys.argv[1]))))
