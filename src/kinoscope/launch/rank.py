"""One rank of a command: ``python -m kinoscope.launch.rank <job file>``, started by ranks.py and by nothing else.

What ends it is not printed here but reported: when one rank fails, the others fail for want of it, and the process that
started them knows who was first.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from pathlib import Path

from omegaconf import OmegaConf

from kinoscope.cli import log_on_stderr, verb_module
from kinoscope.errors import Interrupted, KinoscopeError
from kinoscope.launch.processes import hold_tether
from kinoscope.launch.ranks import report
from kinoscope.runs.interrupt import like_ctrl_c


def main(file: str) -> int:
    """Does what the job file says, in the rank that the environment names; returns the exit code."""
    hold_tether()
    owner = os.getppid()
    said: tuple[str, ...] = ()
    job = OmegaConf.load(file)
    sys.argv = list(job.argv)  # of the command, for its provenance
    sys.path += [folder for folder in job.path if folder not in sys.path]
    try:
        with like_ctrl_c(), log_on_stderr(logging.INFO if os.environ["RANK"] == "0" else logging.WARNING):
            code = verb_module(job.verb).run(job.config, list(job.overrides))
    except KinoscopeError as error:
        code, said = error.exit_code, (str(error),)
    except KeyboardInterrupt:
        code, said = Interrupted.exit_code, ("interrupted",)
    except Exception as error:
        code, said = 1, (f"{type(error).__name__}: {error}", traceback.format_exc())
    if os.getppid() == owner:
        report(code, *said)
    else:  # it was killed: nobody reads a report any more, and nobody else removes the folder
        shutil.rmtree(Path(file).parent, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
