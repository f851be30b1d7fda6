"""A user's package and config folder, as they would lie beside a project of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PARTS = '''
"""Written with what a reader of source text has to understand."""
from __future__ import annotations

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional, Union

Split = Literal[1, 2, 3]
Size = Union[int, "tuple[int, int]"]

class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"

class Videos:
    """Videos in a folder.

    Args:
        root: the folder of videos.
        batch_size: videos per batch.
    """

    def __init__(
        self, root: str, batch_size: int = 8, split: Split = 1, frames: int = 4, size: Size = 8,
        classes: list[str] | None = None, seed: int = 0,
    ) -> None:
        self.root = root

class Toy(Videos):
    """Forwards what it does not know."""

    def __init__(self, *, workers: int = 0, **kwargs: Any) -> None:
        super().__init__(seed=1, **kwargs)

@dataclass
class Network:
    frames: int
    width: "int" = 4
    norm: Literal["batch", "layer"] | None = None
    widths: Sequence[int] = field(default_factory=list)
    dropout: t.Optional[float] = None
    colour: Colour = Colour.RED

class System:
    def __init__(self, network: Network, optimizer: Any, scheduler: Any = None, log_every: int = 20) -> None:
        self.network = network
'''

FILES = {
    "toy/__init__.py": "from .parts import *\nfrom .parts import Network as Net\n",
    "toy/parts.py": PARTS,
    "conf/data/toy.yaml": "_target_: toy.Toy\nroot: ???\nbatch_size: 8\nsplit: 1\nframes: 4\n",
    "conf/data/still.yaml": "_target_: toy.Toy\nroot: x\nbatch_size: 8\n",
    "conf/data/broken.yaml": "root: [x\nbatch_size: }",
    "conf/model/toy.yaml": """
_target_: toy.System
network: {_target_: toy.Net, frames: "${data.frames}", width: 4}
optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}
scheduler: null
""",
    "conf/experiment/toy.yaml": """
# @package _global_
defaults: [override /data: toy, override /model: toy, override /callbacks: none]
monitor: val/loss
data: {root: videos}
""",
    "conf/experiment/bare.yaml": """
# @package _global_
defaults: [override /data: toy, override /model: toy, override /callbacks: none]
""",
    "conf/experiment/faulty.yaml": """
# @package _global_
defaults: [override /data: still, override /model: toy, override /callbacks: none]
sed: 3
model: {network: {width: wide}, optimizer: {_target_: torch.optim.SGDD}}
""",
}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package ``toy`` and the yaml below ``conf/``."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def conf(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's config folder, with their package importable and an empty working directory."""
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.chdir(tmp_path)
    yield project / "conf"
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]
