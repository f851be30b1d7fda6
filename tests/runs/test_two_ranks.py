"""Real runs of two ranks on the CPU, through the public command.

What one device cannot show: that the ranks stop after the same batch and go on bit for bit, that one config and one set
of files are theirs, that none is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from same_run import IMAGES, SYSTEMS, assert_same_run
from torch import nn

import kinoscope
from kinoscope.cli import main
from kinoscope.errors import KinoscopeError
from kinoscope.runs import agreement
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.load import load_run

FAULTS = Path(__file__).parents[1] / "faults"
QUIET = ["logger=csv", "trainer.accelerator=cpu", "callbacks.learning_curves=null"]
TWO = ["trainer=ddp", "trainer.devices=2", *QUIET]
TINY = ["experiment=autoencoder/conv_small", *IMAGES, "model.network.widths=[4,4,4]", "callbacks.reconstructions=null"]


def start(folder: Path, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(FAULTS), "OMP_NUM_THREADS": "1"} | environment,
        start_new_session=True,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks hold a tether
    return process.returncode, out.strip(), err


def train(folder: Path, *overrides: str) -> tuple[int, str, str]:
    return finish(start(folder, ["-m", "train", *overrides]))


def fault(at: int, sends: str, rank: int) -> str:
    return f"+callbacks.fault={{_target_: faults.Fault, at: {at}, sends: {sends}, rank: {rank}}}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def classifier(home: Path) -> RunFolder:
    """A finished run of two ranks, with dropout, started from Python; its videos are made by one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return RunFolder.open(home / kinoscope.train([*SYSTEMS["classification"], *TWO, "trainer.max_epochs=2"]))


def test_two_ranks_write_one_run(classifier: RunFolder) -> None:
    assert len(list(classifier.path.parent.iterdir())) == 1
    summary = classifier.read_summary()
    assert (summary["status"], summary["devices"]) == ("finished", 2)
    states = read_checkpoint(classifier.checkpoint("last"))["kinoscope"]["rng"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])  # dropout draws apart
    steps = [int(line.split(",")[0]) for line in classifier.metrics_file.read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))  # each row was written once


def test_a_signal_to_one_rank_stops_both_after_the_same_batch(classifier: RunFolder, home: Path) -> None:
    """Stopped in mid-epoch by a signal that rank 1 alone has seen, and resumed: equal to the run nobody touched."""
    command = [*SYSTEMS["classification"], *TWO, "trainer.max_epochs=2", "data.seed=0"]
    code, out, err = train(home, *command, fault(2, "SIGTERM", rank=1))
    assert code == 75, err
    path = Path(out.splitlines()[-1])
    assert err.splitlines()[-1] == f"kinoscope: stopped by SIGTERM; resume with: python -m train resume={path}"
    assert "Traceback" not in err
    stopped = RunFolder.open(home / path)
    assert stopped.path != classifier.path
    assert 0 < stopped.read_summary()["steps"] < 5  # in the first epoch
    code, out, err = train(home, f"resume={path}", "+callbacks.fault=null", "data.workers=1")
    assert code == 0, err
    assert out == str(path)
    assert_same_run(stopped, classifier)


