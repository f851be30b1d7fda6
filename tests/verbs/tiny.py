"""Commands that take a second, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

COMMON = ["logger=csv", "callbacks.progress=null", "trainer.accelerator=cpu", "data.workers=0"]
VIDEO = [
    "experiment=video/single_frame_small", *COMMON, "data.groups=8", "data.clips_per_group=1", "data.batch_size=10",
    "model.network.channels=[4,4,4,4,4]", "model.network.fc=[8]",
]  # fmt: skip
IMAGES = ["data.batch_size=32", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "model.log_every=1"]
AUTOENCODER = ["experiment=autoencoder/conv_small", *COMMON, *IMAGES, "model.network.widths=[4,4,4]"]
GAN = ["experiment=gan/dcgan_small", *COMMON, *IMAGES, "model.generator.width=4"]
ONE_EPOCH = ["trainer.max_epochs=1", "callbacks.learning_curves=null"]


class Outcome(NamedTuple):
    """What a command leaves: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
