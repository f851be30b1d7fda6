"""The panels of a dashboard show what runs log; sending one needs an account."""

from __future__ import annotations

import builtins
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import AUTOENCODER, GAN, VIDEO, Command

import kinoscope
from fake_wandb import KEY, FakeWandB
from kinoscope.verbs.dashboard import FAMILIES
from wandb_records import Records, files

# wandb-workspaces is built with what pydantic calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

MOVING = [line for line in VIDEO if "experiment" not in line]
EXPERIMENTS = {
    "video": [*MOVING, "experiment=video/slow_fusion_small", "data.validation=0.2", "model.log_every=1"],
    "gan": GAN,
    "autoencoder": AUTOENCODER,
}


@pytest.fixture(scope="module", params=list(EXPERIMENTS))
def family(request: pytest.FixtureRequest, home: Path, data_dir: str) -> tuple[str, Records]:
    """A family's name, and what one of its runs has logged."""
    name = str(request.param)
    more = [data_dir] if name == "video" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        folder = kinoscope.train(
            [
                *EXPERIMENTS[name],
                *more,
                "logger=wandb",
                "trainer.max_epochs=1",
                "callbacks.histograms.every_n_windows=1",
            ]
        )
        return name, Records.of(files(home / folder)[0])


def shown(spec: Any) -> Iterator[dict[str, Any]]:
    """The panels of a workspace as it is sent."""
    for section in spec["section"]["panelBankConfig"]["sections"]:
        yield from section["panels"]


def named(panel: dict[str, Any]) -> list[str]:
    config = panel["config"]
    if "panel2Config" in config:  # a table is an expression
        return re.findall(r'"key":\s*\{[^{}]*"val":\s*"([^"]+)"', json.dumps(config))
    return [*config.get("metrics", []), *config.get("mediaKeys", [])]


def test_every_panel_shows_what_a_run_logs(family: tuple[str, Records], run: Command) -> None:
    name, logged = family
    done = run("dashboard", f"family={name}", "project=p", "entity=e", "dry=true")
    assert done.code == 0, done.err
    sent = json.loads(done.out)
    assert (sent["entity"], sent["project"], sent["name"]) == ("e", "p", f"kinoscope {name}")
    panels = list(shown(sent["spec"]))
    metrics = [metric for panel in panels for metric in named(panel)]
    assert metrics and set(metrics) <= logged.names, set(metrics) - logged.names
    wanted = FAMILIES[name]
    curves = [metric for panel in wanted.curves for metric in panel.metrics]
    assert {*wanted.results, *curves, *wanted.pictures, *wanted.videos, *wanted.tables} <= set(metrics)
    (pattern,) = [panel["config"]["metricRegex"] for panel in panels if panel["config"].get("metricRegex")]
    assert any(re.match(pattern, metric) for metric in logged.names)
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert lines and all(config["xAxis"] == "step" for config in lines)


def test_a_run_is_found_by_its_familys_tag(family: tuple[str, Records], run: Command) -> None:
    name, logged = family
    assert name in logged.run["tags"]
    (runset,) = json.loads(run("dashboard", f"family={name}", "dry=true").out)["spec"]["section"]["runSets"]
    assert json.dumps(name) in json.dumps(runset["filters"])
    assert f"summary:{FAMILIES[name].results[0]}" in runset["runFeed"]["columnOrder"]


def test_gradients_and_weights_of_every_system(family: tuple[str, Records]) -> None:
    """Of both players of a GAN, too."""
    name, logged = family
    players = {"gan": ["generator", "critic"]}.get(name, ["network"])
    assert "gradients/total" in logged.names
    for player in players:
        assert any(metric.startswith(f"gradients/{player}") for metric in logged.names)
        assert any(metric.startswith(f"weights/{player}") for metric in logged.names)


def test_sending_needs_an_account(run: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(here / "netrc"))
    done = run("dashboard", "family=gan")
    assert done.code == 2 and "no API key" in done.err and "dry=true" in done.err and "Traceback" not in done.err


def test_it_is_sent_where_there_is_one(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    server = FakeWandB()
    try:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        wandb.teardown()
        done = run("dashboard", "family=gan", "project=p")
        assert done.code == 0, done.err
        (view,) = server.views
        assert (view["entityName"], view["projectName"], view["displayName"]) == ("someone", "p", "kinoscope gan")
        assert "train/generator_loss" in view["spec"]
        assert done.out.strip().startswith("http") and "/someone/p" in done.out
    finally:
        server.die()
        wandb.teardown()


def test_the_package_may_be_missing(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import_as_ever = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ModuleNotFoundError(name)
        return import_as_ever(name, *rest, **more)

    for module in [module for module in sys.modules if module.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    done = run("dashboard", "family=gan", "dry=true")
    assert done.code == 2 and "pip install 'kinoscope[dashboard]'" in done.err


def test_an_unknown_family_is_refused(run: Command) -> None:
    done = run("dashboard", "family=gam", "dry=true")
    assert done.code == 2 and "did you mean 'gan'?" in done.err
