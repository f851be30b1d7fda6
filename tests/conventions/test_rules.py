"""The rules of docs/design.md that a machine can watch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "kinoscope"
MODULES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path, only_top_level: bool = False) -> Iterator[str]:
    """Full names of everything a module imports (of the module it imports from, for ``from``)."""
    tree = ast.parse(path.read_text())
    for node in tree.body if only_top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def under(folder: str) -> list[Path]:
    return [path for path in MODULES if path.is_relative_to(SOURCE / folder)]


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", [*under("networks"), *under("objectives")], ids=named)
def test_networks_and_objectives_are_pure_torch(path: Path) -> None:
    forbidden = {"lightning", "hydra", "omegaconf", "wandb"}
    assert forbidden.isdisjoint(name.partition(".")[0] for name in imports(path))


@pytest.mark.parametrize("path", [*under("systems"), *under("callbacks")], ids=named)
def test_systems_and_callbacks_do_not_know_wandb(path: Path) -> None:
    assert "wandb" not in {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", under("networks"), ids=named)
def test_a_papers_file_imports_no_other_papers(path: Path) -> None:
    shared = ("kinoscope.networks.layers", "kinoscope.networks.backbones")
    ours = [name for name in imports(path) if name.startswith("kinoscope.networks")]
    assert all(name.startswith(shared) for name in ours), ours


@pytest.mark.parametrize("package", ["config", "launch", "contracts.py", "errors.py", "cli.py"])
def test_what_happens_before_work_imports_no_torch(package: str) -> None:
    """Neither directly nor through what it imports; and ``wandb`` and Lightning are as slow to load."""
    paths = [SOURCE / package] if package.endswith(".py") else under(package)
    modules = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]
    program = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules!r}]; "
        "print(*sorted({'torch', 'lightning', 'wandb', 'optuna', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_package_is_listed_in_pyproject() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(path.parent.relative_to(SOURCE.parent).parts) for path in SOURCE.rglob("__init__.py")]
    assert sorted(listed) == sorted([*found, "kinoscope.configs"])


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    names = {re.split(r"[<>=;\[ ]", line)[0] for line in wanted} - {project["name"]}  # an extra may hold another
    missing = sorted(name for name in names if f"`{name}`" not in page)
    assert not missing, f"docs/dependencies.md gives no reason for {missing}"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_long_file_gives_its_reason(path: Path) -> None:
    text = path.read_text()
    if text.count("\n") > 400:
        assert "lines, because" in (ast.get_docstring(ast.parse(text)) or ""), "say in its header why it is one room"


@pytest.mark.parametrize("path", under("networks"), ids=named)
def test_a_network_file_names_its_paper_and_its_departures(path: Path) -> None:
    if path.name == "__init__.py" or "layers" in path.parts:
        return
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert "Departs:" in header
    assert re.search(r"\b(19|20)\d\d\b", header), "the year of the paper"


def test_no_function_takes_a_config_below_the_verbs() -> None:
    """Configs stop at construction: only verbs, runs (which build from them), config and launch know DictConfig."""
    knowing = {named(path) for path in MODULES if "omegaconf" in {name.partition(".")[0] for name in imports(path)}}
    allowed = ("config/", "runs/", "verbs/", "launch/", "cli.py")
    assert all(name.startswith(allowed) for name in knowing), knowing
