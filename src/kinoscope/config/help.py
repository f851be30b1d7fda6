"""``kinoscope <verb> --help``: groups with their options, keys with defaults, allowed values and meaning.

Everything is read from yaml and source text, for the groups chosen on the same line: ``--help data=ucf101`` explains
the keys of ucf101.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.config import signatures
from kinoscope.config.compose import Composer, composing
from kinoscope.config.overrides import judge
from kinoscope.config.schema import SCHEMAS
from kinoscope.config.signatures import Parameter, Signature, TargetNotFound
from kinoscope.config.types import ANYTHING, Instance, show
from kinoscope.errors import Refusal

WIDTH = 118
MANY = 12  # more choices than this are not listed

USAGE = {
    "train": ("python -m train [key=value …] [group=option …] [flags]", "Trains an experiment, or resumes one."),
    "evaluate": ("kinoscope evaluate run=<folder> [key=value …] [flags]", "Tests a run again."),
    "sample": ("kinoscope sample run=<folder> [key=value …] [flags]", "Draws samples or reconstructions of a run."),
    "prepare": ("kinoscope prepare [data=<name>] [key=value …] [flags]", "Makes a data set ready."),
    "report": ("kinoscope report run=<folder> | runs=<folders> [key=value …] [flags]", "Tells how runs went."),
    "dashboard": ("kinoscope dashboard family=<family> [key=value …] [flags]", "Builds a W&B workspace for a family."),
    "sync": ("kinoscope sync [key=value …] [flags]", "Sends to W&B what its server does not have."),
}

EXAMPLES = {
    "train": """
python -m train                                              the default experiment: embedded videos, about a minute
python -m train experiment=video/c3d_small data=ucf101 data.root=<folder>
python -m train model.optimizer.lr=0.01 trainer.max_epochs=20
python -m train -m seed=0,1,2 model.optimizer.lr=0.01,0.001   six runs, one after the other, and a table
python -m train sweep=optuna 'model.optimizer.lr=tag(log,interval(1e-4,1e-1))'   looks for the best value
python -m train resume=outputs/<experiment>/<run>            goes on where it stopped, bit for bit
python -m train experiment=gan/dcgan_small check=true        a table of its layers, and nothing is written""",
    "evaluate": """
kinoscope evaluate run=outputs/<experiment>/<run>
kinoscope evaluate run=outputs/<experiment>/<run> views=10 crops=3 checkpoint=last""",
    "sample": """
kinoscope sample run=outputs/<experiment>/<run> n=100 seed=1""",
    "prepare": """
kinoscope prepare                                            generates the embedded videos
kinoscope prepare data=ucf101 data.root=<folder>             reads each video once and lists the bad ones""",
    "report": """
kinoscope report run=outputs/<experiment>/<run>              time, memory and metrics, also while it runs
kinoscope report runs=outputs/video                          a table and a picture of all runs below it
kinoscope report 'runs=[<run>,<run>]' monitor=val/loss output=two.png""",
    "dashboard": """
kinoscope dashboard family=video project=kinoscope
kinoscope dashboard family=gan entity=<team> dry=true    as JSON; nothing is sent""",
    "sync": """
kinoscope sync
kinoscope sync output_dir=<folder> dry=true              lists what waits""",
}

FLAGS = """
-m, --multirun         several values for a key (lr=0.1,0.01): one run for each combination, in fresh processes
--cfg job [--resolve]  prints the config instead (with --resolve: with all values filled in)
--config-dir <folder>  a folder of your own yaml: <folder>/model/mine.yaml is model=mine
--info defaults-tree   how the config is put together
--hydra-help           Hydra's own settings"""


