"""The README's gallery: every experiment, its paper's number and ours. ``python docs/gallery.py`` rewrites the table.

Nothing in it is typed by hand. Paper and number come from the ``card`` of the experiment's yaml, the departures from
the header of its network's file, our numbers from ``results/*.json`` (written by ``results/record.py``). With
``--check`` nothing is written, and the exit code is 1 if the README is out of date.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.config.compose import compose, config_folder

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- gallery -->", "<!-- /gallery -->"
HEAD = ("experiment", "paper", "the paper's number", "our result", "departures")


def experiments() -> dict[str, list[str]]:
    """Each paper's experiment → the smaller ones derived from it."""
    folder = config_folder() / "experiment"
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    papers = [name for name in names if not name.endswith("_small")]
    return {paper: [name for name in names if name == f"{paper}_small"] for paper in papers}


def results() -> dict[str, list[dict[str, Any]]]:
    """Experiment → its results files, each with its ``file`` relative to the repository."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "results").glob("*.json")):
        content = json.loads(path.read_text())
        if "experiment" in content and "runs" in content:  # benchmarks keep theirs in the same folder
            content["file"] = path.relative_to(ROOT).as_posix()
            found.setdefault(content["experiment"], []).append(content)
    return found


def table() -> str:
    """The gallery in Markdown."""
    known = results()
    rows = [HEAD, ("---",) * len(HEAD)]
    for paper, smaller in experiments().items():
        config = compose("train", [f"experiment={paper}"])
        names = "<br>".join(f"[`{name}`](configs/experiment/{name}.yaml)" for name in (paper, *smaller))
        ours = "<br>".join(_ours(result) for name in (paper, *smaller) for result in known.get(name, []))
        rows.append((names, _paper(config.card), _papers_number(config), ours or "none yet", _departures(config)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _paper(card: DictConfig) -> str:
    title = str(card.title)
    if card.arxiv:
        title = f"[{title}](https://arxiv.org/abs/{card.arxiv})"
    first, *others = card.authors
    return f"{title}, {first}{' et al.' if others else ''} {card.year}"


def _papers_number(config: DictConfig) -> str:
    paper = config.card.paper_result
    if paper.value is None:
        return str(paper.protocol)
    share = 0 <= paper.value <= 1 and "accuracy" in f"{config.monitor} {paper.protocol}"
    value = f"{100 * paper.value:.1f} %" if share else f"{paper.value:g}"
    return f"**{value}** {paper.protocol} (paper, {'verified' if paper.verified else 'from memory'})"


def _ours(result: Mapping[str, Any]) -> str:
    """One results file in a line: the test's counterpart of the monitor, on which data, over how many runs."""
    number = "samples"  # where nothing is monitored, there is no number to show
    if result["monitor"]:
        name = result["monitor"].partition("/")[2]
        number = _number(name, result["test"][f"test/{name}"])
        if not result["experiment"].startswith("video/"):  # an image is a video of one view
            number = number.replace("video accuracy", "accuracy")
    size = "small, " if result["experiment"].endswith("_small") else ""
    return f"{number} on {size}{result['data']} ([file]({result['file']}))"


def _number(name: str, metric: Mapping[str, Any]) -> str:
    mean, std, n = metric["mean"], metric["std"], metric["n"]
    if "accuracy" in name:
        shown = f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if n > 1 else "") + " %"
    else:
        shown = f"{mean:.3g}" + (f" ± {std:.1g}" if n > 1 else "")
    return f"**{shown}** {name.replace('_', ' ')}, {n} {'seed' if n == 1 else 'seeds'},"


def _departures(config: DictConfig) -> str:
    path = network_file(config)
    count = len(departures(path.read_text()))
    label = "none" if count == 0 else f"{count} listed"
    return f"[{label}]({path.relative_to(ROOT).as_posix()})"


def network_file(config: DictConfig) -> Path:
    """The source file of an experiment's network (the generator, for a GAN)."""
    model: Any = OmegaConf.to_container(config.model, resolve=False)
    target = (model.get("network") or model["generator"])["_target_"]
    spec = importlib.util.find_spec(target.rpartition(".")[0])
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


def departures(source: str) -> list[str]:
    """The items of the ``Departs:`` list in a network file's header; empty if it says "Nothing"."""
    header = ast.get_docstring(ast.parse(source)) or ""
    _, found, rest = header.partition("Departs:\n")
    if not found:
        raise ValueError("a network's header needs a list 'Departs:'")
    items = re.split(r"^ +- ", rest.partition("\n\n")[0], flags=re.MULTILINE)[1:]
    return [" ".join(item.split()) for item in items if not item.startswith("Nothing")]


def with_table(text: str, content: str) -> str:
    """``text`` with the part between the markers replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README needs the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def without_table(text: str) -> str:
    """``text`` less what is generated."""
    return with_table(text, "")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/gallery.py [--check]", file=sys.stderr)
        return 2
    old = README.read_text()
    new = with_table(old, table())
    if new == old:
        return 0
    if arguments:
        print("gallery: README.md is out of date; run: python docs/gallery.py", file=sys.stderr)
        return 1
    README.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
