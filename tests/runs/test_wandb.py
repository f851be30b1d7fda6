"""W&B without a training: what a run writes, what a server that is gone does to it, what a sync sends later."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fake_wandb import KEY, FakeWandB
from kinoscope.callbacks.tiles import encode
from kinoscope.cli import main
from kinoscope.runs.folder import RunFolder, write_json
from kinoscope.runs.wandb import WandB, wandb_logger
from wandb_records import Records, files

ID = "89abcdef-now"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder below an empty working directory, of a user without an account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "home").mkdir()
    folder = RunFolder.create("outputs", "gan/x", "89abcdef")
    folder.write_summary(status="running", best={"val/accuracy": 0.75, "step": 20}, test={"test/accuracy": 0.5})
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> Iterator[FakeWandB]:
    """A server that is there, and a key for it."""
    fake = FakeWandB()
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    # The service reads them when it starts, and may still be that of the test before.
    import wandb

    wandb.teardown()
    yield fake
    fake.die()
    wandb.teardown()


def begun(folder: RunFolder, config: dict[str, Any] | None = None, **options: Any) -> WandB:
    return wandb_logger(folder, config or {}, run_id=ID, name="gan/x", **options)


def alone() -> dict[str, str]:
    """An environment without W&B's settings, and without the service of this process, which a child would share."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"WANDB__SERVICE_WAIT": "240"}


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_a_run_offline_says_what_it_is(folder: RunFolder) -> None:
    write_json(folder.provenance_file, {"command": "train", "git": {"commit": "c0ffee", "diff": "long"}})
    config = {"seed": 3, "model": {"widths": [1, 2]}, "card": {"year": 2016, "lecture": "CS231n 2016, lecture 14"}}
    logger = begun(folder, config)
    logger.log_hyperparams({"seed": 4})
    logger.log_metrics({"train/loss": 0.5}, step=20)
    logger.log_metrics({"val/accuracy": 0.25}, step=40)
    logger.finish(0)
    (file,) = files(folder.path)
    read = Records.of(file)
    assert read.config == {**config, "provenance": {"command": "train", "git": {"commit": "c0ffee"}}}
    assert not read.kind("config"), "the config is handed over once, when the run begins"
    assert (read.run["run_id"], read.run["project"], read.run["job_type"]) == (ID, "kinoscope", "train")
    assert (read.run["run_group"], read.run["display_name"]) == ("gan/x", folder.path.name)
    assert read.run["tags"] == ["gan", "2016", "CS231n 2016, lecture 14"]
    metrics = [(m.get("name"), m.get("glob_name"), m.get("step_metric")) for m in read.kind("metric")]
    assert metrics == [("step", None, None), (None, "*", "step")]
    assert [(row["step"], row.get("train/loss"), row.get("val/accuracy")) for row in read.history] == [
        (20, 0.5, None),
        (40, None, 0.25),
    ]
    assert {name: read.summary[name] for name in ("val/accuracy", "best/step", "test/accuracy")} == {
        "val/accuracy": 0.75,  # the best checkpoint's, not the last
        "best/step": 20,
        "test/accuracy": 0.5,
    }
    assert read.exit_code == 0 and not read.kind("alert")
    assert any("proc.memory.rssMB" in stats["item"] for stats in read.kind("stats")), "W&B's own system metrics"


def test_a_group_and_tags_that_were_asked_for(folder: RunFolder) -> None:
    begun(folder, group="sweep", tags=["mine", "x" * 80], job_type="sweep").finish(0)
    run = Records.of(files(folder.path)[0]).run
    assert (run["run_group"], run["job_type"], run["tags"]) == ("sweep", "sweep", ["gan", "mine", "x" * 64])


def test_a_failure_alerts_and_an_interrupt_does_not(folder: RunFolder) -> None:
    from kinoscope.errors import Interrupted

    begun(folder).finish(1, ValueError("'loss' became nan at step 7\nmore"))
    time.sleep(1)  # W&B names the folder by the second
    begun(folder).finish(75, Interrupted("stopped"))
    failed, interrupted = map(Records.of, files(folder.path))
    (alert,) = failed.kind("alert")
    assert "failed" in alert["title"] and "'loss' became nan at step 7" in alert["text"]
    assert alert["level"] == "ERROR" and failed.exit_code == 1
    assert interrupted.exit_code == 75 and not interrupted.kind("alert")
    assert interrupted.kind("preempting"), "shown as preempted: it is to be continued"


