"""The wheel: every yaml is inside, the shim too, and what was packed runs without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="building a wheel without a network needs setuptools here")

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel of a copy: setuptools leaves build/ and egg-info where it works."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("src", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=IGNORED)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("kinoscope-*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


def relative(folder: str, pattern: str) -> set[str]:
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob(pattern)}


def test_every_yaml_and_module_is_packed(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    configs = relative("configs", "*.yaml")
    assert len(configs) > 40
    assert {f"kinoscope/configs/{name}" for name in configs} <= packed
    assert relative("src", "*.py") <= packed
    assert "train.py" in packed


def test_nothing_else_is_packed(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        top = name.partition("/")[0]
        assert top in ("kinoscope", "train.py") or top.endswith(".dist-info"), name
        assert name.endswith((".py", ".yaml")) or top.endswith(".dist-info"), name


def test_the_entry_point_and_the_licence(wheel: zipfile.ZipFile) -> None:
    def metadata(file: str) -> str:
        (name,) = (name for name in wheel.namelist() if name.endswith(f".dist-info/{file}"))
        return wheel.read(name).decode()

    assert "kinoscope = kinoscope.cli:main" in metadata("entry_points.txt")
    assert "License-Expression: MIT" in metadata("METADATA")
    assert "MIT License" in metadata("licenses/LICENSE")
    assert "torchvision" not in metadata("METADATA")


def test_what_was_packed_runs_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unzipped as an installer would, ahead of this environment's own kinoscope: help, and a composed experiment."""
    site = tmp_path / "site"
    wheel.extractall(site)
    program = (
        "import sys, kinoscope, kinoscope.cli, kinoscope.config.compose as c; "
        f"assert kinoscope.__file__.startswith({str(site)!r}), kinoscope.__file__; "
        f"assert str(c.config_folder()).startswith({str(site)!r}), c.config_folder(); "
        "sys.exit(kinoscope.cli.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for arguments, expected in (
        (["train", "--help"], "video/c3d_small"),
        (["train", "--cfg", "job", "--resolve", "experiment=gan/dcgan_small"], "kinoscope.networks.gan.dcgan"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_the_console_script_and_the_shim_are_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("kinoscope")
    for command in ([str(script), "--help"], [sys.executable, "-m", "train", "--help"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "kinoscope" in done.stdout
    assert list(tmp_path.iterdir()) == []
