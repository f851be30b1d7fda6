"""What is done with one video when a data set is prepared: read once, measured, and kept. Runs in child processes.

A child only writes files that nobody reads; its parent, who holds the lock, renames them. So a child that outlives a
killed parent for a moment does no harm.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinoscope.data import decode
from kinoscope.data.children import sign_of_life
from kinoscope.data.decode import Decoder
from kinoscope.data.decoders import pyav
from kinoscope.data.keeping import Sink, keeper
from kinoscope.data.tables import sync
from kinoscope.errors import DecodeError, KinoscopeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# More missing or damaged frames than this share, and the file is called bad; fewer are counted and reported.
TOLERANCE = 0.1
# The columns that only reading the file can fill.
UNMEASURED: dict[str, Any] = {
    "frames": 0,
    "fps": 0.0,
    "width": 0,
    "height": 0,
    "key_frame_spacing": 0,
    "damaged": 0,
    "random_access": False,
    "sha": "",
    "error": "",
}

# One file to be kept: the keeper's parameters, where to write, and the content that was kept before, or "".
Job = tuple[dict[str, Any], str, str]


def measure(
    path: str, decoder: Decoder, size: int, modified: int, known: str, jobs: Sequence[Job]
) -> tuple[dict[str, Any] | None, list[dict[str, Any] | None]]:
    """Measures one video, and keeps of it what is asked for.

    Args:
        path: the file.
        decoder: whose random access is tried.
        size: of the file in bytes, as it was found.
        modified: its time in ns, likewise.
        known: SHA-256 of the content that was measured before, or "".
        jobs: what to keep; where the content has not changed, nothing is kept again.

    Returns:
        The columns, or None where the content is the known one and nothing had to be kept; and for every job its
        columns of the index, or None where nothing was written. A fault that may pass has no ``sha``.

    Raises:
        KinoscopeError: what is kept cannot be written.
    """
    measured, keep = dict(UNMEASURED), _Keep({})
    try:
        with Path(path).open("rb") as file:
            measured["sha"] = hashlib.file_digest(file, "sha256").hexdigest()
        keep.jobs = {number: job for number, job in enumerate(jobs) if job[2] != measured["sha"]}
        if measured["sha"] == known and not keep.jobs:
            return None, [None] * len(jobs)
        info = decode.probe(path, decoder, keep.add, keep.begin)
        measured.update({name: value for name, value in asdict(info).items() if name in measured})
        if info.frames < (1 - TOLERANCE) * info.claimed:
            raise DecodeError(
                f"{path}: is cut short or damaged; of the {info.claimed} frames it announces {info.frames} decode."
            )
        if info.damaged > TOLERANCE * info.frames:
            raise DecodeError(f"{path}: is damaged; {info.damaged} of its {info.frames} frames do not decode cleanly.")
        status = Path(path).stat()
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            measured["sha"] = ""  # of neither content
            raise DecodeError(f"{path}: changed while it was being read.")
        keep.finish(modified)
    except DecodeError as error:
        return {**measured, "error": str(error)}, [None] * len(jobs)
    except OSError as error:  # a disk or a net may be better tomorrow
        return {**measured, "sha": "", "error": f"{path}: cannot be read: {error.strerror}."}, [None] * len(jobs)
    return measured, [keep.columns(number) for number in range(len(jobs))]


def announced(path: str) -> tuple[int, int, int] | None:
    """Frames, height and width that a video's header claims; None where it cannot be opened."""
    try:
        with pyav.opened(path) as (container, stream):
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            frames = stream.frames or round((container.duration or 0) / 1e6 * rate)
            return frames, stream.height, stream.width
    except DecodeError:
        return None


class _Keep:
    """Hands each frame of one video to all sinks; one that can make nothing of these frames drops out with a reason."""

    def __init__(self, jobs: dict[int, Job]) -> None:
        self.jobs = jobs
        self.sinks: dict[int, Sink] = {}
        self.errors: dict[int, str] = {}

    def begin(self, height: int, width: int, fps: float) -> None:
        """Opens a file for each job."""
        for number, (parameters, partial, _) in self.jobs.items():
            with self._at(number):
                self.sinks[number] = keeper(**parameters).begin(Path(partial), height, width, fps)

    def add(self, frame: VideoFrame) -> None:
        """Hands the next frame on."""
        sign_of_life()
        for number, sink in list(self.sinks.items()):
            with self._at(number):
                sink.add(frame)

    def finish(self, modified: int) -> None:
        """Completes the files, gives them the video's own time, and waits until they are on the disk."""
        for number, sink in list(self.sinks.items()):
            partial = self.jobs[number][1]
            with self._at(number):
                sink.close()
                os.utime(partial, ns=(modified, modified))
                sync(Path(partial))

    def columns(self, number: int) -> dict[str, Any] | None:
        """Of the index, for one job."""
        if number in self.errors:
            return {"kept": 0, "error": self.errors[number]}
        return {"kept": Path(self.jobs[number][1]).stat().st_size, "error": ""} if number in self.sinks else None

    @contextmanager
    def _at(self, number: int) -> Iterator[None]:
        try:
            yield
        except DecodeError as error:
            self.sinks.pop(number, None)
            self.errors[number] = str(error)
        except OSError as error:
            folder = Path(self.jobs[number][1]).parent.parent
            raise KinoscopeError(f"{folder}: cannot be written: {error.strerror or error}.") from None
