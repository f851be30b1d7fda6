"""Where a classifier is sure and wrong: the samples to look at first."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np

from kinoscope.callbacks.drawing import enlarge, hand_over, log, plural, publish, spec_of
from kinoscope.callbacks.predictions import TiledEvaluation, hits_of, probs_and_label, tile_of
from kinoscope.callbacks.tiles import Tile, draw_tiles, encode
from kinoscope.runs import agreement

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

CLIP_WIDTH = 240  # pixels at least: players do not enlarge
COLUMNS = ("sample", "file", "predicted", "truth", "confidence")


class Mistakes(TiledEvaluation):
    """The most confident mistakes of a test: ``mistakes.png``, for videos a clip of each, and a table for the loggers.

    Sorted by the probability of the wrong answer. Clips are ``mistakes/<place>-<index>.mp4`` in the run's pictures;
    the index is the sample's position in its subset.
    """

    def begin(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        self._worst: list[tuple[tuple[float, int], Tile]] = []  # a heap: the least of them first

    def watch(self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: Batch) -> None:
        probs, label = probs_and_label(outputs)
        probability, predicted = probs.max(dim=1)
        names = spec_of(trainer, system).classes
        for i in (~hits_of(predicted, label)).nonzero().flatten().tolist():
            rank = (float(probability[i]), -int(batch["index"][i]))  # no two are equal, in whichever order they come
            if len(self._worst) == self.samples and rank <= self._worst[0][0]:
                continue
            if any(rank == kept for kept, _ in self._worst):  # a sample that filled up a batch
                continue
            tile = tile_of(trainer, batch, i, names, predicted[i], probability[i], label[i])
            heapq.heappush(self._worst, (rank, tile))
            if len(self._worst) > self.samples:
                heapq.heappop(self._worst)

    def end(self, trainer: pl.Trainer, system: pl.LightningModule, subset: str) -> None:
        found = dict(entry for entries in agreement.gather(self._worst) for entry in entries)
        tiles = [found[rank] for rank in sorted(found, reverse=True)[: self.samples]]
        self._worst = []
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "pictures"
        _forget(folder)
        if not tiles:
            return
        noun = spec_of(trainer, system).modality
        subtitle = f"{plural(len(tiles), noun)} of the {subset} set, sorted by the confidence in the wrong answer"
        publish(trainer, draw_tiles(tiles, self.columns, "Most confident mistakes", subtitle).picture(), "mistakes")
        rows = []
        for place, tile in enumerate(tiles, 1):
            said = [tile.predicted, tile.truth, tile.probability]
            rows.append([tile.index, _file(trainer, subset, tile), *said, self._look(folder, place, tile)])
        hand_over(trainer, "log_table", key="mistakes", columns=[*COLUMNS, "look"], rows=rows)

    def _look(self, folder: Path, place: int, tile: Tile) -> Any:
        """What the table shows of a mistake: its clip's file (None if it cannot be written), or its picture."""
        if len(tile.frames) == 1:
            from PIL import Image

            return Image.fromarray(tile.centre)
        path = folder / "mistakes" / f"{place:02d}-{tile.index}.mp4"
        width = max(CLIP_WIDTH, tile.frames.shape[2])
        try:
            encode(np.stack([np.asarray(enlarge(frame, width)) for frame in tile.frames]), path, self.fps)
        except Exception as error:  # whatever the encoder throws, the run is worth more than its clip
            log.warning("clip %s was not written: %s", path, error)
            return None
        return path


def _file(trainer: pl.Trainer, subset: str, tile: Tile) -> str:
    """The sample's file, where its data are files."""
    path = getattr(getattr(trainer, "datamodule", None), "path", None)
    return str(path(subset, tile.index)) if callable(path) else ""


def _forget(folder: Path) -> None:
    """Removes what an earlier test has left: there may be fewer mistakes now."""
    (folder / "mistakes.png").unlink(missing_ok=True)
    for clip in (folder / "mistakes").glob("*.mp4"):
        clip.unlink(missing_ok=True)
