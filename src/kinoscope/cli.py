"""The command line: ``kinoscope <verb> [key=value …]``; ``python -m train`` is ``kinoscope train``.

A command is checked here, in less than a second and with all its faults at once, before Hydra composes it for good and
its verb imports torch. Exit codes: 0 done, 1 failed while working, 2 refused before work, 75 interrupted and resumable.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from kinoscope.console import show
from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.launch.processes import hold_tether
from kinoscope.runs import stopwatch
from kinoscope.runs.interrupt import like_ctrl_c

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from kinoscope.config.preflight import Checked

VERBS = {
    "train": "trains an experiment, or resumes one (python -m train is the same)",
    "evaluate": "tests a run again, with other views or crops",
    "sample": "draws samples or reconstructions of a run",
    "prepare": "generates, downloads or indexes a data set",
    "report": "tells how a run went, or compares several",
    "dashboard": "builds a W&B workspace with the panels of a family",
    "sync": "sends to W&B what was kept offline",
}

OVERVIEW = """kinoscope: the classic papers of video recognition and generative modelling as experiments

  kinoscope <verb> [key=value …] [group=option …]

{verbs}

  kinoscope <verb> --help   its groups, options, keys, defaults and allowed values
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: what follows the program's name; ``sys.argv`` by default.
    """
    stopwatch.begin()
    arguments = list(sys.argv[1:] if argv is None else argv)
    hold_tether()
    try:
        with like_ctrl_c():  # until the verb listens itself
            return _main(arguments)
    except KinoscopeError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return Interrupted.exit_code


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        show(_overview())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        from kinoscope.config.suggest import did_you_mean

        hint = did_you_mean(verb, VERBS) or f"the verbs are {', '.join(VERBS)}"
        raise Refusal(f"there is no verb '{verb}'; {hint}")
    # As with `python -m train`, a package in the working directory can be named by a _target_; it comes last, so that
    # nothing there shadows what is installed.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    flags = _parse(verb, rest)
    if flags.help:
        from kinoscope.config.help import page

        show(page(verb, flags.overrides, flags.config_dir))
        return 0
    checked = _checked(verb, flags)
    if checked.begin is not None and flags.cfg is None:
        return checked.begin()
    return _hand_over(verb, flags, checked.overrides)


def _overview() -> str:
    width = max(map(len, VERBS))
    return OVERVIEW.format(verbs="\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()))


def _complain(sentence: str) -> None:
    print(f"kinoscope: {sentence}", file=sys.stderr)


def _parse(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's own flags, so that --cfg, --resolve, --config-dir, -m, --info and the rest are what its users know."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = f"kinoscope {verb}"

    def refuse(message: str) -> NoReturn:
        raise Refusal(f"{message}; 'kinoscope {verb} --help' lists what may be given")

    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    for flag in ("config_name", "config_path"):
        if getattr(flags, flag) is not None:
            raise Refusal(
                f"--{flag.replace('_', '-')} is not for here: a folder of your own yaml is given by --config-dir"
            )
    if any(line.startswith("sweep.resume=") for line in flags.overrides):
        from kinoscope.launch.sweep import continued

        flags.overrides, flags.config_dir = continued(flags.overrides, flags.config_dir)
    # A launcher takes the jobs of a sweep, a single one too.
    flags.multirun |= any(line.startswith("hydra/launcher=submitit") for line in flags.overrides)
    return flags


def _is_sweep(flags: argparse.Namespace) -> bool:
    kinds = [line for line in flags.overrides if line.startswith("sweep=")]  # but none, each implies -m
    return flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides or kinds[-1:] not in ([], ["sweep=none"])


def _checked(verb: str, flags: argparse.Namespace) -> Checked:
    """The command without fault. Raises `Refusal` with all faults."""
    from kinoscope.config.preflight import Checked, preflight

    if flags.hydra_help or flags.shell_completion:
        return Checked(overrides=flags.overrides)
    shown_only = flags.info is not None or (flags.cfg is not None and not flags.resolve)
    checked = preflight(verb, flags.overrides, flags.config_dir, sweep=_is_sweep(flags), keys_only=shown_only)
    if len(checked.faults) == 1:
        raise Refusal(checked.faults[0])
    if checked.faults:
        lines = "\n".join(f"  {fault}" for fault in checked.faults)
        raise Refusal(f"{len(checked.faults)} faults, nothing was started\n{lines}")
    return checked


def _hand_over(verb: str, flags: argparse.Namespace, overrides: list[str]) -> int:
    """Hydra's main, with our configs and the overrides as preflight left them; returns the verb's exit code."""
    import hydra
    from omegaconf import open_dict

    from kinoscope.config import resolvers
    from kinoscope.config.compose import HYDRA_BASE, config_folder
    from kinoscope.launch import fresh_process

    resolvers.register()
    fresh_process.register()
    exit_code = 0
    typed = [line for line in flags.overrides if not line.lstrip("+~").startswith(("hydra.", "hydra/"))]
    argv = sys.argv

    def task(config: DictConfig) -> None:
        nonlocal exit_code
        sys.argv = argv  # what was typed, for the run's provenance
        with open_dict(config):
            config.pop("sweep", None)  # no job knows of it
        exit_code = _run(verb, config, typed, flags.config_dir)

    sys.argv = [argv[0], *_hydra_arguments(flags), *overrides]
    try:
        hydra.main(version_base=HYDRA_BASE, config_path=str(config_folder()), config_name=verb)(task)()
    except SystemExit as exit:  # Hydra's way to end --cfg and --info, and after a traceback
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    finally:
        sys.argv = argv
    sweep = fresh_process.FreshProcessLauncher.latest
    return exit_code if sweep is None else sweep.finish()


def _hydra_arguments(flags: argparse.Namespace) -> list[str]:
    arguments = [
        f"--{name.replace('_', '-')}"
        for name in ("hydra_help", "multirun", "run", "resolve", "shell_completion")
        if getattr(flags, name)
    ]
    for name in ("cfg", "package", "info", "config_dir", "experimental_rerun"):
        value: Any = getattr(flags, name)
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def _run(verb: str, config: DictConfig, overrides: Sequence[str], config_dir: str | None) -> int:
    """The verb itself; a KinoscopeError is one sentence, anything else a traceback (by Hydra)."""
    try:
        with log_on_stderr():
            from kinoscope.launch import ranks
            from kinoscope.runs.stages import after_stages

            with after_stages(config, overrides, config_dir, ended=show) as left:
                processes = ranks.to_start(verb, left, overrides)
                if processes:
                    ranks.supervise(verb, left, overrides, processes, result=show)
                    return 0
                return verb_module(verb).run(left, overrides)
    except KinoscopeError as error:
        _complain(str(error))
        return error.exit_code


def verb_module(verb: str) -> ModuleType:
    """Imports what does the verb's work.

    Nothing is looked for that could be thrown away meanwhile, nor at the process's end: torch and Lightning bring a
    million objects that all stay, and looking through them would take a quarter of the time of their import, twice.
    """
    atexit.register(gc.freeze)
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"kinoscope.verbs.{verb}")
    finally:
        if collecting:
            gc.enable()


@contextmanager
def log_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """What the package logs goes to stderr, one plain line each: stdout is for results."""
    log = logging.getLogger("kinoscope")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
