"""``kinoscope dashboard family=…``: a W&B workspace with the panels that suit a family's runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from omegaconf import DictConfig

from kinoscope.console import show
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.wandb_files import has_account

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


@dataclass(frozen=True)
class Curves:
    """Metrics over the system's clock, in one panel."""

    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """What is worth seeing of the runs of one family.

    Args:
        results: metrics of the test, one bar for each run; they are also columns of the run table.
        curves: what is followed during the training.
        pictures: of these, the latest.
        videos: likewise.
        tables: likewise.
    """

    results: tuple[str, ...]
    curves: tuple[Curves, ...]
    pictures: tuple[str, ...]
    videos: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


FAMILIES = {
    "video": Family(
        results=("test/video_accuracy", "test/clip_accuracy", "test/video_hit5"),
        curves=(
            Curves("Loss, nats per clip", ("train/loss", "val/loss")),
            Curves("Accuracy", ("train/accuracy", "val/clip_accuracy", "val/video_accuracy")),
            Curves("Hit@5", ("val/video_hit5",)),
        ),
        pictures=("pictures/contact_sheet", "pictures/confusion_matrix", "pictures/mistakes"),
        videos=("videos/contact_sheet",),
        tables=("mistakes",),
    ),
    "gan": Family(
        results=("test/critic_loss",),
        curves=(
            Curves("Losses, nats", ("train/critic_loss", "train/generator_loss")),
            Curves("Mean answer of D", ("train/critic_real", "train/critic_fake")),
            Curves("Critic on held-out images, nats", ("val/critic_loss",)),
            Curves("Mean answer of D on held-out images", ("val/critic_real", "val/critic_fake")),
        ),
        pictures=("pictures/samples", "pictures/learning_curves"),
    ),
    "autoencoder": Family(
        results=("test/squared_error",),
        curves=(Curves("Squared error per image", ("train/loss", "val/squared_error")),),
        pictures=("pictures/reconstructions", "pictures/learning_curves"),
    ),
}
"""Names as the systems and callbacks log them; a test compares them with what a run has logged."""

Panel: TypeAlias = Any


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """The verb: prints the address of the new workspace, or with ``dry`` what would be sent, as JSON."""
    workspace = compose(config.family, config.project, config.entity or "", config.name)
    if config.dry:
        show(json.dumps(as_sent(workspace), indent=2))
        return 0
    if not has_account():
        raise Refusal(
            "dashboard: W&B has no API key here: 'wandb login' once, or set WANDB_API_KEY; dry=true prints what would "
            "be sent"
        )
    import wandb

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity or ""
        address = workspace.save().url
    except Exception as error:  # W&B raises whatever its transport does
        raise KinoscopeError(f"dashboard: W&B did not take the workspace ({error}); try again later") from error
    show(address)
    return 0


def compose(family: str, project: str, entity: str, name: str) -> Workspace:
    """The workspace of a family. Raises `Refusal` without the package that builds it."""
    try:
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError:
        raise Refusal("dashboard needs the wandb-workspaces package: pip install 'kinoscope[dashboard]'") from None
    shown = FAMILIES[family]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=panels, is_open=title != "Gradients and weights")
            for title, panels in _sections(shown)
            if panels
        ],
        settings=ws.WorkspaceSettings(x_axis="step", smoothing_type="exponentialTimeWeighted", smoothing_weight=0),
        runset_settings=ws.RunsetSettings(
            filters=f"Tags() in ['{family}']",
            pinned_columns=["run:displayName", *(f"summary:{metric}" for metric in shown.results)],
        ),
    )


def _sections(shown: Family) -> Iterator[tuple[str, list[Panel]]]:
    import wandb_workspaces.reports.v2 as wr

    yield "Results", [wr.BarPlot(title=metric, metrics=[metric]) for metric in shown.results]
    yield "Training", [wr.LinePlot(title=curves.title, x="step", y=list(curves.metrics)) for curves in shown.curves]
    yield (
        "Pictures",
        [
            *(wr.MediaBrowser(title=key, media_keys=[key], num_columns=1) for key in shown.pictures + shown.videos),
            *(wr.WeavePanelSummaryTable(table_name=key) for key in shown.tables),
        ],
    )
    yield (
        "Gradients and weights",
        [wr.LinePlot(title="Gradient norms, before clipping", x="step", metric_regex="^gradients/.*", log_y=True)],
    )


def as_sent(workspace: Workspace) -> dict[str, Any]:
    """What `Workspace.save` sends, as plain containers."""
    view = workspace._to_model()
    return {
        "entity": view.entity,
        "project": view.project,
        "name": view.display_name,
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }
