"""``sweep=grid|random|optuna``: what is suggested, pruned, recorded, and gone on with after a kill."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import sqlite3
import warnings
from pathlib import Path

import pytest
from sweeping import HEAD, SPACE, is_alive, lay_out, processes_of, start, table_of, wait_for
from sweeping import environment as environment_of

from kinoscope.cli import main
from kinoscope.config.preflight import preflight
from kinoscope.launch.sweep_pictures import quiet_optuna
from kinoscope.launch.sweep_search import Search

CONFIGS = Path(__file__).parents[2] / "configs"
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the fake jobs on the path of what is started from it."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", environment_of(tmp_path)["PYTHONPATH"])
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return tmp_path


def search(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, Path, str]:
    """A search in this process: its exit code, its folder and what it said on stderr."""
    capfd.readouterr()
    code = main(["train", *words])
    out, err = capfd.readouterr()
    (line,) = out.splitlines() or [""]
    return code, Path(line), err


def test_a_search_finds_the_best_values(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The loss is (log10 lr + 2)² + seed / 100: of 12 suggestions the best is near 0.01. One job fails on the way."""
    words = [
        "sweep=optuna",
        "sweep.trials=12",
        "sweep.n_jobs=4",
        "card.do='fail 3'",
        "sweep.sampler.n_startup_trials=4",
    ]
    code, sweep, err = search(capfd, *HEAD, *SPACE, *words)
    assert code == 0, err
    rows = table_of(sweep)
    assert [row["job"] for row in rows] == [str(n) for n in range(12)]
    assert {row["status"] for row in rows} == {"finished", "failed"}
    assert rows[3]["status"] == "failed"
    assert all(1e-4 <= float(row["model.lr"]) <= 1 and int(row["seed"]) in range(10) for row in rows)
    losses = {row["folder"]: float(row["best/val/loss"]) for row in rows if row["status"] == "finished"}
    best = min(losses, key=lambda run: losses[run])
    assert losses[best] < 0.3
    found = json.loads((sweep / "best.json").read_text())
    assert found["objectives"] == {"val/loss": "min"}
    assert found["jobs"] == {"finished": 11, "failed": 1}
    ((winner),) = found["best"]
    assert (winner["folder"], winner["val/loss"]) == (best, losses[best])
    assert f"in job {winner['job']}, {best}" in err
    with sqlite3.connect(sweep / "study.db") as study:
        states = study.execute("SELECT state, count(*) FROM trials GROUP BY state").fetchall()
    assert dict(states) == {"COMPLETE": 11, "FAIL": 1}
    for name in ("parallel_coordinates", "importance"):
        assert (sweep / "pictures" / f"{name}.png").stat().st_size > 10_000
    # a job is a command with plain values that knows nothing of the sweep
    (process,) = processes_of(folder / best)
    argv = process["argv"][3:]
    assert argv[:2] == ["train", "--config-dir"]
    assert not [word for word in argv if word.startswith(("sweep", "-m", "--multirun")) or "interval" in word]
    assert process["env"]["WANDB_RUN_GROUP"] == sweep.name


def test_every_trial_draws_from_the_seed_and_its_number() -> None:
    """And from nothing before it, so that a search can be gone on with; but a sequence has one seed for all."""
    optuna = pytest.importorskip("optuna")
    drawn = Search(functools.partial(optuna.samplers.RandomSampler), seed=1)
    other = Search(functools.partial(optuna.samplers.RandomSampler), seed=2)
    sequence = Search(functools.partial(optuna.samplers.QMCSampler), seed=1)

    def first(search: Search, number: int) -> float:
        study = optuna.create_study(sampler=search.sampler_of(number))
        return study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).params["x"]

    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert first(drawn, 3) == first(drawn, 3)
        assert len({first(search, number) for search in (drawn, other) for number in range(5)}) == 10
        assert sequence.sampler_of(0)._seed == sequence.sampler_of(7)._seed  # type: ignore[union-attr]


