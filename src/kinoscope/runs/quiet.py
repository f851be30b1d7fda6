"""Lightning's advice that does not apply here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

DOES_NOT_APPLY = (
    r".*does not have many workers.*",  # `workers` is chosen per data set, and measured
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own folder
    r".*`training_step` returned `None`.*",  # systems that step by themselves return nothing
    r".*is smaller than the logging interval.*",  # windows span epochs here
    r".*configure_optimizers.*returned `None`.*",  # fitted systems have none
    r".*module\(s\) in eval mode at the start of training.*",  # an averaged generator always is
    r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`",  # it is refused
    r"It is recommended to use `self.log\(.*sync_dist=True\)`.*",  # what systems publish is equal on all ranks
    r"FSDP2-wrapped module .* returned a view tensor.*",  # systems change no network's output in place
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
)
PROFILES = "lightning.pytorch.profilers"  # its table is logged, and was asked for


@contextmanager
def quiet() -> Iterator[None]:
    """Silences those warnings inside, and no others; of Lightning's log warnings, errors and profiles are kept."""
    kept = {"lightning.pytorch": logging.WARNING, "lightning.fabric": logging.WARNING, PROFILES: logging.INFO}
    chatter = [logging.getLogger(name) for name in kept]
    levels = [logger.level for logger in chatter]
    for logger, level in zip(chatter, kept.values(), strict=True):
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            for message in DOES_NOT_APPLY:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)
