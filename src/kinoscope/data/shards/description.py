"""What a folder of shards says of itself, in ``shards.json``. Imports no torch: a config asks here for its classes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kinoscope.errors import Refusal

FORMAT = "kinoscope shards 1"
NAME = "shards.json"
PATIENCE = 60.0  # seconds without a byte after which a connection counts as lost


@dataclass(frozen=True)
class File:
    """A file beside ``shards.json``: its name, size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """A folder of shards.

    Args:
        name: of the data set that was written.
        classes: names in label order.
        multi_label: whether a video may have several.
        flip: whether a mirrored video still shows its class.
        mean: of the pixels, on the scale 0 … 1, as the data set's preprocessing has it; one number or three.
        std: likewise.
        validation: share of the training videos that was held out when the subsets were made.
        decoder: whose random access the manifest speaks of.
        fingerprint: of the data set, as it was before.
        manifest: the manifest's file.
        index: the index's file.
        shards: the tar files, in the order that the index numbers them.
        format: of this description.
    """

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: float
    decoder: str
    fingerprint: str
    manifest: File
    index: File
    shards: tuple[File, ...]
    format: str = FORMAT

    def text(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Description:
        """The description in a file's content. Raises `Refusal` where it is none of this version."""
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise Refusal(f"{where}: is of the format {found['format']!r}; write the shards anew, as {FORMAT!r}.")
            found |= {name: tuple(found[name]) for name in ("classes", "mean", "std")}
            found |= {"shards": tuple(File(**shard) for shard in found["shards"])}
            found |= {"manifest": File(**found["manifest"]), "index": File(**found["index"])}
            description = cls(**found)
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{where}: describes no shards ({error}); write them anew with kinoscope prepare.") from None
        for file in (description.manifest, description.index, *description.shards):
            if "/" in file.name or "\\" in file.name or file.name.startswith("."):  # they are written to a local folder
                raise Refusal(f"{where}: names the file {file.name!r}, which does not lie beside it.")
        return description


def is_remote(root: str) -> bool:
    """Whether shards are reached by a URL, of which they are copied, and not in a folder, where they are read."""
    return "://" in root


def join(root: str, name: str) -> str:
    """A file's path or URL."""
    return f"{root.rstrip('/')}/{name}"


def describe(root: str) -> Description:
    """Reads the description of a folder or URL.

    Raises:
        Refusal: there are no finished shards, or they cannot be reached.
    """
    where = join(root, NAME)
    try:
        text = _fetched(where) if is_remote(root) else Path(where).read_bytes()
    except FileNotFoundError:
        raise Refusal(
            f"data.root: {root!r} holds no shards ({NAME} is missing); kinoscope prepare data=… shards=<folder> "
            "writes them, that file last."
        ) from None
    except Refusal:
        raise
    except Exception as error:  # each kind of storage has exceptions of its own
        raise Refusal(f"data.root: {where} cannot be read ({said(error)}).") from None
    return Description.parse(text, where)


@cache  # composing one config asks several times
def _fetched(url: str) -> bytes:
    files, path = storage(url)
    return files.cat_file(path)


def storage(url: str) -> tuple[Any, str]:
    """The fsspec file system behind a URL, and the file's path in it.

    Raises:
        Refusal: no such kind of URL is known, or what it needs is not installed.
    """
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # By default a download has five minutes, however large it is.
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
        }
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise Refusal(f"data.root: {url} cannot be opened ({said(error)}).") from None


def said(error: BaseException) -> str:
    """The first line of an exception's message, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
