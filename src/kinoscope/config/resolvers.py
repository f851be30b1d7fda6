"""What yaml may ask at compose time: a directory listing or a list file at most, never torch.

    ${ucf101_classes:<root>,<classes or null>}          class names of a UCF101 folder, in label order
    ${motion_classes:<task>}                            of the embedded videos
    ${image_classes:<data set>,<root>,<download>}       of an image data set, whose files are looked for
    ${count:<list>}                                     its length
    ${unless:<condition>}                               true where the condition is false
    ${choice:<group>}                                   the option chosen of a config group

Each raises `kinoscope.errors.Refusal` with one sentence where its folder or files are missing. Class names come as a
`ListConfig`, since ``OmegaConf.resolve`` (and so ``--cfg job --resolve``) cannot put a plain list in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import ListConfig, OmegaConf

from kinoscope.errors import Refusal


def register() -> None:
    """Makes the resolvers known to OmegaConf; safe to call again."""
    for resolver in (ucf101_classes, motion_classes, image_classes, count, unless, choice):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def ucf101_classes(root: str, classes: Sequence[str] | None = None) -> ListConfig:
    """The classes of a UCF101 folder that are on disk and, if given, in ``classes``."""
    from kinoscope.data.lists.ucf101 import class_names

    return ListConfig(class_names(root, None if classes is None else list(classes)))


def motion_classes(task: str) -> ListConfig:
    """The classes of a task of the embedded videos."""
    from kinoscope.data.motion import class_names

    return ListConfig(class_names(task))


def image_classes(dataset: Any, root: str | None = None, download: bool = False) -> ListConfig:
    """The classes of an image data set."""
    from kinoscope.data.image_files import class_names

    return ListConfig(class_names(dataset, root, download))


def count(items: Sequence[Any]) -> int:
    """How many."""
    return len(items)


def unless(condition: Any) -> bool:
    """Its opposite."""
    return not condition


def choice(group: str) -> str:
    """The chosen option of a group, such as ``video/c3d``; without an experiment, the model names the run."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        raise Refusal(f"${{choice:{group}}} is only known to a config composed by kinoscope.config.compose")
    choices = HydraConfig.get().runtime.choices
    chosen = choices.get(group) or (choices.get("model") if group == "experiment" else None)
    return str(chosen or "none")