def page(verb: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> str:
    """The help page of a verb.

    Raises:
        Refusal: the overrides beside ``--help`` hold a fault.
    """
    with composing(verb, config_dir) as composer:
        judged = judge(composer, overrides)
        if judged.faults or judged.config is None:
            raise Refusal("; ".join(judged.faults))
        config = judged.config
        usage, what = USAGE[verb]
        sections = [
            f"{what}\n\n  {usage}",
            _section("Groups, chosen with group=option (* is the choice here)", _groups(composer, config)),
            _section("Keys, set with key=value", _keys(verb, config)),
            _section("Flags", FLAGS.strip().splitlines()),
            _section("Examples", EXAMPLES[verb].strip().splitlines()),
        ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n\n" + "\n".join(f"  {line}".rstrip() for line in lines) if lines else ""


def _groups(composer: Composer, config: DictConfig) -> list[str]:
    choices = config.hydra.runtime.choices
    groups = [group for group in composer.groups() if group in choices]
    width = max(map(len, groups), default=0)
    lines: list[str] = []
    for group in groups:
        inner = tuple(f"{other.removeprefix(f'{group}/')}/" for other in groups if other.startswith(f"{group}/"))
        options = [option for option in composer.options(group) if not option.startswith(inner)]
        text = ", ".join(f"{option}*" if option == choices[group] else option for option in options)
        lines += _wrap(f"{group:<{width}}", text, width)
    return lines


def _keys(verb: str, config: DictConfig) -> list[str]:
    rows = list(_rows(config, "", signatures.find(SCHEMAS[verb])))
    widths = [min(max((len(row[column]) for row in rows), default=0), most) for column, most in ((0, 34), (1, 14))]
    lines: list[str] = []
    for key, value, allowed, meaning in rows:
        head = f"{key:<{widths[0]}}  {value:<{widths[1]}}"
        text = "; ".join(part for part in (allowed, meaning.rstrip(".")) if part)
        lines += _wrap(head, text, sum(widths) + 2) if text else [head]
    return lines


def _wrap(head: str, text: str, width: int) -> list[str]:
    indent = " " * (width + 2)
    return textwrap.wrap(text, WIDTH, initial_indent=f"{head}  ", subsequent_indent=indent, break_on_hyphens=False)


def _rows(node: DictConfig, prefix: str, signature: Signature | None) -> Iterator[tuple[str, str, str, str]]:
    """(key, default, allowed values, meaning) of a node's keys, and of the arguments that are not in its yaml."""
    parameters = signature.parameters if signature is not None else {}
    values = OmegaConf.to_container(node, resolve=False)  # its data may be missing: interpolations stay as they are
    assert isinstance(values, dict)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if str(key).startswith("_") or name == "hydra":
            continue
        if isinstance(value, dict) and value and name != "card":
            yield from _rows(node[key], f"{name}.", _find(value.get("_target_")))
        else:
            yield (
                name,
                "…" if name == "card" else show(value),
                *_told(parameters.get(str(key)), foreign=_is_foreign(signature)),
            )
    if _is_foreign(signature):
        if prefix == "trainer.":
            yield (f"{prefix}…", "", "", "any other argument of Lightning's Trainer")
        return
    for name, parameter in parameters.items():
        typed = parameter.hint is not ANYTHING and not isinstance(parameter.hint, Instance)
        if prefix and name not in values and typed and not parameter.required:
            yield (f"{prefix}{name}", f"({show(parameter.default)})", *_told(parameter, foreign=False))


def _is_foreign(signature: Signature | None) -> bool:
    """Lightning's, torch's and optuna's own pages tell more about their arguments than fits here."""
    return signature is not None and signature.origin.startswith(("lightning.", "torch.", "optuna."))


def _told(parameter: Parameter | None, *, foreign: bool) -> tuple[str, str]:
    """Allowed values and meaning."""
    if parameter is None:
        return "", ""
    hint = parameter.hint
    allowed = "" if hint is ANYTHING or len(hint.choices()) > MANY else str(hint)
    return allowed, "" if foreign else parameter.help


def _find(target: Any) -> Signature | None:
    try:
        return signatures.find(target) if isinstance(target, str) else None
    except TargetNotFound:
        return None