def test_media_lie_in_the_run_folder_and_clips_play(folder: RunFolder, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    encode(np.zeros((5, 32, 48, 3), np.uint8), clip, fps=5)
    logger = begun(folder)
    logger.log_image("pictures/a", [Image.new("RGB", (4, 4))])
    logger.log_video("videos/a", clip)
    picture = Image.new("RGB", (4, 4))
    logger.log_table("mistakes", ["sample", "truth", "look", "still"], [[7, "Grow", clip, picture]])
    logger.log_histograms({"weights/a": np.histogram(np.arange(10.0), 5)}, step=3)
    logger.finish(0)
    (file,) = files(folder.path)
    read = Records.of(file)
    media = file.parent / "files"
    image, video, table, histogram = read.history
    assert (media / image["pictures/a.filenames"][0]).read_bytes()[1:4] == b"PNG"
    assert (media / video["videos/a.path"]).read_bytes() == clip.read_bytes()
    content = json.loads((media / table["mistakes.path"]).read_text())
    assert content["columns"] == ["sample", "truth", "look", "still"] and content["data"][0][:2] == [7, "Grow"]
    (artifact,) = read.kind("artifact")
    shown = {Path(item["path"]).suffix: Path(item["local_path"]) for item in artifact["manifest"]["contents"]}
    assert shown[".mp4"].read_bytes() == clip.read_bytes()
    assert shown[".mp4"].is_relative_to(folder.path.resolve()), "nothing is kept outside of the run"
    assert histogram["step"] == 3 and histogram["weights/a.values"] == [2, 2, 2, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "home", "outputs"]


@pytest.mark.parametrize("key", [None, KEY, "short"])
def test_online_without_key_or_server_falls_back(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str | None
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    import wandb

    wandb.teardown()
    waits: list[float] = []
    init = wandb.init

    def asked(**options: Any) -> Any:
        if options["mode"] == "online":
            waits.append(options["settings"].init_timeout)
        return init(**options)

    monkeypatch.setattr(wandb, "init", asked)
    started = time.monotonic()
    with caplog.at_level("WARNING", logger="kinoscope"):
        logger = begun(folder, mode="online", timeout=2)
        logger.log_metrics({"train/loss": 1.0}, step=1)
        logger.finish(0)
    assert waits == ([] if key is None else [2])
    assert time.monotonic() - started < 60, "it does not try on and on"
    assert ("no API key" if key is None else "out of reach") in caplog.text
    assert "kinoscope sync" in caplog.text
    (file,) = [file for file in files(folder.path) if file.parent.name.startswith("offline-")]
    assert steps(Records.of(file).history) == [1]
    wandb.teardown()


def test_disabled_leaves_nothing(folder: RunFolder) -> None:
    logger = begun(folder, mode="disabled")
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finish(0)
    assert not files(folder.path)


def test_a_terminal_is_not_prompted(folder: RunFolder) -> None:
    """W&B asks for a key wherever it finds a terminal."""
    program = (
        "from pathlib import Path; from kinoscope.runs.folder import RunFolder; "
        "from kinoscope.runs.wandb import wandb_logger; "
        f"wandb_logger(RunFolder(Path({str(folder.path)!r})), {{}}, 'x', 'y', mode='online').finish(0)"
    )
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=alone()
        )
        try:
            assert child.wait(300) == 0
        finally:
            child.kill()
            child.wait()
    finally:
        os.close(theirs)
        os.close(ours)
    assert files(folder.path)[0].parent.name.startswith("offline-")


def test_a_run_online_is_confirmed(folder: RunFolder, server: FakeWandB) -> None:
    logger = begun(folder, mode="online", timeout=120, finish_timeout=120)
    for step in range(5):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    (file,) = files(folder.path)
    assert file.with_name(f"{file.name}.unsent").exists(), "until the server has everything"
    logger.finish(0)
    assert not file.with_name(f"{file.name}.unsent").exists()
    assert steps(server.history[ID]) == list(range(5))


def test_a_server_that_dies_holds_nobody_up_and_nothing_is_lost(
    folder: RunFolder, server: FakeWandB, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = begun(folder, mode="online", timeout=120, finish_timeout=1)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    server.die()
    for step in range(2, 6):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    started = time.monotonic()
    with caplog.at_level("WARNING", logger="kinoscope"):
        logger.finish(0)
    assert time.monotonic() - started < 50, "by default it is 60 s"
    assert "did not confirm" in caplog.text and "kinoscope sync" in caplog.text

    again = FakeWandB()
    try:
        monkeypatch.setenv("WANDB_BASE_URL", again.url)
        assert main(["sync", f"output_dir={folder.path}"]) == 0  # as the message says
        assert steps(again.history[ID]) == [1, 2, 3, 4, 5]
        assert main(["sync", "dry=true"]) == 0
        assert len(again.history) == 1
    finally:
        again.die()


def test_wandbs_own_process_may_die(folder: RunFolder) -> None:
    program = f"""
import logging, os, signal, subprocess, time
from pathlib import Path
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.wandb import wandb_logger

logging.basicConfig(level="WARNING")
logger = wandb_logger(RunFolder(Path({str(folder.path)!r})), {{}}, "one", "gan/x")
children = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
(service,) = [int(line.split()[0]) for line in children.stdout.splitlines() if "wandb-core" in line]
os.kill(service, signal.SIGKILL)
os.waitpid(service, 0)
deadline = time.monotonic() + 120
while not logger._gone and time.monotonic() < deadline:  # a thread of W&B's has to notice first
    logger.log_metrics({{"train/loss": 1.0}}, step=1)
    time.sleep(0.1)
for step in range(2, 5):
    logger.log_metrics({{"train/loss": 1.0}}, step=step)
logger.finish(0)
wandb_logger(RunFolder(Path({str(folder.path)!r})), {{}}, "two", "gan/x").finish(0)
"""
    done = subprocess.run([sys.executable, "-c", program], env=alone(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has gone") == 1 and "Traceback" not in done.stderr
    second = [file for file in files(folder.path) if file.name == "run-two.wandb"]
    assert Records.of(second[0]).exit_code == 0, "the next run is not harmed"


def test_the_parts_of_a_resumed_run_become_one(
    folder: RunFolder, server: FakeWandB, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two offline folders under one id: W&B keeps both, and a sync appends the second to the first."""
    for first in (1, 4):
        logger = begun(folder)
        for step in range(first, first + 3):
            logger.log_metrics({"train/loss": 1 / step}, step=step)
        logger.finish(0)
        time.sleep(1)  # W&B names the folder by the second
    parts = files(folder.path)
    assert len(parts) == 2
    assert {Records.of(part).run["run_id"] for part in parts} == {ID}

    folder.lock()
    assert main(["sync", "dry=true"]) == 0
    assert capsys.readouterr().out == "", "a live run is left alone"
    folder.unlock()
    assert main(["sync", "dry=true"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(part) for part in parts]
    assert not server.asked

    assert main(["sync"]) == 0
    assert steps(server.history[ID]) == [1, 2, 3, 4, 5, 6]
    assert [row["_step"] for row in server.history[ID]] == list(range(6))
    capsys.readouterr()
    assert main(["sync"]) == 0
    assert "nothing waits" in capsys.readouterr().err


def test_sync_of_no_folder_is_refused(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "output_dir=output"]) == 2
    assert "there is no folder 'output'" in capsys.readouterr().err


def test_sync_without_an_account_is_refused(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    begun(folder).finish(0)
    assert main(["sync"]) == 2
    message = capsys.readouterr().err
    assert "no API key" in message and "wandb login" in message and "Traceback" not in message


def test_artifacts_are_the_best_checkpoint_and_the_config(
    folder: RunFolder, server: FakeWandB, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.checkpoint("best").write_bytes(b"weights")
    folder.config_file.write_text("seed: 0\n")
    logger = begun(folder, mode="online", artifacts=True, timeout=120, finish_timeout=120)
    handed_over: list[Any] = []
    log_artifact = logger.run.log_artifact

    def spy(artifact: Any, **options: Any) -> Any:
        handed_over.append(artifact)
        return log_artifact(artifact, **options)

    monkeypatch.setattr(logger.run, "log_artifact", spy)
    logger.finish(0)
    ((announced,), (artifact,)) = server.artifacts, handed_over
    assert announced["artifactTypeName"] == "model" and announced["artifactCollectionName"] == f"run-{ID}"
    assert {alias["alias"] for alias in announced["aliases"]} == {"latest", "best"}
    assert {name: Path(entry.local_path) for name, entry in artifact.manifest.entries.items()} == {
        "best.ckpt": folder.checkpoint("best"),
        "config.yaml": folder.config_file,
    }


def test_artifacts_wait_for_a_server(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder.checkpoint("best").write_bytes(b"weights")
    with caplog.at_level("INFO", logger="kinoscope"):
        begun(folder, artifacts=True).finish(0)
    assert "needs logger.mode=online" in caplog.text
    assert not Records.of(files(folder.path)[0]).kind("artifact")
