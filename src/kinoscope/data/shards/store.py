"""Shards at hand: read where they lie, or fetched whole into a folder of limited size, the least used making room.

All processes of a machine share the folder: whoever needs a shard first fetches it, under a lock, and the others wait.
A shard is under its name only when it is whole and its hash is right. One that is evicted while somebody reads it stays
readable for him until he closes it; he who comes later fetches it again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from kinoscope.data import watchdog
from kinoscope.data.shards.description import Description, File, describe, is_remote, join, said, storage
from kinoscope.errors import KinoscopeError
from kinoscope.runs.signature import file_hash

ATTEMPTS = 3
PAUSE = 2.0  # seconds before the second attempt, twice as many before the third
PARTIAL = ".partial"

log = logging.getLogger("kinoscope")


class Store:
    """The files of a set of shards, by name.

    Args:
        root: folder, whose files are read in place, or a URL, whose files are fetched.
        folder: where fetched files go; one folder per set.
        limit: bytes of shards that may lie there at a time.
    """

    def __init__(self, root: str, folder: Path, limit: int) -> None:
        self.root, self.folder, self.limit = root, folder, limit
        self.remote = is_remote(root)
        self.description: Description = describe(root)

    def local(self, file: File) -> Path:
        """A file of this machine with the content of ``file``.

        Raises:
            KinoscopeError: it cannot be fetched.
        """
        if not self.remote:
            return Path(join(self.root, file.name))
        path = self.folder / file.name
        try:
            try:
                os.utime(path)  # the moment of its last use
            except FileNotFoundError:
                self._fetch(file, path)
        except OSError as error:
            raise KinoscopeError(f"{path} cannot be written: {error.strerror or error}.") from error
        return path

    def check(self) -> None:
        """Raises `KinoscopeError` where a shard that is read in place is missing or cut off."""
        for file in () if self.remote else self.description.shards:
            path = self.local(file)
            size = path.stat().st_size if path.is_file() else 0
            if size != file.bytes:
                raise KinoscopeError(
                    f"{path}: has {size} bytes instead of {file.bytes}; copy it anew, or write the shards again."
                )

    def _fetch(self, file: File, path: Path) -> None:
        # How long this takes says nothing of the video that happens to be the first in it.
        with watchdog.paused():
            (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self._lock(path.name)):
                if not path.exists():
                    self._download(file, path)

    def _download(self, file: File, path: Path) -> None:
        url = join(self.root, file.name)
        partial = path.with_name(path.name + PARTIAL)
        if path.suffix == ".tar":
            self._reserve(file, partial)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._copy(url, file, partial)
                    break
                except Exception as error:  # each kind of storage has exceptions of its own
                    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                        raise
                    if attempt == ATTEMPTS:
                        what = f"{url} cannot be fetched in {ATTEMPTS} attempts: {said(error)}."
                        raise KinoscopeError(what) from error
                    log.warning("%s: %s; trying again", url, said(error))
                    time.sleep(PAUSE * attempt)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _copy(self, url: str, file: File, partial: Path) -> None:
        files, source = storage(url)
        files.get_file(source, str(partial))
        size = partial.stat().st_size
        if size != file.bytes or file_hash(partial) != file.sha256:
            raise KinoscopeError(f"{size} of {file.bytes} bytes came, or others than were written")

    def _reserve(self, file: File, partial: Path) -> None:
        """Makes room for a shard, and takes it."""
        with FileLock(self._lock("room")):
            self._evict(self.limit - file.bytes)
            partial.touch()

    def _evict(self, room: int) -> None:
        """Removes what was not used for longest, until no more than ``room`` bytes are held or on their way."""
        for partial in self.folder.glob(f"*.tar{PARTIAL}"):
            with contextlib.suppress(Timeout), FileLock(self._lock(partial.stem), timeout=0):
                partial.unlink(missing_ok=True)  # whoever fetched it is gone
        coming = {partial.stem for partial in self.folder.glob(f"*.tar{PARTIAL}")}
        found: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        coming -= {path.name for _, _, path in found}  # one that has come since is counted once
        held = sum(shard.bytes for shard in self.description.shards if shard.name in coming)
        held += sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= room:
                return
            path.unlink(missing_ok=True)
            held -= size

    def _lock(self, name: str) -> Path:
        return self.folder / ".locks" / name


class Ahead:
    """Fetches shards that will be needed, in a thread, one after the other.

    Args:
        store: where they go.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def expect(self, shard: int) -> None:
        """Notes that this shard is due soon."""
        self._wanted.put(shard)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shards", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            shard = self._wanted.get()
            try:
                self.store.local(self.store.description.shards[shard])
            except KinoscopeError as error:  # it will be asked for again by whoever cannot go on without it
                log.debug("%s", error)