def test_a_grid_is_tried_in_order_and_reads_its_space_from_yaml(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-dir", "conf", "experiment=spacious", "sweep=grid", "sweep.n_jobs=3"]
    _, sweep, _ = search(capfd, *words)
    product = [(lr, seed) for lr in ("0.1", "0.01") for seed in ("1", "2")]
    assert [(row["model.lr"], row["seed"]) for row in table_of(sweep)] == product
    _, sweep, _ = search(capfd, *words, "model.lr=0.5", "model.width=1,2")  # what is typed wins
    rows = [(row["model.lr"], row["seed"], row["model.width"]) for row in table_of(sweep)]
    assert sorted(rows) == sorted(("0.5", seed, width) for seed in ("1", "2") for width in ("1", "2"))


def test_several_objectives_leave_those_that_no_other_beats(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """val/size = 1/lr falls with lr, and the loss rises above 0.01: of these, 1 and 0.1 and 0.01 are a compromise."""
    words = [
        "sweep=grid",
        "model.lr=1,0.1,0.01,0.001",
        "sweep.n_jobs=4",
        "sweep.objectives={val/loss: min, val/size: min}",
    ]
    code, sweep, err = search(capfd, *HEAD, *words)
    assert code == 0, err
    front = json.loads((sweep / "best.json").read_text())["best"]
    assert {run["overrides"]["model.lr"] for run in front} == {"1", "0.1", "0.01"}
    assert [run["val/loss"] for run in front] == sorted(run["val/loss"] for run in front)
    assert err.count("best: val/loss = ") == 3


def test_hopeless_jobs_are_stopped_and_recorded(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two good jobs finish; then those that are worse at the same step are asked to save themselves and end."""
    words = ["sweep=grid", "model.lr=0.01,0.02,0.9,0.8", "card.do=prune", "sweep.n_jobs=2"]
    pruner = ["sweep/pruner=median", "sweep.pruner.n_startup_trials=2"]
    code, sweep, err = search(capfd, *HEAD, *words, *pruner)
    assert code == 0, err
    assert [row["status"] for row in table_of(sweep)] == ["finished", "finished", "pruned", "pruned"]
    assert [row["exit_code"] for row in table_of(sweep)] == ["0", "0", "75", "75"]
    assert json.loads((sweep / "best.json").read_text())["jobs"] == {"finished": 2, "pruned": 2}
    assert json.loads((folder / "outputs/thing/run-2/summary.json").read_text())["status"] == "interrupted"
    with sqlite3.connect(sweep / "study.db") as study:
        states = study.execute("SELECT state FROM trials ORDER BY number").fetchall()
    assert [state for (state,) in states] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]


def test_an_objective_that_is_not_logged_ends_the_search(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, sweep, err = search(capfd, *HEAD, *SPACE, "sweep=random", "sweep.trials=5", "sweep.objectives={val/los: min}")
    assert code == 1
    assert "sweep.objectives: 'val/los' is not logged; job 0 logged val/loss, val/size" in err
    assert len(table_of(sweep)) == 1


def test_a_search_ends_if_its_first_job_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And can be gone on with, in a folder of another name, in a storage that it shares with another search."""
    words = [*HEAD, "sweep=grid", "seed=1,2,3", "sweep.storage=shared.db"]
    _, other, _ = search(capfd, *words)
    code, sweep, err = search(capfd, *words, "card.do='refuse 0'")
    assert code == 1
    assert "job 0 was refused before its work, and the search ends" in err
    assert [row["status"] for row in table_of(sweep)] == ["refused"]
    renamed = sweep.rename(sweep.with_name("renamed"))
    code, _, err = search(capfd, f"sweep.resume={renamed}")
    assert code == 0, err
    assert [row["status"] for row in table_of(renamed)] == ["refused", "finished", "finished"]
    assert len(table_of(other)) == 3

    (folder / "shared.db").unlink()
    with sqlite3.connect(folder / "shared.db") as empty:
        empty.execute("CREATE TABLE anything (at_all)")
    code, _, err = search(capfd, f"sweep.resume={renamed}")
    assert code == 2
    assert f"there is no study '{sweep.name}_" in err


@needs_proc
def test_a_killed_search_goes_on_as_if_it_had_not_been(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SIGKILL while job 2 works: the job ends with its owner, and is resumed; what follows is what would have come."""
    words = [*HEAD, *SPACE, "sweep=optuna", "sweep.trials=4", "sweep.sampler.n_startup_trials=2"]
    _, undisturbed, _ = search(capfd, *words, "card.do=nothing")
    wanted = [(row["model.lr"], row["seed"]) for row in table_of(undisturbed)]
    for run in (folder / "outputs" / "thing").iterdir():
        run.rename(folder / f"undisturbed-{run.name}")

    sweep = start(folder, *words, "card.do='sleep 2'")
    run = folder / "outputs" / "thing" / "run-2"
    wait_for(lambda: (run / "summary.json").exists())
    (job,) = processes_of(run)
    sweep.kill()
    sweep.communicate()
    wait_for(lambda: not is_alive(job["pid"]))
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    (left,) = set((folder / "outputs" / "sweeps").iterdir()) - {folder / undisturbed}
    assert [row["status"] for row in table_of(left)] == ["finished", "finished"]

    study = left / "study.db"
    study.rename(folder / "elsewhere")
    code, _, err = search(capfd, f"sweep.resume={left}")
    assert code == 2
    assert f"the study '{study}' is gone" in err
    (folder / "elsewhere").rename(study)

    code, again, err = search(capfd, f"sweep.resume={left}")
    assert code == 0, err
    assert again == left
    rows = table_of(left)
    assert [(row["model.lr"], row["seed"]) for row in rows] == wanted
    assert {row["status"] for row in rows} == {"finished"}
    resumed = processes_of(run)
    assert len(resumed) == 2
    assert f"resume={run.relative_to(folder)}" in resumed[1]["argv"]


@needs_proc
def test_ctrl_c_lets_all_jobs_save_themselves_and_the_search_goes_on(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*HEAD, "sweep=grid", "seed=1,2,3", "sweep.n_jobs=2", "card.do=sleep"]
    sweep = start(folder, *words)
    runs = [folder / "outputs" / "thing" / f"run-{n}" for n in (0, 1)]
    wait_for(lambda: all((run / "summary.json").exists() for run in runs))
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 75, err
    left = Path(out.strip())
    assert f"go on with: python -m train sweep.resume={left}" in err
    assert [row["status"] for row in table_of(left)] == ["interrupted", "interrupted"]
    assert "[0] chatter on stderr" in err
    assert not any(is_alive(process["pid"]) for run in runs for process in processes_of(run))

    code, _, err = search(capfd, f"sweep.resume={left}", "card.do=nothing")
    assert code == 2
    assert "card.do=nothing would make this another search; leave it out" in err
    sweep = start(folder, f"sweep.resume={left}", "sweep.n_jobs=3")  # the third job sleeps, as its command says
    wait_for(lambda: (folder / "outputs" / "thing" / "run-2" / "summary.json").exists())
    wait_for(lambda: [row["status"] for row in table_of(left)][:2] == ["finished", "finished"])
    sweep.send_signal(signal.SIGTERM)
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 75, err
    assert [row["status"] for row in table_of(left)] == ["finished", "finished", "interrupted"]


@needs_proc
def test_a_second_ctrl_c_kills(folder: Path) -> None:
    """A job that does not listen, here because it is stopped, does not keep the sweep."""
    sweep = start(folder, *HEAD, "sweep=grid", "seed=1,2", "card.do=sleep")
    run = folder / "outputs" / "thing" / "run-0"
    wait_for(lambda: (run / "summary.json").exists())
    (job,) = processes_of(run)
    os.kill(job["pid"], signal.SIGSTOP)
    sweep.send_signal(signal.SIGINT)
    assert sweep.stderr is not None
    while "again to kill" not in (line := sweep.stderr.readline()):
        assert line, "it ended before"
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=120)
    assert not is_alive(job["pid"])
    assert [row["status"] for row in table_of(folder / out.strip())] == ["failed"], err


REFUSED = {
    "nothing varies": (["sweep=random"], "sweep: nothing varies; give a key several values"),
    "unknown key": ([*SPACE, "sweep=optuna", "sweep.trails=3"], "did you mean 'sweep.trials'?"),
    "unknown kind": ([*SPACE, "sweep=optunaa"], "sweep has no option 'optunaa'; did you mean 'optuna'?"),
    "unknown sampler": ([*SPACE, "sweep=optuna", "sweep/sampler=tpee"], "did you mean 'tpe'?"),
    "sampler's key": ([*SPACE, "sweep=optuna", "sweep.sampler.multivariat=true"], "sweep.sampler.multivariate"),
    "float range": (
        ["sweep=random", "model.width=interval(2,64)"],
        "model.width: an interval does not fit it, it must be int; for whole numbers write int(interval(2,64))",
    ),
    "word range": (["sweep=random", "mode=interval(0,1)"], "mode: an interval does not fit it, it must be min | max"),
    "a wrong value": (["sweep=optuna", "seed=1,two"], "seed is 'two', but must be int"),
    "backwards": (["sweep=random", "model.lr=interval(1,0.1)"], "this interval ends before it begins"),
    "log of zero": (["sweep=random", "model.lr=tag(log,interval(0,1))"], "numbers above zero"),
    "unknown tag": (["sweep=random", "model.lr=tag(lgo,interval(1,2))"], "the one tag that is known here is log"),
    "interval in a grid": (["sweep=grid", "model.lr=interval(0.1,1)"], "search it with sweep=random"),
    "interval with -m": (["-m", "model.lr=interval(0.1,1)"], "search it with sweep=random"),
    "test data": ([*SPACE, "sweep=random", "sweep.objectives={test/loss: min}"], "would choose by the test data"),
    "a direction": (
        [*SPACE, "sweep=random", "sweep.objectives={val/loss: less}"],
        "sweep.objectives is {val/loss: less}, but must be {…: min | max} | null",
    ),
    "no monitor": ([*SPACE, "sweep=random", "monitor=null"], "has no monitor to search by"),
    "pruner": (
        [*SPACE, "sweep=optuna", "sweep/pruner=median", "sweep.objectives={val/loss: min, val/size: min}"],
        "a pruner needs one objective",
    ),
    "sampler for one": (
        [*SPACE, "sweep=optuna", "sweep/sampler=cmaes", "sweep.objectives={val/loss: min, val/size: min}"],
        "sweep.sampler: ",
    ),
    "no trials": ([*SPACE, "sweep=random", "sweep.trials=null"], "sweep.trials is not set"),
    "zero trials": ([*SPACE, "sweep=random", "sweep.trials=0"], "sweep.trials must be at least 1, got 0"),
    "too many devices": (
        [*SPACE, "sweep=random", "trainer.accelerator=gpu", "trainer.devices=99"],
        "trainer.devices=99 on trainer.accelerator=gpu: there are ",
    ),
    "zero jobs": ([*SPACE, "sweep=random", "sweep.n_jobs=0"], "sweep.n_jobs must be at least 1, got 0"),
    "the sampler's seed": ([*SPACE, "sweep=optuna", "+sweep.sampler.seed=3"], "give sweep.seed instead"),
    "a swept sweep": ([*SPACE, "sweep=random", "sweep.trials=1,2"], "a sweep's own keys have one value each"),
    "check": ([*SPACE, "sweep=random", "check=true"], "check=true looks at one run"),
    "no database": ([*SPACE, "sweep=random", "sweep.storage=conf/data/thing.yaml"], "cannot be used as a SQLite file"),
    "no folder": ([*SPACE, "sweep=random", "sweep.storage=nowhere/study.db"], "(unable to open database file)"),
    "no place": ([*SPACE, "sweep=random", "output_dir=/proc/nowhere"], "nothing can be written in '/proc'"),
    "no sweep": (["sweep.resume=conf"], "'conf' is not the folder of a search"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_one_sentence_before_anything_starts(
    folder: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    words, sentence = REFUSED[name]
    before = sorted(folder.rglob("*"))
    code, _, err = search(capfd, *([] if name == "no sweep" else HEAD), *words)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1, err
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path)) == before


def test_a_run_is_resumed_by_itself(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {}\ndata: {}\n")
    (run / "summary.json").write_text("{}")
    code, _, err = search(capfd, *HEAD, *SPACE, "sweep=random", f"resume={run}")
    assert code == 2
    assert "a search goes on with sweep.resume=<its folder>" in err


def test_a_search_is_started_from_the_command_line_alone(folder: Path) -> None:
    from kinoscope.config.compose import compose_checked
    from kinoscope.errors import Refusal

    with pytest.raises(Refusal, match="sweep=random starts several runs"):
        compose_checked("train", ["experiment=thing", "sweep=random"], folder / "conf")


def test_no_run_knows_of_the_sweep_it_is_from(folder: Path) -> None:
    from kinoscope.config.compose import compose_checked

    assert "sweep" not in compose_checked("train", ["experiment=spacious"], folder / "conf")


OPTIONS = [f"{group}={name}" for group, names in {
    "sweep/sampler": ("tpe", "random", "qmc", "gp", "nsga2", "cmaes"),
    "sweep/pruner": ("none", "median", "halving", "hyperband", "threshold"),
}.items() for name in names]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_sampler_and_pruner_can_be_chosen(folder: Path, option: str) -> None:
    more = ["+sweep.pruner.upper=3"] if "threshold" in option else []  # it needs a threshold
    found = preflight("train", ["experiment=thing", "sweep=optuna", *SPACE, option, *more], "conf", sweep=True).faults
    if option.endswith("cmaes") and importlib.util.find_spec("cmaes") is None:
        (fault,) = found
        assert fault.startswith("sweep.sampler: ")
        assert "'cmaes'" in fault
    else:
        assert found == []


def test_all_that_is_shipped_is_named_here() -> None:
    shipped = {f"{file.parent.relative_to(CONFIGS)}={file.stem}" for file in (CONFIGS / "sweep").glob("*/*.yaml")}
    assert shipped == set(OPTIONS)