def test_another_number_of_devices_is_another_run(
    classifier: RunFolder, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(["train", f"resume={classifier.path}", "trainer.max_epochs=3", "trainer.devices=1"]) == 2
    assert "has trained on 2 devices, got 1" in capfd.readouterr().err


def test_an_evaluation_on_two_devices_equals_that_on_one(
    classifier: RunFolder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of which the number of videos is no multiple: none is padded, none counts twice."""
    monkeypatch.chdir(home)
    command = ["evaluate", f"run={classifier.path}", "accelerator=cpu", "batch_size=5"]
    code, out, err = finish(start(home, ["-m", "kinoscope", *command, "devices=2"]))
    assert code == 0, err
    assert out.splitlines() == [str(classifier.path)]
    on_two = json.loads((classifier.path / "evaluation.json").read_text())["test"]
    assert main(command) == 0
    on_one = json.loads((classifier.path / "evaluation.json").read_text())["test"]
    assert on_two.keys() == on_one.keys()
    for name in ("test/video_accuracy", "test/clip_accuracy"):
        assert on_two[name] == on_one[name]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_killed_rank_ends_the_job_within_half_a_minute(tmp_path: Path) -> None:
    """The other rank may sit in a collective operation, where Python handles no signal; workers know of nothing."""
    forever = ["trainer.max_epochs=1000", "data.workers=1"]
    code, out, err = train(tmp_path, *TINY, *TWO, *forever, fault(3, "SIGKILL", rank=1))
    assert code == 1
    assert "kinoscope: rank 1 was ended by SIGKILL in the middle of its work; resume with" in err
    assert RunFolder.open(tmp_path / out).read_summary()["status"] == "interrupted"
    assert [process for process in Path("/proc").glob("[0-9]*") if _works_in(process, tmp_path)] == []


def _works_in(process: Path, folder: Path) -> bool:
    """Whether a process is there, in that folder, and was not killed: on a busy machine its end may take its time."""
    try:
        if (process / "cwd").resolve() != folder.resolve():
            return False
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        state, *numbers = (process / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return False
    killed = any(int(status[name], 16) >> (signal.SIGKILL - 1) & 1 for name in ("SigPnd", "ShdPnd"))
    ending = int(numbers[5]) & 0x404  # the kernel's PF_EXITING and PF_SIGNALED
    return state != "Z" and not killed and not ending


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.accelerator=gpu", "trainer: "),  # this machine has no GPUs 98 and 99; the rest is Lightning's words
        ("trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn starts ranks in Lightning's way; choose ddp"),
        ("trainer.num_nodes=2", "trainer: 2 processes were started, but trainer.devices × trainer.num_nodes is 4"),
    ],
)
def test_what_a_rank_refuses_before_it_meets_the_others(
    override: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """More devices than there are, and the like; that all ranks say it once is shown without torch."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["train", *TINY, *TWO, "trainer.devices=[98,99]", override]) == 2
    assert f"kinoscope: {sentence}" in capfd.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_what_cannot_be_trained_on_several_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["train", "experiment=autoencoder/pca_small", "data=digits", *TWO]) == 2
    assert "trainer: Fitted works on one device, got 2" in capfd.readouterr().err
    assert main(["train", *SYSTEMS["adversarial"], *TWO, "trainer=fsdp"]) == 2
    assert "Adversarial cannot be shared out over devices; train it with trainer=ddp" in capfd.readouterr().err
    monkeypatch.delenv("LOCAL_RANK")
    assert main(["train", *TINY, *QUIET, "trainer=fsdp", "trainer.devices=1"]) == 2
    assert "over several devices, but there is one" in capfd.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_ranks_of_torchrun_must_have_been_given_the_same(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train", *TINY, *TWO]
    code, _, err = finish(start(tmp_path, [*command, "seed='${oc.decode:${oc.env:RANK}}'"]))
    assert code != 0  # torchrun has codes of its own
    assert "the ranks were started with different values of data.seed, seed" in err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_torchrun_and_two_nodes_train_what_one_node_trains(tmp_path: Path) -> None:
    """The same two ranks, started in three ways: here, by torchrun, and as two nodes of one device each."""
    command = [*TINY, *TWO, "trainer.max_epochs=1"]
    code, out, err = train(tmp_path, *command, "output_dir=here")
    assert code == 0, err
    here = RunFolder.open(tmp_path / out)

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, out, err = finish(start(tmp_path, [*launcher, "-m", "train", *command, "output_dir=torchrun"]))
    assert code == 0, err
    assert_same_run(RunFolder.open(tmp_path / out.splitlines()[-1]), here)

    command = ["-m", "train", *command, "output_dir=nodes", "trainer.devices=1", "trainer.num_nodes=2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    nodes = [start(tmp_path, command, NODE_RANK=str(number), **meet) for number in (0, 1)]
    (code, out, err), (other, _, _) = map(finish, nodes)
    assert (code, other) == (0, 0), err
    run = RunFolder.open(tmp_path / out)
    for name in ("state_dict", "optimizer_states"):
        theirs, ours = (read_checkpoint(folder.checkpoint("last"))[name] for folder in (here, run))
        assert str(theirs) == str(ours)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["autoencoder", "adversarial"])
def test_the_other_systems_resume_on_two_ranks(system: str, tmp_path: Path) -> None:
    command = [*SYSTEMS[system], *TWO, "trainer.max_epochs=2", "data.batch_size=64"]
    code, out, err = train(tmp_path, *command)
    assert code == 0, err
    whole = RunFolder.open(tmp_path / out)
    code, out, err = train(tmp_path, *command, fault(7, "SIGTERM", rank=0))
    assert code == 75, err
    code, out, err = train(tmp_path, f"resume={out}", "+callbacks.fault=null", "data.workers=1")
    assert code == 0, err
    assert_same_run(RunFolder.open(tmp_path / out), whole)


@pytest.mark.slow
def test_a_sharded_run_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    short = ["trainer.max_epochs=1", "trainer.limit_test_batches=0"]
    code, out, err = train(tmp_path, *TINY, "trainer=fsdp", "trainer.devices=2", *QUIET, *short)
    assert code == 0, err
    run = load_run(tmp_path / out)
    state = torch.load(run.checkpoint, weights_only=True)
    assert all(type(tensor) is torch.Tensor for tensor in state["state_dict"].values())
    for name, parameter in run.system.named_parameters():
        assert torch.equal(parameter, state["state_dict"][name])
    shapes = {tuple(value.shape) for value in run.system.parameters()}
    moments = [values["exp_avg"] for values in state["optimizer_states"][0]["state"].values()]
    assert {tuple(moment.shape) for moment in moments} == shapes  # whole ones, too


@pytest.mark.slow
def test_a_sharded_run_resumes(tmp_path: Path) -> None:
    command = [*TINY, "trainer=fsdp", "trainer.devices=2", *QUIET, "trainer.max_epochs=2"]
    code, out, err = train(tmp_path, *command)
    assert code == 0, err
    whole = RunFolder.open(tmp_path / out)
    code, out, err = train(tmp_path, *command, fault(3, "SIGTERM", rank=1))
    assert code == 75, err
    code, out, err = train(tmp_path, f"resume={out}", "+callbacks.fault=null")
    assert code == 0, err
    assert_same_run(RunFolder.open(tmp_path / out), whole)


def test_weights_that_differ_in_one_bit_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    last = nn.Linear(2, 1).double()
    network = nn.Sequential(nn.Linear(3, 2), last)
    sums: list[torch.Tensor] = []

    def gathered(ours: torch.Tensor) -> list[torch.Tensor]:
        sums.append(ours)
        return sums

    monkeypatch.setattr(agreement, "gather", gathered)
    agreement.require_equal_weights(network)
    agreement.require_equal_weights(network)
    with torch.no_grad():
        last.bias.view(torch.int64).add_(1)  # the last bit
    with pytest.raises(KinoscopeError, match=r"1 of 4 weights, '1\.bias' first, are not those of rank 0 on rank 2"):
        agreement.require_equal_weights(network)
