"""Writes down what runs came to: ``python results/record.py <name> <run folder>…`` makes ``results/<name>.json``.

The runs are the seeds of one experiment, finished and otherwise alike. The file holds what a reader needs to judge a
number and to get it again: the commands, the date, the commit, the versions, the processor, each run's test metrics,
and their mean with the spread. It names no folder and no machine. ``docs/gallery.py`` turns these files into tables.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.folder import RunFolder, write_json
from kinoscope.runs.signature import essence

HERE = Path(__file__).parent
DATA = {"Digits": "digits", "MNIST": "MNIST", "FashionMNIST": "Fashion-MNIST", "CIFAR10": "CIFAR-10"}
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
PLACES = ("output_dir=", "data_dir=", "hydra.")  # overrides that say where things lie, and nothing else


def record(folders: Sequence[str | Path]) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        Refusal: a folder is not a run's, a run is not finished, or the runs differ in more than their seed.
    """
    runs = [RunFolder.open(folder) for folder in folders]
    configs = [_config(run) for run in runs]
    origins = [json.loads(run.provenance_file.read_text()) for run in runs]
    for run, config, origin in zip(runs, configs, origins, strict=True):
        if (status := run.read_summary()["status"]) != "finished":
            raise Refusal(f"'{run.path}' is {status}: only finished runs are recorded")
        if cut := [key for key in LIMITS if config["trainer"].get(key) is not None]:
            raise Refusal(f"'{run.path}' saw a part of its data (trainer.{cut[0]}): that is no result")
        differing = sorted(_differing(configs[0], config))
        if origin["data_hash"] != origins[0]["data_hash"]:
            differing.append("its data")
        if differing:
            some = ", ".join(differing[:4]) + (" …" if len(differing) > 4 else "")
            raise Refusal(f"'{run.path}' differs from '{runs[0].path}' in more than its seed: {some}")
    rows = [_run(run, config) for run, config in zip(runs, configs, strict=True)]
    if len({row["seed"] for row in rows}) < len(rows):
        raise Refusal("two of these runs have the same seed: they are one result, not two")
    host = origins[0]["host"]
    return {
        "experiment": configs[0]["name"],
        "data": data_name(configs[0]["data"]),
        "monitor": configs[0]["monitor"],
        "commands": _unique(command(origin["command"]) for origin in origins),
        "date": max(origin["date"] for origin in origins)[:10],
        "commits": _unique(_commit(origin["git"]) for origin in origins),
        "versions": origins[0]["versions"],
        "host": {
            "system": host["platform"].partition("-")[0],
            "cpu": host.get("cpu"),
            "threads": host["threads"],
            "gpus": host["gpus"],
        },
        "accelerator": configs[0]["trainer"]["accelerator"],
        "precision": configs[0]["trainer"]["precision"],
        "seeds": [row["seed"] for row in rows],
        "runs": rows,
        "test": _spread([row["test"] for row in rows]),
    }


def _config(run: RunFolder) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(run.config_file), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Keys that can change a result and are not the same in both, but for the seed and what takes its value."""
    if one["name"] != other["name"]:
        return {"experiment"}
    ours, theirs = essence(one), essence(other)
    return {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key) and key.rpartition(".")[2] != "seed"}


def data_name(data: Mapping[str, Any]) -> str:
    """What a run learned from, in a few words."""
    kind: str = data["_target_"].rpartition(".")[2]
    if kind == "Motion":
        return f"motion ({data['task']})"
    if kind == "UCF101":
        return f"UCF101 (split {data['split']}, {data['spec']['num_classes']} classes)"
    return DATA.get(kind, kind)


def command(line: str) -> str:
    """A run's command as one would type it: no folder of the machine it ran on."""
    program, *words = shlex.split(line)
    if Path(program).name in ("kinoscope", "__main__.py") and words[:1] == ["train"]:
        words = words[1:]
    elif Path(program).name != "train.py":
        return f"kinoscope.train(…) in {Path(program).name}"
    kept = [_placeless(word) for word in words if not word.lstrip("+~").startswith(PLACES)]
    return " ".join(["python -m train", *(word if "<" in word else shlex.quote(word) for word in kept)])


def _placeless(word: str) -> str:
    """``data.root=/somewhere/ucf101`` → ``data.root=<ucf101>``."""
    return re.sub(r"(?<==)(?:~|\.{0,2})/[^,\]\s]*", lambda path: f"<{Path(path[0]).name}>", word)


def _commit(git: Mapping[str, Any] | None) -> str:
    return "none" if git is None else git["commit"] + (" with changes" if git["dirty"] else "")


def _run(run: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    summary = run.read_summary()
    row = {"seed": config["seed"], **{key: summary[key] for key in ("signature", "seconds", "steps", "best", "test")}}
    evaluation = run.path / "evaluation.json"
    if evaluation.is_file():
        content = json.loads(evaluation.read_text())
        wanted = ("checkpoint", "views", "crops", "test", "val")
        row["evaluation"] = {key: content[key] for key in wanted if key in content}
    return row


def _spread(tests: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Each metric's mean over the runs, its standard deviation (n − 1 below the line; null for one run), and n."""
    shared = [name for name in tests[0] if all(name in test for test in tests)]
    return {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "n": len(values),
        }
        for name in shared
        for values in [[test[name] for test in tests]]
    }


def _unique(items: Any) -> list[str]:
    return list(dict.fromkeys(items))


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    if len(arguments) < 2:
        print("usage: python results/record.py <name> <run folder>…", file=sys.stderr)
        return 2
    name, *folders = arguments
    try:
        content = record(folders)
    except KinoscopeError as error:
        print(f"record: {error}", file=sys.stderr)
        return error.exit_code
    path = HERE / f"{name}.json"
    write_json(path, content)
    print(os.path.relpath(path))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
