"""Trains from shards: the videos' own files are not needed."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinoscope.data.cache import Cache
from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.decode import Decoder, part
from kinoscope.data.flow_stacks import FlowStacks
from kinoscope.data.keys import KeyedBatchSampler
from kinoscope.data.loading import Subset
from kinoscope.data.manifest import Manifest
from kinoscope.data.shards.description import Description, join
from kinoscope.data.shards.order import AHEAD, ShardBatchSampler
from kinoscope.data.shards.store import Ahead, Store
from kinoscope.data.shards.writing import INDEX_SCHEMA
from kinoscope.data.sources import Box, Files
from kinoscope.data.tables import read_table
from kinoscope.data.video import Videos
from kinoscope.errors import DecodeError, KinoscopeError, Refusal

MOST_EVICTIONS = 5  # of one shard between its arrival and its reading

log = logging.getLogger("kinoscope")


class ShardedFiles(Files):
    """Frames decoded from videos inside of shards, in place: FFmpeg reads a part of a file as if it were one.

    Args:
        store: the shards.
        manifest: the videos.
        resize: of the decoded frames.
        decoder: pyav, decord or torchcodec.
    """

    def __init__(
        self, store: Store, manifest: Manifest, resize: int | tuple[int, int] | None, decoder: Decoder = "pyav"
    ) -> None:
        super().__init__(Path(store.root), manifest, resize, decoder)
        self.store = store
        file = store.local(store.description.index)
        index = read_table(file, INDEX_SCHEMA, "an index of shards", "write the shards anew")
        if index is None or len(index) != len(manifest):
            raise KinoscopeError(f"{file}: is no index of these {len(manifest)} videos; write the shards anew.")
        self.shards, self.offsets, self.sizes = (index[name].combine_chunks().to_numpy() for name in INDEX_SCHEMA.names)

    def location(self, row: int) -> str:
        """Where a video is to be decoded from, after its shard was fetched if need be."""
        shard = self.store.local(self.store.description.shards[self.shards[row]])
        return part(shard, int(self.offsets[row]), int(self.sizes[row]))

    def read(self, row: int, indices: NDArray[np.int64], box: Box | None = None) -> NDArray[np.uint8]:
        shard = self.store.description.shards[self.shards[row]]
        for _ in range(MOST_EVICTIONS):
            location = self.location(row)
            try:
                return self.decoded(location, row, indices, box)
            except DecodeError as error:
                if not self.store.remote or (self.store.folder / shard.name).exists():
                    name = f"{self.manifest.path(row)} in {join(self.store.root, shard.name)}"
                    raise DecodeError(str(error).replace(location, name)) from None
        raise KinoscopeError(
            f"{shard.name} was removed from {self.store.folder} whenever it was needed; data.cache_gigabytes is too "
            "small for all that use this folder."
        )


class Sharded(Videos):
    """Videos in shards, in a folder or behind a URL, as ``kinoscope prepare … shards=<folder>`` writes them.

    Args:
        root: the folder that holds shards.json, read in place; or a URL that fsspec knows, whose shards are fetched.
        window: about how many shards are in use at a time: what the order of an epoch mixes. A multiple of the number
            of devices lets each of them read its own.
        cache_gigabytes: fetched shards that may lie in ``<data_dir>/shards`` at a time.
        data_dir: as in `Videos`, like all arguments that follow.
        decoder: the one that the shards were prepared for.
        validation: what the shards were written with; which videos are held out is settled since.
        cache: none, since shards are read as they are.
        flow: none, since shards hold videos alone.
        videos: as of `Videos`.
    """

    name = "shards"

    def __init__(
        self,
        root: str,
        window: int = 16,
        cache_gigabytes: float = 50.0,
        data_dir: str = "data",
        decoder: Decoder = "pyav",
        validation: float = 0.1,
        cache: Cache = "none",
        flow: FlowStacks | None = None,
        **videos: Any,
    ) -> None:
        if window < 1:
            raise ValueError(f"data.window must be at least 1, got {window}")
        self.window = window
        folder = Path(data_dir) / "shards" / hashlib.sha256(root.encode()).hexdigest()[:8]
        self.store = Store(root, folder, round(cache_gigabytes * 1e9))
        self.ahead = Ahead(self.store)
        known = self.store.description
        if validation != known.validation:
            raise Refusal(f"data.validation={validation:g}: {root} was written with {known.validation:g}, for good.")
        if decoder != known.decoder:
            raise Refusal(
                f"data.decoder={decoder}: {root} was prepared for {known.decoder}; write shards of their own."
            )
        if cache != "none":
            raise Refusal(f"data.cache={cache}: shards are read as they are; take data.cache=none.")
        if flow is not None:
            raise Refusal(f"data.flow: {root} holds videos alone; take the data set's own files for optical flow.")
        used = min(len(known.shards), window + AHEAD)
        needed = sum(sorted((shard.bytes for shard in known.shards), reverse=True)[:used])
        if self.store.remote and needed > self.store.limit:
            raise Refusal(
                f"data.cache_gigabytes={cache_gigabytes:g} does not hold the {used} shards that are in use at a time; "
                f"take {needed / 1e9:.2g}, or a smaller data.window (now {window})."
            )
        super().__init__(root=root, data_dir=data_dir, decoder=decoder, validation=validation, cache=cache, **videos)

    def class_names(self) -> list[str]:
        return list(self.store.description.classes)

    def fingerprint(self) -> str:
        known = self.store.description
        identity = [known.fingerprint, known.index.sha256, [shard.sha256 for shard in known.shards]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def manifest_file(self) -> Path:
        return self.store.local(self.store.description.manifest)

    def prepare_data(self) -> None:
        if self.subsets:
            return
        self.store.check()
        known, manifest = self.store.description, Manifest.open(self.manifest_file)
        size = sum(shard.bytes for shard in known.shards) / 1e9
        log.info("%s: %d videos in %d shards, %.3g GB", known.name, len(manifest), len(known.shards), size)

    def write_shards(self, folder: Path, megabytes: float) -> Description:
        raise Refusal("shards: these data are shards already; copy their folder as it is.")

    def source(self, manifest: Manifest) -> ShardedFiles:
        return ShardedFiles(self.store, manifest, self.resize, self.decoder)

    def cures(self) -> list[str]:
        return [cure for cure in super().cures() if not cure.startswith("data.cache")]

    def sampler_of(
        self, subset: Subset, batch_size: int, shuffle: bool, drop_last: bool, rank: int, world_size: int
    ) -> KeyedBatchSampler:
        dataset = self.subsets[subset]
        assert isinstance(dataset, VideoDataset)
        assert isinstance(dataset.source, ShardedFiles)
        if self.window % world_size and rank == 0 and subset == "train":
            log.warning(
                "data.window=%d is no multiple of %d devices: each of them reads nearly all shards",
                self.window,
                world_size,
            )
        return ShardBatchSampler(
            dataset.source.shards[dataset.rows].astype(np.int64), self.window,
            self.ahead.expect if self.store.remote else None,
            batch_size, self.seed, shuffle, drop_last, rank, world_size,
        )  # fmt: skip
