"""Two ranks with half of every batch each against one process with all of it: weights, metrics, pictures, failures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_scenarios
import torch

from kinoscope.launch.processes import Child
from kinoscope.launch.ranks import kept_port

RANKS = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, dict[str, Any]]]]:
    """What each of the two ranks has left of each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    common = {"WORLD_SIZE": str(RANKS), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, rank_scenarios.__file__, str(folder)]
    logs = [(folder / f"log{rank}").open("w+") for rank in range(RANKS)]
    with kept_port() as port:
        common["MASTER_PORT"] = str(port)
        children = [
            Child(command, common | {"LOCAL_RANK": str(rank), "RANK": str(rank)}, stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        try:
            codes = [child.wait(timeout=480) for child in children]
        finally:
            for child in children:
                child.end(grace=0)
    for log in logs:
        log.seek(0)
    assert codes == [0] * RANKS, "\n".join(log.read() for log in logs)
    for log in logs:
        log.close()
    yield [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture
def one(tmp_path: Path) -> Any:
    """Runs a scenario in this process."""
    return lambda name: getattr(rank_scenarios, name)(1, tmp_path)


# Data without validation, few batches: Lightning has something to say about each.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize(
    "scenario",
    [
        "train_classifier", "accumulate_classifier", "train_gan", "accumulate_gan", "clip_gan", "shard_classifier",
        "shard_autoencoder",
    ],
)  # fmt: skip
def test_ranks_train_the_weights_of_one_process(ranks: list[Any], one: Any, scenario: str) -> None:
    """With the doubled batch, to 1e-6; weights, averages and fixed latents are equal bit for bit on all ranks."""
    first, second = (rank[scenario] for rank in ranks)
    alone = one(scenario.replace("shard", "train"))
    assert first.get("error") is None, first
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert_close(first["weights"], alone["weights"])
    assert first["clock"] == alone["clock"]


@pytest.mark.parametrize("scenario", ["train_classifier", "accumulate_classifier", "train_gan", "accumulate_gan"])
def test_what_is_logged_is_the_mean_over_all_ranks(ranks: list[Any], one: Any, scenario: str) -> None:
    rows, expected = ranks[0][scenario]["rows"], one(scenario)["rows"]
    assert rows
    assert [step for step, _ in rows] == [step for step, _ in expected]
    for (_, ours), (_, theirs) in zip(rows, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("scenario", ["accumulate_classifier", "accumulate_gan"])
def test_accumulated_batches_equal_one_large_batch(one: Any, scenario: str, tmp_path: Path) -> None:
    """Two batches of 4 against one of 8: weights to 1e-6, the same clock, the same rows."""
    small = one(scenario)
    whole = rank_scenarios.fit(
        rank_scenarios.classifier() if "classifier" in scenario else rank_scenarios.gan(critic_steps=2), ranks=1
    )
    assert_close(small["weights"], whole["weights"])
    assert small["clock"] == whole["clock"] == 6
    for (step, ours), (their_step, theirs) in zip(small["rows"], whole["rows"], strict=True):
        assert step == their_step
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_batch_statistics_are_those_of_rank_0_when_a_generator_is_judged(ranks: list[Any]) -> None:
    first, second = (rank["normalised_gan"]["weights"] for rank in ranks)
    assert any("running_mean" in name for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_ranks_with_fewer_samples_weigh_less(ranks: list[Any], one: Any) -> None:
    """Four samples on one rank and three on the other: accuracy and loss of the seven."""
    (_, ours), (_, theirs) = ranks[0]["uneven_batch"]["rows"][0], one("uneven_batch")["rows"][0]
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("scenario", ["test_classifier", "test_autoencoder"])
def test_a_test_gives_the_same_metrics_and_pictures(ranks: list[Any], one: Any, scenario: str) -> None:
    """Eleven samples in batches of 2 and 2, the last uneven: accuracies are equal exactly, losses to rounding."""
    first, second = (rank[scenario] for rank in ranks)
    alone = one(scenario)
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    for name, value in alone["metrics"].items():
        assert ("accuracy" not in name and "hit" not in name) or first["metrics"][name] == value
    for name in alone.keys() - {"metrics"}:
        assert first[name] == alone[name], name


def test_a_loss_that_is_no_number_on_one_rank_stops_all(ranks: list[Any]) -> None:
    first, second = (rank["break_down"]["said"] for rank in ranks)
    assert first == second
    assert "'loss' became nan at step 3" in first


def test_a_window_that_went_through_a_checkpoint_gives_the_very_same_means(ranks: list[Any]) -> None:
    first, second = (rank["window"] for rank in ranks)
    assert first == second
    assert first["straight"] == first["resumed"]
    expected = ((1 / 3 + 2 * (4 / 3)) / 3 + (2 * 0.1) / 3) / 2
    assert first["straight"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_gan_is_not_sharded_and_says_so(ranks: list[Any]) -> None:
    assert all("Adversarial is not sharded; train it with trainer=ddp" in rank["shard_gan"]["error"] for rank in ranks)
