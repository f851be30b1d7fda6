"""Jobs of a cluster: preempted, started again, continued in the same run folder.

There is no cluster here. submitit's local jobs are real, with real trainings in them. Of SLURM, ``sbatch``, ``srun``,
``scontrol`` and ``sacct`` are played by a script, which runs the very batch script that submitit has written.
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinoscope.config.preflight import preflight
from kinoscope.errors import KinoscopeError
from kinoscope.launch.submitit_launcher import SlurmLauncher
from kinoscope.launch.submitit_task import Task

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "runs"))

from same_run import COMMON, SYSTEMS, assert_same_run  # noqa: E402

# Plays SLURM for jobs of one task each. `sbatch` leaves a process behind that runs the script for every job of the
# array, again if it was requeued meanwhile; what is asked of it is written down.
SLURM = """#!{python}
import os, re, subprocess, sys, time
from pathlib import Path

home, name, arguments = Path("{home}"), Path(sys.argv[0]).name, sys.argv[1:]
with (home / "asked").open("a") as record:
    print(name, *arguments, file=record)

if name == "sbatch":
    subprocess.Popen([sys.executable, home / "bin" / "slurm", "controller", *arguments],
                     stdout=subprocess.DEVNULL, stderr=(home / "errors").open("a"))
    print("Submitted batch job 4242")
elif name == "slurm" and arguments[0] == "controller":
    script = Path(arguments[1]).read_text()
    array = re.search(r"--array=0-(\\d+)", script)
    for number in range(int(array[1]) + 1 if array else 1):
        job = f"4242_{{number}}" if array else "4242"
        own = {{"SLURM_ARRAY_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": str(number)}} if array else {{}}
        again = home / f"requeued-{{job}}"
        for start in range(3):
            subprocess.run(["bash", arguments[1]], env=os.environ | own | {{
                "SLURM_JOB_ID": str(4242 + number), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1",
            }})
            if not again.exists():
                break
            again.unlink()
