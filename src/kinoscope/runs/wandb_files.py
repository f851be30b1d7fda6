"""What of W&B's lies in run folders, and whether there is an account. Imports no Lightning, and W&B late."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from kinoscope.runs.folder import RunFolder

UNSENT = ".unsent"  # appended to an online run's file while its server has not confirmed all of it
SENT = ".synced"  # W&B's own mark on a file that a sync has sent


def has_account() -> bool:
    """Whether there is a key: in the environment, in W&B's settings, or left by 'wandb login'. Never prompts."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlsplit(settings.base_url).netloc) is not None


def unsent_files(output_dir: str | Path) -> list[Path]:
    """The records of runs below ``output_dir`` that W&B's server does not have, or not all of: run by run, in order.

    These are runs kept offline, and online ones that were killed or have lost their server. A run that is still going
    on is left out.
    """
    waiting: list[Path] = []
    for folder in sorted(path.parent for path in Path(output_dir).rglob("wandb") if path.is_dir()):
        if (folder / "summary.json").exists() and not RunFolder(folder).is_live():
            parts = sorted((folder / "wandb").glob("*run-*/run-*.wandb"), key=_began)
            waiting += [file for file in parts if _waits(file)]
    return waiting


def _began(file: Path) -> str:
    return file.parent.name.removeprefix("offline-")  # run-<date>_<time>-<id>


def _waits(file: Path) -> bool:
    if is_sent(file):
        return False
    return file.parent.name.startswith("offline-") or marked(file, UNSENT).exists()


def is_sent(file: Path) -> bool:
    return marked(file, SENT).exists()


def marked(file: Path, mark: str) -> Path:
    """The empty file beside ``file`` that says something about it."""
    return file.with_name(file.name + mark)
