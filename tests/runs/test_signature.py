"""What makes two runs the same run."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kinoscope.runs.signature import flatten, is_inside, signature

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "video/x",
    "output_dir": "outputs",
    "logger": {"mode": "offline"},
    "data": {"batch_size": 8, "workers": 2, "root": "/data/a"},
    "trainer": {"precision": "32-true", "max_epochs": 3, "devices": 1},
    "callbacks": {"early_stopping": None, "progress": {"every": 1}},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


def test_it_is_eight_hex_digits_and_does_not_depend_on_key_order() -> None:
    ours = signature(CONFIG, "data")
    assert len(ours) == 8
    assert int(ours, 16) >= 0
    assert ours == signature(dict(reversed(list(CONFIG.items()))), "data")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("data.batch_size", 9),
        ("trainer.precision", "bf16-mixed"),
        ("callbacks.early_stopping", {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "patience": 3}),
        ("callbacks.swa", {"_target_": "lightning.pytorch.callbacks.StochasticWeightAveraging"}),
    ],
)
def test_what_can_change_the_result_changes_it(key: str, value: Any) -> None:
    assert signature(changed(key, value), "data") != signature(CONFIG, "data")
    assert is_inside(key, changed(key, value)["callbacks"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logger", {"mode": "online"}),
        ("data.workers", 0),
        ("data.root", "/data/b"),
        ("output_dir", "elsewhere"),
        ("callbacks.progress", {"every": 9}),
        ("trainer.devices", [3]),
    ],
)
def test_what_cannot_does_not(key: str, value: Any) -> None:
    assert signature(changed(key, value), "data") == signature(CONFIG, "data")
    assert not is_inside(key, changed(key, value)["callbacks"])


def test_data_and_device_count_belong_to_it() -> None:
    assert len({signature(CONFIG, "data"), signature(CONFIG, "other"), signature(CONFIG, "data", devices=2)}) == 3


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_a_cache_of_the_same_pixels_is_the_same_run_and_one_that_loses_some_is_not() -> None:
    found = {cache: signature(changed("data.cache", cache), "data") for cache in ("none", "raw", "jpeg", "reencode")}
    assert found["none"] == found["raw"]
    assert len(set(found.values())) == 3


@pytest.mark.parametrize(("decoder", "alike"), [("pyav", True), ("decord", False), ("torchcodec", False)])
def test_raw_frames_are_those_of_pyav_and_of_no_other_decoder(decoder: str, alike: bool) -> None:
    runs = [changed("data.cache", cache) for cache in ("none", "raw")]
    for run in runs:
        run["data"]["decoder"] = decoder
    assert (signature(runs[0], "data") == signature(runs[1], "data")) == alike
