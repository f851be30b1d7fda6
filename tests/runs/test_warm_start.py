"""``init_from``, ``fresh`` and ``freeze``: what is taken, what stays, what is refused, and what is written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kinoscope
from kinoscope.errors import Interrupted, Refusal
from kinoscope.runs import warm_start
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.signature import file_hash
from kinoscope.systems.base import trainable
from kinoscope.systems.classification import Classification

QUIET = [
    "logger=csv", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.progress=null",
    "callbacks.learning_curves=null", "data.batch_size=128", "trainer.max_epochs=1", "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
]  # fmt: skip
AUTOENCODER = [
    "experiment=autoencoder/conv_small", *QUIET, "trainer.limit_train_batches=4", "callbacks.reconstructions=null",
    "model.network.widths=[4,4,4]", "model.network.code=2",
]  # fmt: skip
CLASSIFIER = [
    "experiment=autoencoder/conv_classifier_small", "~stages.pretrain", *QUIET, "trainer.limit_train_batches=4",
    "callbacks.contact_sheet=null", "callbacks.confusion_matrix=null", "callbacks.mistakes=null",
    "model.network.encoder.widths=[4,4,4]", "model.network.encoder.code=2",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
        yield folder


@pytest.fixture(scope="module")
def source(home: Path) -> RunFolder:
    return RunFolder.open(kinoscope.train(AUTOENCODER))


def classifier(*overrides: str) -> RunFolder:
    return RunFolder.open(kinoscope.train([*CLASSIFIER, *overrides]))


def weights(run: RunFolder, name: str = "network.") -> dict[str, Tensor]:
    state = read_checkpoint(run.trained("last"))["state_dict"]
    return {key: value for key, value in state.items() if key.startswith(name)}


def test_a_frozen_encoder_is_the_sources_before_and_after(source: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kinoscope"):
        run = classifier(f"init_from={source.path}")
    ours, theirs = weights(run, "network.encoder."), weights(source, "network.encoder.")
    assert len(ours) == 8
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert f"8 of 10 tensors taken from '{source.path}' at step 4; fresh: network.head" in caplog.text
    (optimizer,) = read_checkpoint(run.checkpoint("last"))["optimizer_states"]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [2]  # the head's weight and bias
    origin = json.loads(run.provenance_file.read_text())["init_from"]
    assert origin == {
        "folder": str(source.path),
        "checkpoint": "best.ckpt",
        "signature": source.read_summary()["signature"],
        "step": 4,
        "sha256": file_hash(source.checkpoint("best")),
    }


def test_without_freeze_all_is_trained_on(source: RunFolder) -> None:
    run = classifier(f"init_from={source.path}", "freeze=[]")
    ours, theirs = weights(run, "network.encoder."), weights(source, "network.encoder.")
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all((ours[name] - theirs[name]).abs().max() < 0.02 for name in ours)  # 4 steps of Adam at 0.001


def test_fresh_weights_are_those_of_a_cold_start(source: RunFolder) -> None:
    """The encoder's last layer is left out: it is what the seed draws."""
    warm = classifier(f"init_from={source.path}", "fresh=[network.encoder.6.*]")
    cold = classifier("init_from=null")
    name = "network.encoder.6.weight"
    assert torch.equal(weights(warm)[name], weights(cold)[name])
    assert not torch.equal(weights(warm)["network.encoder.0.weight"], weights(cold)["network.encoder.0.weight"])


def test_the_signature_knows_the_weights_and_not_their_place(source: RunFolder, home: Path) -> None:
    moved = home / "elsewhere"
    shutil.copytree(source.path, moved)
    signatures = [classifier(f"init_from={where}").read_summary()["signature"] for where in (source.path, moved)]
    assert signatures[0] == signatures[1]
    other = RunFolder.open(kinoscope.train([*AUTOENCODER, "seed=1"]))
    assert classifier(f"init_from={other.path}").read_summary()["signature"] != signatures[0]
    assert classifier("init_from=null").read_summary()["signature"] != signatures[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.network.encoder.code=3"], r"'network\.encoder\.6\.weight' is 2 × .* and 3 × .* here.*fresh=\["),
        (["fresh=[network.encoder.*]"], "nothing in .* has a name of this model"),
        (["fresh=[network.tail.*]"], r"fresh: network\.tail\.\* matches nothing of this model"),
        (["freeze=[network.encodr.*]"], r"'network\.encodr\.\*' matches no .*did you mean 'network\.encoder\.\*'"),
        (["freeze=['*']"], "leaves nothing to train"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    overrides: list[str], sentence: str, source: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match=sentence):
        classifier(f"init_from={source.path}", f"output_dir={tmp_path}", *overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["init_from=nowhere"], "init_from=nowhere: 'nowhere' is not a folder"),
        (["init_from=empty"], "init_from=empty: 'empty' holds no checkpoint yet"),
        (["init_from=stage:first"], "there is no stage 'first' before this one; there are: none"),
        (["init_from=null", "fresh=[network.head.*]"], "nothing is taken over without init_from"),
    ],
)
def test_a_source_that_is_none_is_found_by_preflight(overrides: list[str], sentence: str, home: Path) -> None:
    from kinoscope.config.preflight import preflight

    folder = home / "empty"
    if not folder.exists():
        folder.mkdir()
        (folder / "config.yaml").write_text("name: x\n")
        (folder / "summary.json").write_text("{}")
    assert any(sentence in fault for fault in preflight("train", [*CLASSIFIER, *overrides]).faults)


