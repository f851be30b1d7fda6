"""The keys at the root of each command's config: their types and what they mean.

These classes are never instantiated. They are read as any ``_target_`` is (see signatures.py), so that the root of a
config is checked by the same rules as every node below it, and ``--help`` prints their descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Train:
    """One experiment, from a config to a tested checkpoint.

    Args:
        seed: every draw of the run follows from it.
        name: the experiment's name, and its folder's below output_dir.
        monitor: the validation metric that chooses the best checkpoint.
        mode: whether less or more of the monitor is better.
        output_dir: where run folders are made.
        data_dir: where generated and downloaded data and manifests lie.
        resume: a run folder to continue, or auto for the newest unfinished run like this one.
        stages: what is trained before, in order, each by keys and values of its own.
        sweep: how several runs are started, with -m or by sweep=grid, random, optuna or wandb.
        init_from: a run whose best weights this one begins with, or stage:<name> for one of its stages.
        fresh: patterns of parameter names that init_from leaves as they are drawn, as network.head.*.
        freeze: patterns of parameter names that are not trained, as network.encoder.*.
        threads: of the training process on the CPU; by default the cores that the loader's workers leave.
        compile: true, or options of torch.compile such as {mode: max-autotune}, for networks compiled before training.
        channels_last: images and videos lie in memory with their channels last, which GPUs convolve faster.
        deterministic: only algorithms that give the same result each time; warn names those that have no such form.
        check: build, run one batch forward and backward, print a table of layers and stop.
        card: the paper, its number and its protocol.
    """

    seed: int
    name: str
    monitor: str | None
    mode: Literal["min", "max"]
    output_dir: str
    data_dir: str
    resume: str | None
    stages: dict[str, dict[str, Any]]
    sweep: dict[str, Any]
    init_from: str | None
    fresh: list[str]
    freeze: list[str]
    threads: int | None
    compile: bool | dict[str, Any] | None
    channels_last: bool
    deterministic: bool | Literal["warn"]
    check: bool
    card: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any]
    logger: dict[str, Any] | None


@dataclass
class Evaluate:
    """Another test of a run.

    Args:
        run: a run folder, outputs/<experiment>/<date_time>-<signature>.
        checkpoint: which of its checkpoints.
        subset: which part of the data; best is never chosen on test.
        views: clips per video, spread evenly over it.
        crops: crops per view.
        batch_size: videos or images per batch.
        workers: processes that read data.
        data_root: the data set's folder, where it has moved.
        trust: packages of your own whose classes the run's config names.
        accelerator: what computes.
        devices: how many of them.
        precision: the arithmetic.
        output_dir: where a sweep over evaluations writes its table.
    """

    run: str
    checkpoint: Literal["best", "last"]
    subset: Literal["test", "validation"]
    views: int | None
    crops: Literal[1, 3, 5, 10] | None
    batch_size: int | None
    workers: int | None
    data_root: str | None
    trust: list[str]
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: int
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "64-true"]
    output_dir: str


@dataclass
class Sample:
    """Pictures from a run.

    Args:
        run: a run folder, outputs/<experiment>/<date_time>-<signature>.
        checkpoint: which of its checkpoints.
        n: how many samples or reconstructions.
        seed: of the latent noise.
        output: the picture's file; by default it goes into the run's pictures.
        workers: processes that read data.
        data_root: the data set's folder, where it has moved.
        trust: packages of your own whose classes the run's config names.
        output_dir: where a sweep over samples writes its table.
    """

    run: str
    checkpoint: Literal["best", "last"]
    n: int
    seed: int
    output: str | None
    workers: int | None
    data_root: str | None
    trust: list[str]
    output_dir: str


@dataclass
class Prepare:
    """A data set made ready.

    Args:
        data: the data set.
        seed: of the split into training and validation groups, as in training.
        data_dir: where generated and downloaded data and manifests lie.
        shards: a folder that the videos are written to, in large files, for data=shards to train from.
        shard_megabytes: size of each of them.
        output_dir: where a sweep over data sets writes its table.
    """

    data: dict[str, Any]
    seed: int
    data_dir: str
    shards: str | None
    shard_megabytes: float
    output_dir: str


@dataclass
class Dashboard:
    """A W&B workspace for the runs of one family.

    Args:
        family: whose panels.
        project: W&B project that the runs are in.
        entity: W&B team or user; by default the account's own.
        name: of the workspace.
        dry: print what would be sent, and send nothing; needs no account.
        output_dir: where a sweep over dashboards writes its table.
    """

    family: Literal["video", "gan", "autoencoder"]
    project: str
    entity: str | None
    name: str
    dry: bool
    output_dir: str


@dataclass
class Sync:
    """Sends to W&B what its server does not have.

    Args:
        output_dir: where the run folders are.
        dry: list what would be sent, and send nothing; needs no account.
    """

    output_dir: str
    dry: bool


@dataclass
class Report:
    """How a run went, or how several compare.

    Args:
        run: one run's folder, outputs/<experiment>/<date_time>-<signature>; also while it runs.
        runs: several, by a folder that they lie in, a pattern, a list, or a sweep's folder.
        monitor: the metric to draw; by default what the runs monitor.
        output: the picture's file; by default report.png in the folder that runs names, or here.
        output_dir: where a sweep over reports writes its table.
    """

    run: str | None
    runs: str | list[str] | None
    monitor: str | None
    output: str | None
    output_dir: str


SCHEMAS: dict[str, str] = {
    verb: f"{__name__}.{schema.__name__}"
    for verb, schema in {
        "train": Train,
        "evaluate": Evaluate,
        "sample": Sample,
        "prepare": Prepare,
        "report": Report,
        "dashboard": Dashboard,
        "sync": Sync,
    }.items()
}
