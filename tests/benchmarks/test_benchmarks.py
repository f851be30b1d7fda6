"""Each benchmark runs and ends in its ratios, and compares like with like; how fast anything is, no test says."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"

RATIOS = {
    "cache_formats.py": [
        "reencode_bytes_vs_videos",
        "reencode_cpu_vs_probe",
        "reencode_psnr",
        "jpeg_bytes_vs_videos",
        "jpeg_cpu_vs_probe",
        "jpeg_psnr",
        "raw_bytes_vs_videos",
        "raw_cpu_vs_probe",
    ],
    "gpu_data.py": [
        f"c3d_{source}_{what}"
        for source in ("videos", "4_clips", "jpeg", "raw")
        for what in ("clips_per_second", "data_share")
    ],
    "gpu_steps.py": [
        f"{name}_{what}"
        for name in ("c3d", "dcgan")
        for what in ("steps_per_second", "samples_per_second", "data_share", "share_of_ceiling")
    ],
    "manifest_memory.py": [
        *(f"{kind}_memory_last_vs_first" for kind in ("short", "missing", "present")),
        *(
            f"{kind}_{what}_vs_short"
            for kind in ("missing", "present")
            for what in ("first_batch", "next_epoch", "resident")
        ),
    ],
    "startup.py": ["first_step_vs_imports", "job_vs_imports"],
    "train_step.py": ["c3d_small_step", "dcgan_small_step", "mlp_gan_step"],
    "transforms.py": [
        f"{chain}{size}"
        for size in ("", "_quarter_batch")
        for chain in ("crop_flip_normalise", "multi_scale_crop", "random_resized_crop", "colour_jitter", "erasing")
    ],
    "video_pipeline.py": [
        *(f"avi_12_{name}" for name in ("default", "4_clips", "reencode", "jpeg", "raw")),
        "raw_0_workers_vs_2",
        "device_vs_float",
        "training_raw_vs_2_workers",
    ],
}
SMALLEST = {
    "cache_formats.py": ["--videos=1"],
    "gpu_data.py": ["--rehearse", "--steps=3", "--workers=1"],
    "gpu_steps.py": ["--rehearse", "--steps=3"],
    "manifest_memory.py": ["--videos=1000", "--batches=20"],
    "startup.py": ["--seconds=0", "--jobs=1", "--once"],
    "train_step.py": ["--seconds=0", "--batch-size=2"],
    "transforms.py": ["--seconds=0", "--batch-size=2"],
    "video_pipeline.py": ["--seconds=0", "--videos=16", "--steps=2", "--only", "avi_12"],
}


@pytest.mark.timeout(1800)  # most of these start a dozen processes that import torch
@pytest.mark.parametrize("name", sorted(RATIOS))
def test_ratios_come_last_and_are_finite(name: str, tmp_path: Path) -> None:
    if name in ("cache_formats.py", "video_pipeline.py"):
        pytest.importorskip("decord", reason="decord has no wheel for this machine")
    command = [sys.executable, str(FOLDER / name), *SMALLEST[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = [line.partition(": ") for line in done.stdout.splitlines()[-len(RATIOS[name]) :]]
    assert [ratio_name for ratio_name, _, _ in last] == RATIOS[name]
    for ratio_name, _, ratio in last:
        assert math.isfinite(float(ratio))
        # Who had all data at hand may have waited for none.
        assert float(ratio) >= 0 if ratio_name.endswith("_data_share") else float(ratio) > 0, ratio_name
    assert not list(tmp_path.iterdir()), "everything it wrote lay in a temporary folder"


@pytest.mark.parametrize(
    ("name", "players", "extra"),
    [
        ("c3d_small_step", ["network"], ["model.network.dropout=0"]),
        ("dcgan_small_step", ["generator", "critic"], ["model.log_every=2"]),
        ("mlp_gan_step", ["generator", "critic"], ["model.log_every=2"]),
    ],
)
def test_both_loops_do_the_same_work(
    name: str, players: list[str], extra: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same noise and no dropout, both loops end in the same weights but for rounding."""
    monkeypatch.syspath_prepend(str(FOLDER))
    train_step: Any = importlib.import_module("train_step")
    systems: list[Any] = []
    plain_step = train_step.plain_step

    def with_the_same_noise(system: Any) -> Any:
        systems.append(system)
        step: Any = plain_step(system)
        number = itertools.count()
        step.latent = lambda n: system.draw(next(number), n)
        return step

    monkeypatch.setattr(train_step, "plain_step", with_the_same_noise)
    overrides = [*train_step.EXPERIMENTS[name], *extra, "data.batch_size=2"]
    loader = train_step.measure(overrides, tmp_path, deadline=time.monotonic())
    assert len(loader.ours) == len(loader.plain) == 1
    assert systems[0].clock == 4
    for player in players:
        ours, plain = (getattr(owner, player).state_dict() for owner in (systems[0], loader.step))
        for weight in ours:
            torch.testing.assert_close(ours[weight], plain[weight], rtol=1e-4, atol=1e-5, msg=f"{player}.{weight}")
