"""What is kept of every video while it is decoded once: a cache of its frames, its optical flow.

    <data_dir>/cache/<kind>-<hash>/<path of the video><suffix>     one file per video
    <data_dir>/cache/<kind>-<hash>/index.arrow                     which of them are whole, and of which content

`kinoscope.data.prepare` hands each frame of a video to the sinks of all keepers. It runs them in child processes,
which make a keeper from its parameters alone: the modules of keepers import no torch, or every child would wait for it.
A sink writes to a file under another name; only when it is complete and on the disk is it renamed, and only when the
index names it is it read.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kinoscope.data.survey import survey
from kinoscope.data.tables import Column, equal, places, read_table, taken
from kinoscope.errors import KinoscopeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from kinoscope.data.manifest import Manifest

INDEX = "index.arrow"
# One row per video that was kept, or could not be: its path, size, time and content, and the kept file's size.
INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.int64()),  # of the video when it was kept; the kept file carries the same time
        ("sha", pa.string()),  # empty where it was tried in vain for a reason that may pass, so that it is tried again
        ("kept", pa.int64()),
        ("error", pa.string()),  # why nothing could be kept, or empty
    ]
)
# Where the keeper of each kind lives; its arguments are `Keeper.parameters` without `kind`.
KEEPERS = {
    "raw": "kinoscope.data.cache.raw:RawKeeper",
    "jpeg": "kinoscope.data.cache.jpeg:JpegKeeper",
    "reencode": "kinoscope.data.cache.reencode:ReencodeKeeper",
    "flow": "kinoscope.data.flow:FlowKeeper",
}


class Sink(Protocol):
    """Takes one video's frames, in order."""

    def add(self, frame: VideoFrame) -> None:
        """Takes the next frame. It is not to be changed, and not to be held longer than the next call.

        Raises:
            DecodeError: of such frames nothing can be kept; why is written to the index, and the video stays usable.
        """
        ...

    def close(self) -> None:
        """Completes the file. It is not called where decoding failed."""
        ...


class Keeper(Protocol):
    """What is kept of every video, in one file each.

    Attributes:
        folder: where; see `keeper`.
        suffix: of the kept file's name, behind the whole path of the video.
    """

    folder: Path
    suffix: str

    def parameters(self) -> dict[str, Any]:
        """All that decides the kept bytes, with ``kind``: what survives JSON, and makes this keeper anew."""
        ...

    def begin(self, partial: Path, height: int, width: int, fps: float) -> Sink:
        """A sink for one video.

        Args:
            partial: the file to write; it ends in ``suffix``.
            height: of the video's own frames, in pixels.
            width: likewise.
            fps: frames per second, 0 where the video does not say.
        """
        ...

    def bytes_for(self, frames: int, height: int, width: int) -> int:
        """Predicted size of the kept file, at most, for a video of these many frames of this size."""
        ...


def keeper(kind: str, data_dir: str | Path = "", root: str | Path = "", **parameters: Any) -> Keeper:
    """A keeper with a folder of its own among all kinds, parameters and data sets.

    Args:
        kind: one of `KEEPERS`.
        data_dir: the folder lies in ``<data_dir>/cache``.
        root: the data set's folder.
        parameters: of the kind.
    """
    module, _, name = KEEPERS[kind].partition(":")
    made: Keeper = getattr(importlib.import_module(module), name)(**parameters)
    identity = json.dumps([made.parameters(), str(Path(root).resolve())], sort_keys=True)
    made.folder = Path(data_dir) / "cache" / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return made


def kept_file(keeper: Keeper, path: str) -> Path:
    """The kept file of a video, whose path is relative to the data set's root."""
    return keeper.folder / f"{path}{keeper.suffix}"


def read_index(folder: Path) -> pa.Table:
    """The index of a folder of kept files, memory-mapped; without rows where there is none.

    Raises:
        KinoscopeError: it is no index of this version.
    """
    index = read_table(folder / INDEX, INDEX_SCHEMA, "an index", f"remove {folder} and run kinoscope prepare")
    return INDEX_SCHEMA.empty_table() if index is None else index


def sound(keeper: Keeper, paths: Column, newer: pa.Table) -> tuple[pa.Table, Column, bool]:
    """Compares a keeper's index with the kept files of N videos.

    Args:
        keeper: whose.
        paths: (N,) of the videos.
        newer: rows that are still on their way to the index, the newest first.

    Returns:
        The index as it should be, (N,) the content of which a whole file is kept or "", and whether the index is that.
    """
    try:
        old = read_index(keeper.folder)
    except KinoscopeError:
        old = INDEX_SCHEMA.empty_table()
    index = pa.concat_tables([newer, old])
    newest = places(index.column("path"), index.column("path")) == np.arange(len(index))
    index = index.filter(pa.array(newest))
    position = places(paths, index.column("path"))
    names = pc.call_function("binary_join_element_wise", [paths, pa.scalar(keeper.suffix), pa.scalar("")])
    files = survey(keeper.folder, names)
    failed = ~equal(taken(index.column("error"), position, ""), "")
    same = taken(index.column("kept"), position, -1).to_numpy() == files.bytes
    same &= taken(index.column("modified"), position, -1).to_numpy() == files.modified
    whole = (position >= 0) & (failed | (same & files.present))
    lost = np.zeros(len(index), bool)
    lost[position[(position >= 0) & ~whole]] = True
    index = index.filter(pa.array(~lost))
    index = index.take(pc.call_function("sort_indices", [index.column("path")]))
    contents = taken(index.column("sha"), np.where(whole, places(paths, index.column("path")), -1), "")
    return index, contents, index.equals(old)


def is_kept(folder: Path, manifest: Manifest) -> NDArray[np.bool_]:
    """(N,): the videos of a manifest whose kept file is whole and was made from the content that the manifest names."""
    index = read_index(folder)
    position = places(manifest.arrow("path"), index.column("path"))
    same = equal(taken(index.column("sha"), position, ""), manifest.arrow("sha"))
    return (position >= 0) & same & equal(taken(index.column("error"), position, ""), "")
