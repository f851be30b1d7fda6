"""README and docs are true: links lead somewhere, commands have no fault, and numbers come from results."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from scripts import MACHINE, ROOT, load

from kinoscope.cli import _is_sweep, _parse
from kinoscope.config.preflight import Checked, preflight
from kinoscope.data.shards.description import Description, File

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
MOST_BYTES = load("docs/picture.py").MOST_BYTES
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
IDX = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text()) if kind == language]


def commands() -> Iterator[str]:
    """Every command line of kinoscope in a shell block, each once."""
    seen: set[str] = set()
    for path in PAGES:
        for block in blocks(path, "sh"):
            for line in block.splitlines():
                if line.startswith(("python -m train", "kinoscope ")) and line not in seen:
                    seen.add(line)
                    yield line


COMMANDS = list(commands())
FAULTY = [line for line in COMMANDS if "lrr=" in line]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the placeholders of the docs stand for: folders that hold what preflight looks at, and no data."""
    root = tmp_path_factory.mktemp("docs")
    classes = ["BabyCrawling", "Punch", "PushUps"]
    for name in classes:
        (root / "ucf101" / "UCF-101" / name).mkdir(parents=True)
    lists = root / "ucf101" / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\r\n" for i, name in enumerate(classes, 1)))
    for kind in ("train", "test"):
        for split in (1, 2, 3):
            (lists / f"{kind}list0{split}.txt").write_text("")
    splits = root / "hmdb51" / "testTrainMulti_7030_splits"
    splits.mkdir(parents=True)
    for name in ("brush_hair", "cartwheel"):
        (root / "hmdb51" / name).mkdir()
        for split in (1, 2, 3):
            (splits / f"{name}_test_split{split}.txt").touch()
    (root / "kinetics").mkdir()
    line = "abseiling,abcdefghijk,10,20,train"
    (root / "kinetics" / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{line}\n")
    (root / "sports-1m").mkdir()
    (root / "sports-1m" / "labels.txt").write_text("boomerang\nboxing\n")
    for name in ("cat", "dog"):
        (root / "my-videos" / name).mkdir(parents=True)
    for name in ("mnist", "fashion-mnist"):
        (root / name).mkdir()
        for file in IDX:
            (root / name / file).touch()
    (root / "cifar-10").mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (root / "cifar-10" / "batches.meta.txt").write_text("\n".join(names) + "\n")
    for file in ("data_batch_1.bin", "test_batch.bin"):
        (root / "cifar-10" / file).touch()
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text("name: x\n")
    (root / "run" / "summary.json").write_text("{}")
    (root / "run" / "checkpoints").mkdir()
    (root / "run" / "checkpoints" / "last.ckpt").touch()
    (root / "sweep").mkdir()
    (root / "sweep" / "study.db").touch()
    search = {"overrides": ["sweep=random", "seed=range(0,9)"], "config_dir": None}
    (root / "sweep" / "sweep.json").write_text(json.dumps(search))
    (root / "shards").mkdir()
    file = File("x", 0, "")
    about = Description("x", tuple(classes), False, True, (0.45,), (0.225,), 0.1, "pyav", "", file, file, (file,))
    (root / "shards" / "shards.json").write_text(about.text())
    return {f"<{path.name}>": str(path) for path in root.iterdir()}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's own modules and config folder, as printed in docs/configs.md and docs/your-own-model.md."""
    pages = [ROOT / "docs" / name for name in ("configs.md", "your-own-model.md")]
    for block in [block for page in pages for kind in ("python", "yaml") for block in blocks(page, kind)]:
        path = tmp_path / block.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.partition("\n")[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "conf"


def checked(line: str, places: dict[str, str]) -> Checked:
    for placeholder, folder in places.items():
        line = line.replace(placeholder, folder)
    words = shlex.split(line, comments=True)
    verb, rest = ("train", words[3:]) if words[0] == "python" else (words[1], words[2:])
    flags = _parse(verb, rest)
    found = preflight(verb, flags.overrides, flags.config_dir, sweep=_is_sweep(flags))
    if flags.resolve and found.config is not None:
        OmegaConf.resolve(found.config)
    return found


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in FAULTY])
def test_a_command_has_no_fault(line: str, places: dict[str, str], conf: Path) -> None:
    assert checked(line, places).faults == []


def test_the_faulty_command_says_what_the_readme_shows(places: dict[str, str], conf: Path) -> None:
    (line,) = FAULTY
    (shown,) = [block for block in blocks(ROOT / "README.md", "text") if block.startswith("kinoscope:")]
    head, *faults = shown.splitlines()
    found = checked(line, places).faults
    assert [f"  {fault}" for fault in found] == faults
    assert head == f"kinoscope: {len(found)} faults, nothing was started"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_train_without_fault(path: Path, places: dict[str, str]) -> None:
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "kinoscope.train":
                assert preflight("train", ast.literal_eval(node.args[0])).faults == []


def test_make_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in PAGES for name in re.findall(r"^make (\w+)|`make (\w+)`", path.read_text(), re.MULTILINE)}
    assert {first or second for first, second in named} <= targets


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), f"{path.name} links to {target}"
        assert page.is_relative_to(ROOT), f"{path.name} links out of the repository: {target}"
        assert not anchor or anchor in anchors(page), f"{path.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_knows_the_machine_it_was_written_on(path: Path) -> None:
    assert not MACHINE.search(path.read_text())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_results_exist(path: Path) -> None:
    for name in re.findall(r"\bresults/[\w.-]+\.json", path.read_text()):
        assert json.loads((ROOT / name).read_text())


def test_numbers_in_the_readme_come_from_the_generator() -> None:
    """No accuracy and no table outside of the generated section, where someone would have to keep them true."""
    typed = load("docs/gallery.py").without_table((ROOT / "README.md").read_text())
    assert not re.search(r"\d\s?%", typed)
    assert not re.search(r"^\|", typed, re.MULTILINE)


def test_pictures_are_small_and_shown() -> None:
    shown = {target for path in PAGES for target in LINK.findall(path.read_text())}
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size <= MOST_BYTES, f"{picture.name}: use docs/picture.py"
        assert any(target.endswith(f"images/{picture.name}") for target in shown), f"{picture.name} is shown nowhere"