elif name == "srun":
    files = {{}}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            path = arguments.pop(0).replace("%t", "0").replace("%A", "4242").replace("%j", os.environ["SLURM_JOB_ID"])
            files[option] = open(path.replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", "")), "a")
    step = {{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1"}}
    subprocess.run(arguments, env=os.environ | step, stdout=files["--output"], stderr=files["--error"])
elif name == "scontrol":
    assert arguments[0] == "requeue", arguments
    (home / f"requeued-{{arguments[1]}}").touch()
elif name == "sacct":
    print("JobID|State|NodeList")
"""

# Python imports sitecustomize at start: here it puts a fake in the place of the verb, so that no torch is needed.
FAKE_VERB = """
import os, signal, sys, time
from types import ModuleType

def run(config, overrides):
    from omegaconf import OmegaConf
    from kinoscope.runs.folder import RunFolder, tell, write_text
    if config.resume:
        folder = RunFolder.open(config.resume)
    else:
        folder = RunFolder.create(config.output_dir, config.name, f"0000000{config.seed}")
        write_text(folder.config_file, OmegaConf.to_yaml(config, resolve=True))
    folder.write_summary(status="running", signature="", monitor="val/loss", seconds=0, best={}, test={})
    tell(folder.path)
    with (folder.path / "lines").open("a") as lines:
        print(os.environ["WANDB_RUN_GROUP"], *overrides, file=lines)
    print(folder.path)
    if config.seed in (1, 4) and not config.resume:
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        if config.seed == 1:
            os.kill(os.getppid(), signal.SIGUSR2)  # SLURM's warning, to the task that started this process
        (folder.path / "listening").touch()
        while not stopped:
            time.sleep(0.01)
        folder.write_summary(status="interrupted")
        return 75
    if config.seed == 3:
        folder.write_summary(status="failed")
        return 1
    folder.write_summary(status="finished", best={"val/loss": config.seed / 10})
    return 0

fake = ModuleType("kinoscope.verbs.train")
fake.run = run
sys.modules[fake.__name__] = fake
"""


@contextlib.contextmanager
def train(
    folder: Path, *overrides: str, path: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """``python -m train`` in a process group of its own, which is ended with it."""
    before = os.pathsep.join([str(path or TESTS / "faults"), *filter(None, sys.path)])
    sweep = subprocess.Popen(
        [sys.executable, "-m", "train", *overrides],
        cwd=folder, env=os.environ | {"PYTHONPATH": before, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield sweep
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
        sweep.communicate()


def rows(folder: Path) -> list[dict[str, str]]:
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Local jobs


def test_a_preempted_local_job_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warned after 8 of 15 steps, it saves, ends, is started again and equals a run that nobody disturbed."""
    import kinoscope
    from kinoscope.runs.folder import RunFolder

    command = [*SYSTEMS["autoencoder"], *COMMON, "trainer.max_epochs=3"]
    preempted = "+callbacks.preempted={_target_: faults.Preempted, at: 8, sends: SIGUSR2}"
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.signal_delay_s=150"]  # 120 of them for the last save
    with train(tmp_path, *command, preempted, *launcher) as sweep:  # -m goes without saying
        out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, err
    (row,) = rows(tmp_path)
    assert (row["status"], row["exit_code"]) == ("finished", "0")
    (path,) = (tmp_path / "outputs").glob("autoencoder/*/*")
    assert row["folder"] == str(path.relative_to(tmp_path))
    assert Path(out.strip()) == Path(next((tmp_path / "outputs" / "sweeps").iterdir()).relative_to(tmp_path))
    (log,) = (tmp_path / out.strip() / "submitit").glob("*_0_log.err")
    said = log.read_text()
    assert "this job is preempted" in said
    assert "SIGTERM: stopping at the next batch boundary and saving" in said
    assert f"resuming '{row['folder']}' from {row['folder']}/checkpoints/last.ckpt" in said

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TESTS / "faults"))
    whole = RunFolder.open(kinoscope.train([*command, "threads=1"]))
    assert_same_run(RunFolder.open(path), whole)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(FAKE_VERB)
    return tmp_path / "path"


def test_ctrl_c_lets_local_jobs_save_themselves(fake: Path) -> None:
    """One of two jobs is running; the other has no place yet, and is not begun."""
    with train(fake.parent, "hydra/launcher=submitit_local", "seed=4,2", path=fake) as sweep:
        while sweep.poll() is None and not list(fake.parent.glob("outputs/*/*/*/listening")):
            time.sleep(0.05)
        sweep.terminate()
        _, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 75, err
    assert [(row["seed"], row["status"], row["exit_code"]) for row in rows(fake.parent)] == [("4", "interrupted", "75")]


# SLURM's


@pytest.fixture
def cluster(tmp_path: Path, fake: Path) -> Path:
    """The folder of the programs; ``asked`` beside it says how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "slurm").write_text(SLURM.format(python=sys.executable, home=tmp_path))
    (programs / "slurm").chmod(0o755)
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (programs / name).symlink_to("slurm")
    return programs


def on_slurm(cluster: Path, *overrides: str) -> tuple[subprocess.Popen[str], str, str]:
    home = cluster.parent
    found = os.pathsep.join([str(cluster), os.environ["PATH"]])
    with train(home, "hydra/launcher=submitit_slurm", *overrides, path=home / "path", PATH=found) as sweep:
        out, err = sweep.communicate(timeout=300)
    return sweep, out, err


def test_an_array_of_which_one_job_is_preempted(cluster: Path) -> None:
    resources = [
        "partition=gpu", "account=lab", "qos=long", "timeout_min=90", "cpus_per_task=6", "mem_gb=24",
        "gpus_per_node=2", "array_parallelism=2", "signal_delay_s=90", "setup=[module load cuda]",
        "additional_parameters={mail-type: END}", "constraint=h200",
    ]  # fmt: skip
    sweep, out, err = on_slurm(cluster, "seed=1,2,3", *(f"hydra.launcher.{resource}" for resource in resources))
    assert sweep.returncode == 1, err
    found = rows(cluster.parent)
    assert [(row["seed"], row["status"], row["exit_code"]) for row in found] == [
        ("1", "finished", "0"), ("2", "finished", "0"), ("3", "failed", "1"),
    ]  # fmt: skip
    assert [row["best/val/loss"] for row in found] == ["0.1", "0.2", ""]
    assert "its log is" in err

    runs = [cluster.parent / row["folder"] for row in found]
    assert len(set(runs)) == 3 == len(list((cluster.parent / "outputs" / "video" / "slow_fusion_small").iterdir()))
    begun, continued = (runs[0] / "lines").read_text().splitlines()  # the preempted one went on in the same folder
    assert "resume=" not in begun
    assert f"resume={found[0]['folder']}" in continued
    assert {line.split()[0] for line in (begun, continued)} == {Path(out.strip()).name}  # W&B's group
    asked = [line.split(maxsplit=1) for line in (cluster.parent / "asked").read_text().splitlines()]
    assert [words for name, words in asked if name == "scontrol"] == ["requeue 4242_0"]

    (script,) = (cluster.parent / out.strip() / "submitit").glob("*_submission.sh")
    lines = set(script.read_text().splitlines())
    assert lines >= {
        "#SBATCH --partition=gpu", "#SBATCH --account=lab", "#SBATCH --qos=long", "#SBATCH --time=90",
        "#SBATCH --cpus-per-task=6", "#SBATCH --mem=24GB", "#SBATCH --gpus-per-node=2", "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1", "#SBATCH --array=0-2%2", "#SBATCH --signal=USR2@90", "#SBATCH --mail-type=END",
        "#SBATCH --requeue", "#SBATCH --constraint=h200", "#SBATCH --job-name=kinoscope", "module load cuda",
    }  # fmt: skip


def test_a_failed_rank_ends_its_task_badly(cluster: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For srun, which ends the others; a single task returns its code, for the table."""

    def ends_with(code: int) -> int:
        return Task([sys.executable, "-c", f"raise SystemExit({code})"], fake / "note")()

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert ends_with(3) == 3
        monkeypatch.setenv("SLURM_PROCID", "1")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
        assert ends_with(0) == 0
        with pytest.raises(KinoscopeError, match="exit code 3"):
            ends_with(3)
    finally:
        signal.signal(signal.SIGTERM, before)

    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{os.environ['PATH']}")
    for nodes, expected in ((1, False), (2, True)):
        launcher = SlurmLauncher(srun_args=["--exclusive"])
        launcher.trainer = {"devices": 4, "num_nodes": nodes, "accelerator": "gpu"}
        srun = launcher.executor(fake)._executor._make_submission_file_text("command", "1")
        assert ("--kill-on-bad-exit=1 --exclusive" in srun) is expected
        assert "--exclusive" in srun


def test_a_single_job(cluster: Path) -> None:
    sweep, _, err = on_slurm(cluster, "seed=2")
    assert sweep.returncode == 0, err
    (row,) = rows(cluster.parent)
    assert (row["status"], row["best/val/loss"]) == ("finished", "0.2")


def test_ctrl_c_leaves_the_jobs_to_the_cluster(cluster: Path) -> None:
    (cluster / "sbatch").unlink()
    (cluster / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 4242\n")  # it stays in the queue
    (cluster / "sbatch").chmod(0o755)
    home = cluster.parent
    found = os.pathsep.join([str(cluster), os.environ["PATH"]])
    with train(home, "hydra/launcher=submitit_slurm", "seed=1,2", path=home / "path", PATH=found) as sweep:
        assert sweep.stderr is not None
        said = [sweep.stderr.readline() for _ in range(2)]
        assert [line.rstrip().rpartition(" ")[2] for line in said] == ["4242_0", "4242_1"]
        sweep.terminate()
        _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 75, err
    assert "the jobs go on; 'scancel 4242_0 4242_1' ends them" in err
    assert [row["status"] for row in rows(home)] == ["running", "running"]


# What is refused


def faults(*overrides: str) -> str:
    return "\n".join(preflight("train", overrides, sweep=True).faults)


def test_faults_are_found_before_anything_is_submitted(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = ["hydra/launcher=submitit_slurm", "seed=1,2"]
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(cluster.parent))
    said = faults(*slurm)
    assert "there is no sbatch and no srun here" in said, said
    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{path}")
    assert faults(*slurm, "trainer=gpu") == ""  # the GPUs are not here
    assert faults(*slurm, "trainer.num_nodes=2", "trainer.devices=4", "trainer=ddp") == ""
    assert "Key 'partitio' is not in struct" in faults(*slurm, "hydra.launcher.partitio=gpu")
    assert "hydra.launcher.nodes is 'two', but must be" in faults(*slurm, "hydra.launcher.nodes=two")
    assert "nodes is 2, but trainer.num_nodes is 1" in faults(*slurm, "hydra.launcher.nodes=2")
    assert "tasks_per_node is 3, but each task is a rank" in faults(*slurm, "hydra.launcher.tasks_per_node=3")
    assert "give hydra.launcher.array_parallelism" in faults(*slurm, "sweep.n_jobs=2")
    assert "trainer.devices=auto counts the devices of this machine" in faults(*slurm, "trainer=ddp")


def test_the_commands_of_the_docs_have_no_fault(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{os.environ['PATH']}")
    page = (TESTS.parent / "docs" / "slurm.md").read_text()
    lines = [line.split()[4:] for line in page.splitlines() if line.startswith("$ python -m train ")]
    assert lines
    assert [faults(*line) for line in lines] == [""] * len(lines)
