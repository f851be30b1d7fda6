"""``stages:``: what a stage's command is, what is refused, and that a run killed anywhere goes on where it was.

The verb in the processes of most tests is a fake that does what its stage's ``card`` says, so that they train nothing
and import no torch. One real run with its stage is killed in tests/runs/test_staged_run.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kinoscope.config.compose import compose_checked
from kinoscope.config.preflight import preflight
from kinoscope.config.stages import SHARED, stage_lines
from kinoscope.errors import Refusal
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.stages import Plan, source_of, stages_of

# Python imports sitecustomize at start: here it puts a fake in the place of the verb.
FAKE_VERB = """
import json, os, signal, sys, time
from pathlib import Path
from types import ModuleType

def run(config, overrides):
    from kinoscope.runs.folder import RunFolder, write_text
    folder = RunFolder(Path(config.resume))
    do = folder.read_config().card.do
    attempt = len(list(folder.path.glob("attempt-*"))) + 1
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    if do in ("sleep", "stay") and attempt == 1:
        folder.lock()
    about = {"pid": os.getpid(), "argv": sys.argv[1:], "torch": "torch" in sys.modules, "time": time.monotonic()}
    write_text(folder.path / f"attempt-{attempt}", json.dumps(about))  # who has waited for it may send signals now
    code, status = 0, "finished"
    if do in ("sleep", "stay") and attempt == 1:
        while not stopped:
            time.sleep(0.02)
        (folder.path / "asked").touch()
        while do == "stay":
            time.sleep(0.02)
        time.sleep(0.5)  # saves itself
        write_text(folder.path / "saved", str(time.monotonic()))
        code, status = 75, "interrupted"
    if do == "die" and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    folder.write_summary(status=status, best={"val/loss": attempt, "step": 1}, test={"test/loss": attempt})
    print(folder.path)
    return code

fake = ModuleType("kinoscope.verbs.train")
fake.run = run
sys.modules[fake.__name__] = fake
"""

FILES = {
    "path/sitecustomize.py": FAKE_VERB,
    "path/staged_things.py": "class Thing:\n    def __init__(self, lr: float = 0.1, root: str = '.') -> None: ...\n",
    "conf/data/thing.yaml": "_target_: staged_things.Thing\n",
    "conf/data/other.yaml": "_target_: staged_things.Thing\nroot: other\n",
    "conf/model/thing.yaml": "_target_: staged_things.Thing\nlr: 0.1\n",
    "conf/experiment/one.yaml": """
# @package _global_
defaults: [override /data: thing, override /model: thing, override /callbacks: none, override /logger: none]
card: {do: nothing}
""",
    "conf/experiment/three.yaml": """
# @package _global_
defaults: [one, _self_]
stages:
  first: {experiment: one, trainer.max_epochs: 3, model: {lr: 0.3}}
  second: {experiment: one, init_from: stage:first, seed: 5}
init_from: stage:second
""",
    "conf/experiment/two.yaml": """
# @package _global_
defaults: [one, _self_]
stages: {first: {experiment: one}}
init_from: stage:first
""",
    "conf/experiment/nested.yaml": """