def test_a_run_goes_on_without_its_source(home: Path) -> None:
    """What is in its own checkpoint counts; the source may be gone by then. And it is the same run."""
    theirs = RunFolder.open(kinoscope.train([*AUTOENCODER, "seed=2"]))
    command = [f"init_from={theirs.path}", "freeze=[]", "seed=2", "trainer.max_epochs=2"]
    whole = classifier(*command)
    fault = "+callbacks.fault={_target_: faults.Fault, at: 2, moment: batch, sends: SIGTERM}"
    with pytest.raises(Interrupted) as stop:
        classifier(*command, fault)
    path = Path(str(stop.value).rpartition("resume=")[2])
    shutil.rmtree(theirs.path)
    kinoscope.train([f"resume={path}", "+callbacks.fault=null"])
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(RunFolder.open(path))[name]), name


def test_a_run_that_saved_nothing_needs_the_same_source_again(home: Path) -> None:
    theirs = RunFolder.open(kinoscope.train([*AUTOENCODER, "seed=3"]))
    with pytest.raises(RuntimeError, match="batch 1"):
        classifier(f"init_from={theirs.path}", "+callbacks.fault={_target_: faults.Fault, at: 1, moment: batch}")
    runs = Path("outputs/autoencoder/conv_classifier_small").iterdir()
    run = RunFolder.open(max(runs, key=lambda path: path.stat().st_ctime))
    kinoscope.train([f"resume={theirs.path}", "trainer.max_epochs=2"])
    with pytest.raises(Refusal, match="has changed since"):
        kinoscope.train([f"resume={run.path}", "+callbacks.fault=null"])


def test_an_averaged_generator_is_what_others_begin_with() -> None:
    averaged, own = torch.ones(2), torch.zeros(2)
    found = warm_start.weights({"generator.a": own, "ema.a": averaged, "critic.a": own, "ema_updates": torch.ones(())})
    assert found.keys() == {"generator.a", "ema.a", "critic.a"}  # a counter is no weight
    assert torch.equal(found["generator.a"], averaged)
    assert warm_start.weights({"generator.a": own, "critic.a": own})["ema.a"] is own  # an average that begins here


def frozen(*patterns: str) -> Classification:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    system = Classification(network, optimizer=torch.optim.SGD)  # pyright: ignore[reportArgumentType] - not stepped
    system.freeze_named(patterns)
    return system


@pytest.mark.parametrize(
    ("patterns", "left", "moves"),
    [
        ((), 6, True),
        (("network.0.*",), 4, True),
        (("network.[01].*",), 2, False),
        (("network.1.weight", "network.1.bias"), 4, False),  # what is normalised with is frozen as a whole
        (("network.1.running_mean",), 6, False),
        (("network.1.weight",), 5, True),
    ],
)
def test_frozen_normalisation_keeps_its_statistics(patterns: tuple[str, ...], left: int, moves: bool) -> None:
    system = frozen(*patterns)
    assert len(trainable(system)) == left
    norm = system.network.get_submodule("1")
    before = norm.get_buffer("running_mean").clone()
    system.train()
    system.network(torch.randn(8, 1, 3, 3))
    assert torch.equal(before, norm.get_buffer("running_mean")) is not moves
    system.eval()
    system.train()
    assert norm.training is moves
    assert system.network.training


def test_frozen_normalisation_stays_still_when_it_is_synchronised() -> None:
    """``trainer.sync_batchnorm=true`` puts another module in its place."""
    system = frozen("network.[01].*")
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(system)
    system.train()
    norm = system.network.get_submodule("1")
    assert isinstance(norm, nn.SyncBatchNorm)
    assert system.network.training
    assert not norm.training
