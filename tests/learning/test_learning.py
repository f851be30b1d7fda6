"""Models learn what they can, and cannot learn what the lecture says they cannot. The pass levels are the spec's.

The quick ones take seconds; ``-m slow`` trains the default experiments as a user does.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import kinoscope
from kinoscope.runs.folder import RunFolder

QUIET = ["logger=csv", "trainer.accelerator=cpu", "callbacks.progress=null", "callbacks.learning_curves=null"]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("learning")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def outcome_of(*overrides: str) -> dict[str, float]:
    return RunFolder.open(kinoscope.train([*QUIET, *overrides])).read_summary()["test"]


def test_a_conv_autoencoder_leaves_less_than_half_of_the_mean_images_error() -> None:
    """200 steps on the digits. The mean training image is the best guess without looking."""
    result = outcome_of("experiment=autoencoder/conv_small", "trainer.max_steps=200", "callbacks.reconstructions=null")
    images = (
        load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16
    )  # (1797, 8, 8), as the embedded data before resizing
    baseline = ((images[-360:] - images[:-360].mean(axis=0)) ** 2).sum(axis=(1, 2)).mean() * 16  # 16 pixels for one
    assert result["test/squared_error"] < 0.5 * baseline


def test_an_encoder_that_was_trained_without_labels_tells_classes_apart() -> None:
    """A linear classifier on 32 numbers, from a frozen encoder: trained for 200 steps, or as it was drawn.

    On 360 test images the difference of two accuracies has a standard error of at most 3.7 %; chance is 10 %.
    """
    quick = ["trainer.max_steps=200", "data.batch_size=128"]
    encoder = kinoscope.train([*QUIET, *quick, "experiment=autoencoder/conv_small", "callbacks.reconstructions=null"])
    classifier = [*quick, "experiment=autoencoder/conv_classifier_small", "~stages.pretrain"]
    trained, drawn = (
        outcome_of(*classifier, f"init_from={source}")["test/video_accuracy"] for source in (encoder, "null")
    )
    assert trained > drawn + 5 * 0.037


def test_dcgans_players_stay_in_balance_and_samples_differ() -> None:
    """250 updates: critic loss between 0.2 and 1.6 (2 log 2 is a draw), spread over latents above 0.1 in [−1, 1]."""
    folder = kinoscope.train([*QUIET, "experiment=gan/dcgan_small", "trainer.max_steps=250", "callbacks.samples=null"])
    run = RunFolder.open(folder)
    assert run.read_summary()["steps"] == 250
    with run.metrics_file.open(newline="") as file:
        losses = [float(row["train/critic_loss"]) for row in csv.DictReader(file) if row["train/critic_loss"]]
    assert 0.2 < np.mean(losses[-5:]) < 1.6  # the last hundred updates
    samples = kinoscope.load_run(folder).sample(64, seed=1) * 2 - 1
    assert samples.std(dim=0).mean() > 0.1
    assert torch.isfinite(samples).all()


def test_one_frame_is_enough_where_appearance_decides() -> None:
    """Sixteen epochs on 576 videos; chance is 1/6."""
    result = outcome_of(
        "experiment=video/single_frame_small", "data.task=appearance", "data.clips_per_group=6", "trainer.max_epochs=16"
    )
    assert result["test/video_accuracy"] > 0.8


@pytest.mark.slow
def test_slow_fusion_sees_motion() -> None:
    assert outcome_of()["test/video_accuracy"] >= 0.95


@pytest.mark.slow
def test_one_frame_does_not() -> None:
    """420 test videos of six classes: chance is 1/6 with a standard error of 1.8 %."""
    accuracy = outcome_of("experiment=video/single_frame_small")["test/video_accuracy"]
    assert abs(accuracy - 1 / 6) < 3 * math.sqrt(1 / 6 * 5 / 6 / 420)


@pytest.mark.slow
def test_one_frame_is_enough_for_appearance_at_full_size() -> None:
    assert outcome_of("experiment=video/single_frame_small", "data.task=appearance")["test/video_accuracy"] >= 0.95
