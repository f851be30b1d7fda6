"""Watches processes of `prepare` from inside: a Python that finds this folder on PYTHONPATH imports it as it starts.

`LOG` names a file to which every process adds the videos that it opens and decodes from the start. `KILL` is
``<who>:<n>``: the n-th time that one process of that kind, ``parent`` or ``child``, touches the file system, it is
killed there by SIGKILL, once in all, since the marker `KILLED` is then there. `UNKEEPABLE` names a video of which no
cache can be made. `PASSING` is ``<fault>:<name>``: that video cannot be read (``eio``), or the process that reads it
(``read``) or keeps its frames (``keep``) crashes, or never gets on with it (``hold``).
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "KINOSCOPE_TEST_LOG"
KILL = "KINOSCOPE_TEST_KILL"
KILLED = "KINOSCOPE_TEST_KILLED"
UNKEEPABLE = "KINOSCOPE_TEST_UNKEEPABLE"
PASSING = "KINOSCOPE_TEST_PASSING"
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.truncate", "shutil.rmtree")


def is_child() -> bool:
    return sys.argv[:1] == ["-c"] and sys.argv[1:] == ["kinoscope.data.measure:measure"]


def kill_at(who: str, number: int) -> None:
    """From now on, counts what touches the data and kills this process at the n-th time."""
    count = 0

    def touched(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in TOUCHES or (who == "child") != is_child():
            return
        path = str(arguments[0])
        if os.environ["KINOSCOPE_TEST_DATA"] not in path or path == os.environ[KILLED]:
            return
        count += 1
        if count == number:
            try:
                os.close(os.open(os.environ[KILLED], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touched)


def log_videos(log: str) -> None:
    """Notes each opening of a video, and each pass over all of its frames."""
    from kinoscope.data.decoders import pyav

    def note(what: str, path: object) -> None:
        with Path(log).open("a") as file:
            file.write(f"{what} {Path(str(path)).name}\n")

    opened, in_order = pyav.opened, pyav.InOrder.__iter__

    def watched(path: object) -> Any:
        note("open", path)
        return opened(path)  # type: ignore[arg-type]

    def pass_over(self: Any) -> Iterator[Any]:
        note("decode", self.container.name)
        return in_order(self)

    pyav.opened = watched  # type: ignore[assignment]
    pyav.InOrder.__iter__ = pass_over  # type: ignore[method-assign]


def keep_nothing_of(name: str) -> None:
    """Makes the sinks of the raw cache refuse the frames of one video."""
    from kinoscope.data import measure
    from kinoscope.data.cache.raw import RawKeeper
    from kinoscope.errors import DecodeError

    measured, begin = measure.measure, RawKeeper.begin
    at: list[str] = []

    def measuring(path: str, *rest: Any) -> Any:
        at[:] = [path]
        return measured(path, *rest)

    def refusing(self: RawKeeper, *arguments: Any) -> Any:
        if Path(at[0]).name == name:
            raise DecodeError(f"{at[0]}: nothing can be kept.")
        return begin(self, *arguments)

    measure.measure = measuring  # type: ignore[assignment]
    RawKeeper.begin = refusing  # type: ignore[method-assign]


def fail_at(fault: str, name: str) -> None:
    """A fault of the machine, not of the video."""
    from kinoscope.data import decode

    probe = decode.probe

    def failing(path: str, decoder: Any, each: Any, begin: Any) -> Any:
        def crash(*arguments: Any) -> None:
            os.abort()

        if Path(path).name != name:
            return probe(path, decoder, each, begin)  # type: ignore[arg-type]
        if fault == "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if fault == "hold":
            time.sleep(1_000_000)
        return crash() if fault == "read" else probe(path, decoder, each, crash)  # type: ignore[arg-type]

    decode.probe = failing  # type: ignore[assignment]


if UNKEEPABLE in os.environ:
    keep_nothing_of(os.environ[UNKEEPABLE])
if PASSING in os.environ and is_child():
    fail_at(*os.environ[PASSING].split(":"))
if KILL in os.environ:
    kind, _, turn = os.environ[KILL].partition(":")
    kill_at(kind, int(turn))
if LOG in os.environ:
    log_videos(os.environ[LOG])