# @package _global_
defaults: [one, _self_]
stages: {inner: {experiment: three}}
""",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return tmp_path


def faults(*overrides: str) -> list[str]:
    return preflight("train", overrides, "conf").faults


def lines(*overrides: str) -> dict[str, list[str]]:
    return stage_lines(compose_checked("train", overrides, "conf"), overrides)


def made(*overrides: str) -> RunFolder:
    """The folders of a staged run that has not begun."""
    plan = Plan.of(compose_checked("train", overrides, "conf"), overrides, "conf")
    run = RunFolder.create("outputs", plan.config.name, str(plan.signature))
    plan.describe(run)
    return run


# What a stage is told


def test_what_is_typed_once_holds_for_all_stages_where_it_says_how_and_not_what() -> None:
    typed = ["experiment=three", "data=other", "data.root=x", "seed=3", "trainer.accelerator=cpu", "model.lr=9",
             "trainer.max_epochs=7", "logger=csv", "monitor=null"]  # fmt: skip
    assert lines(*typed) == {
        "first": ["data=other", "data.root=x", "seed=3", "trainer.accelerator=cpu", "logger=csv", "experiment=one",
                  "trainer.max_epochs=3", "model.lr=0.3"],
        "second": ["data=other", "data.root=x", "trainer.accelerator=cpu", "logger=csv", "experiment=one",
                   "init_from='stage:first'", "seed=5"],
    }  # fmt: skip


def test_the_page_names_all_that_is_shared() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stages.md").read_text()
    assert [key for key in SHARED if f"`{key}`" not in page] == []


def test_a_stage_is_changed_by_its_name() -> None:
    plan = Plan.of(
        compose_checked("train", ["experiment=three", "stages.first.model.lr=0.7", "stages.second.seed=8"], "conf"),
        ["experiment=three", "stages.first.model.lr=0.7", "stages.second.seed=8"],
        "conf",
    )
    assert plan.stages["first"].config.model.lr == 0.7
    assert plan.stages["first"].config.seed == 0
    assert plan.stages["second"].config.seed == 8
    assert plan.config.model.lr == 0.1


@pytest.mark.parametrize(
    "value", ["plain", "with, comma", "it's", "null", "${seed}", "a\\b", 3, 0.5, True, None, [1, "x y"], []]
)
def test_a_value_reaches_its_stage_as_it_is(value: Any, home: Path) -> None:
    text = OmegaConf.to_yaml(OmegaConf.create({"stages": {"first": {"experiment": "one", "card": {"do": value}}}}))
    (home / "conf" / "experiment" / "value.yaml").write_text(f"# @package _global_\ndefaults: [one, _self_]\n{text}")
    config = compose_checked("train", ["experiment=value"], "conf")
    stage = Plan.of(config, ["experiment=value"], "conf").stages["first"]
    assert stage.config.card.do == (0 if value == "${seed}" else value)


# What is refused


def test_the_faults_of_all_stages_come_together() -> None:
    found = faults(
        "experiment=three", "stages.first.trainer.max_epochz=3", "stages.secnd.seed=1", "stages.second.seed=x",
        "model.lr=fast",
    )  # fmt: skip
    assert any(f.startswith("stages.first: trainer.max_epochz=3: ") and "'trainer.max_epochs'" in f for f in found)
    assert any("'stages' has no key 'secnd'; did you mean 'stages.second'?" in f for f in found)
    assert "stages.second: seed is 'x', but must be int" in found
    assert any(f.startswith("model.lr is 'fast'") for f in found)
    assert len(found) == 4


def test_a_fault_in_what_all_share_is_said_once() -> None:
    assert len(faults("experiment=three", "data.rooot=x")) == 1
    assert len(faults("experiment=three", "threads=many")) == 1


def test_a_stage_begins_with_an_earlier_one() -> None:
    assert faults("experiment=three") == []
    (fault,) = faults("experiment=three", "stages.first.init_from=stage:second")
    assert "stages.first: init_from=stage:second: there is no stage 'second' before this one; there are: none" in fault
    (fault,) = faults("experiment=three", "init_from=stage:secnd")
    assert "did you mean 'stage:second'" in fault
    assert any("stages" in fault for fault in faults("experiment=one", "++stages.first=3"))


# The folders


def test_the_folders_of_a_run_with_stages() -> None:
    run = made("experiment=three", "seed=3")
    assert [(name, folder.path.name) for name, folder in stages_of(run).items()] == [
        ("first", "1-first"),
        ("second", "2-second"),
    ]
    summary = run.read_summary()
    assert list(summary["stages"]) == ["first", "second"]
    assert summary["stages"]["first"] == {"folder": "stages/1-first", "status": "running", "best": {}, "test": {}}
    assert run.path.name.endswith(f"-{summary['signature']}")
    first, second = stages_of(run).values()
    assert first.read_summary()["signature"] is None  # it begins with its data
    assert first.read_config().trainer.max_epochs == 3
    assert (first.read_config().seed, second.read_config().seed) == (3, 5)
    assert source_of("stage:second", run) == second.path
    assert source_of("stage:first", second) == first.path
    assert source_of("elsewhere", run) == Path("elsewhere")
    with pytest.raises(Refusal, match="no stage 'third'"):
        source_of("stage:third", run)
    assert len({folder.stamp for folder in (run, first, second)}) == 3


def test_the_signature_is_that_of_all_stages() -> None:
    def signature(*overrides: str) -> str:
        typed = ["experiment=three", *overrides]
        return str(Plan.of(compose_checked("train", typed, "conf"), typed, "conf").signature)

    same = signature()
    assert signature("logger=csv", "stages.first.threads=2") == same
    assert len({same, signature("stages.first.model.lr=0.4"), signature("model.lr=0.4"), signature("seed=1")}) == 4


def test_stages_may_have_stages() -> None:
    run = made("experiment=nested")
    (inner,) = stages_of(run).values()
    assert list(stages_of(inner)) == ["first", "second"]


# Processes


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(processes: list[subprocess.Popen[str]], run: RunFolder, *overrides: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(["path", *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-m", "train", "--config-dir", "conf", f"resume={run.path}", *overrides],
        env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    processes.append(process)
    return process


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def attempts(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(run.path.glob("attempt-*"))]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:  # it went in between, where there are such files
        return Path("/proc/self/stat").exists()


def test_stages_run_in_order_in_processes_of_their_own(processes: list[subprocess.Popen[str]]) -> None:
    run = made("experiment=three")
    code, out, err = done(start(processes, run))
    assert code == 0, err
    assert out == f"{run.path}\n"
    every = [*stages_of(run).values(), run]
    tries = [attempts(folder) for folder in every]
    assert [len(each) for each in tries] == [1, 1, 1]
    assert [each[0]["time"] for each in tries] == sorted(each[0]["time"] for each in tries)
    assert len({each[0]["pid"] for each in tries}) == 3
    assert not any(each[0]["torch"] for each in tries)  # nor had the process that waited imported it
    summary = run.read_summary()
    assert {name: entry["status"] for name, entry in summary["stages"].items()} == dict.fromkeys(
        ("first", "second"), "finished"
    )
    assert summary["stages"]["first"]["test"] == {"test/loss": 1}
    assert "stage 1 of 3, 'first'" in err


def test_a_stage_that_ends_badly_ends_the_run_which_goes_on_where_it_was(
    processes: list[subprocess.Popen[str]],
) -> None:
    run = made("experiment=three", "stages.second.card.do=die")
    code, out, err = done(start(processes, run))
    assert code == 1
    assert out == f"{run.path}\n"
    assert "stage 'second' ended with exit code -9" in err
    assert f"python -m train resume={run.path}" in err
    assert "Traceback" not in err
    assert run.read_summary()["status"] == "failed"
    assert attempts(run) == []
    code, _, err = done(start(processes, run))
    assert code == 0, err
    assert [len(attempts(folder)) for folder in (*stages_of(run).values(), run)] == [1, 2, 1]


@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_a_stop_reaches_the_stage_which_saves_itself(number: str, processes: list[subprocess.Popen[str]]) -> None:
    """By SIGKILL the stage learns that its owner is gone; the next command waits until it has saved itself."""
    run = made("experiment=two", "stages.first.card.do=sleep")
    first = stages_of(run)["first"]
    process = start(processes, run)
    wait_for(first.path / "attempt-1")
    os.kill(process.pid, signal.Signals[number])
    code, out, err = done(process)
    if number == "SIGKILL":
        assert code == -signal.SIGKILL
        assert run.read_summary()["status"] == "running"
    else:
        assert code == 75, err
        assert out == f"{run.path}\n"
        assert f"stopped in stage 'first'; resume with: python -m train resume={run.path}" in err
        assert run.read_summary()["status"] == "interrupted"
        assert first.read_summary()["status"] == "interrupted"
    code, _, err = done(start(processes, run))
    assert code == 0, err
    earlier, later = attempts(first)
    assert later["time"] > float((first.path / "saved").read_text())
    assert is_gone(earlier["pid"])
    assert [len(attempts(folder)) for folder in (first, run)] == [2, 1]


def test_a_second_ctrl_c_kills_the_stage(processes: list[subprocess.Popen[str]]) -> None:
    run = made("experiment=two", "stages.first.card.do=stay")
    first = stages_of(run)["first"]
    process = start(processes, run)
    wait_for(first.path / "attempt-1")
    os.kill(process.pid, signal.SIGINT)
    wait_for(first.path / "asked")
    os.kill(process.pid, signal.SIGINT)
    code, _, err = done(process)
    assert code == 75, err
    assert is_gone(attempts(first)[0]["pid"])
    assert run.read_summary()["status"] == "interrupted"


def test_a_run_whose_stages_are_being_trained_is_locked(processes: list[subprocess.Popen[str]]) -> None:
    run = made("experiment=two", "stages.first.card.do=sleep")
    process = start(processes, run)
    wait_for(stages_of(run)["first"].path / "attempt-1")
    code, _, err = done(start(processes, run))
    assert code == 2
    assert "another process is working in" in err
    os.kill(process.pid, signal.SIGTERM)
    assert done(process)[0] == 75


def test_what_is_typed_to_resume_reaches_the_stages(processes: list[subprocess.Popen[str]]) -> None:
    run = made("experiment=three")
    code, _, err = done(start(processes, run, "logger=csv", "experiment=three"))
    assert code == 0, err
    for stage in stages_of(run).values():
        assert "logger=csv" in attempts(stage)[0]["argv"]
    code, _, err = done(start(processes, made("experiment=two"), "experiment=two", "++stages.first.model.lr=3"))
    assert code == 2
    assert "would make this another run" in err


def test_ranks_do_not_run_stages(processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, err = done(start(processes, made("experiment=two")))
    assert code == 2
    assert "each stage starts its own processes" in err
