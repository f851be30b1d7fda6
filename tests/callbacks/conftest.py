"""A trainer that runs the fakes, and a look at the pictures that are left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ProgressBar
from picture_fakes import Data, Run, System
from PIL import Image

from kinoscope.runs.quiet import quiet


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("test", callback, …)``: a trainer that has fitted, tested or validated; its run folder is ``tmp_path``."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)

    def go(
        verb: str,
        *callbacks: pl.Callback,
        modality: str = "image",
        multi_label: bool = False,
        system: pl.LightningModule | None = None,
        logger: Any = False,
        **options: Any,
    ) -> pl.Trainer:
        trainer = pl.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            max_epochs=2,
            logger=logger,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            **options,
        )
        with quiet():
            silent = {} if verb == "fit" else {"verbose": False}
            getattr(trainer, verb)(system or System(), datamodule=Data(modality, multi_label), **silent)
        return trainer

    return go


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str], tuple[int, int]]:
    """Checks that ``pictures/<name>.png`` is a whole PNG with something on it; returns its width and height."""

    def check(name: str) -> tuple[int, int]:
        with Image.open(tmp_path / "pictures" / f"{name}.png") as image:
            assert image.format == "PNG"
            colours = image.convert("RGB").getcolors(maxcolors=2**24)  # reads all of it
            assert colours is not None and len(colours) > 10
            return image.size

    return check
