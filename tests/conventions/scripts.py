"""What the tests of docs and results share: scripts beside the package as modules, and what no page may contain."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
MACHINE = re.compile(r"(?<![\w.<:/])~?/(?:home|work|tmp|root|usr|mnt|var|opt|Users)\b")  # absolute paths


def load(path: str) -> ModuleType:
    """The script at ``path`` in the repository, executed as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
