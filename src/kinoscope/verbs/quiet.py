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
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences those warnings inside, and no others; of Lightning's log only warnings and errors are kept."""
    chatter = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in chatter]
    for logger in chatter:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in DOES_NOT_APPLY:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)
