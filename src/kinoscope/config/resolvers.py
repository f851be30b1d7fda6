"""What yaml may ask at compose time: a directory listing or a list file at most, never torch.

    ${ucf101_classes:<root>,<classes or null>}          class names of a UCF101 folder, in label order
    ${hmdb51_classes:<root>,<split>,<classes or null>}  of an HMDB51 folder
    ${kinetics_classes:<root>,<classes or null>}        of a folder with CSV lists
    ${sports1m_classes:<root>}                          of Sports-1M's labels.txt
    ${folder_classes:<root>,<classes or null>}          of a folder of class folders
    ${motion_classes:<task>}                            of the embedded videos
    ${image_classes:<data set>,<root>,<download>}       of an image data set, whose files are looked for
    ${sample_shape:<input>,<frames>,<size>,<fields>}    of a video data set, for frames or for a stack of flow
    ${shards:<root>,<key>}                              what a folder of shards says of itself, such as its classes
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
    classes = (ucf101_classes, hmdb51_classes, kinetics_classes, sports1m_classes, folder_classes)
    for resolver in (*classes, motion_classes, image_classes, sample_shape, shards, count, unless, choice):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def ucf101_classes(root: str, classes: Sequence[str] | None = None) -> ListConfig:
    """The classes of a UCF101 folder that are on disk and, if given, in ``classes``."""
    from kinoscope.data.lists.ucf101 import class_names

    return ListConfig(class_names(root, None if classes is None else list(classes)))


def hmdb51_classes(root: str, split: Any, classes: Sequence[str] | None = None) -> ListConfig:
    """The classes of an HMDB51 folder that are on disk and, if given, in ``classes``."""
    from kinoscope.data.lists.hmdb51 import class_names

    return ListConfig(class_names(root, split, None if classes is None else list(classes)))


def kinetics_classes(root: str, classes: Sequence[str] | None = None) -> ListConfig:
    """The classes that the CSV lists of a folder name and, if given, that are in ``classes``."""
    from kinoscope.data.lists.kinetics import class_names

    return ListConfig(class_names(root, None if classes is None else list(classes)))


def sports1m_classes(root: str) -> ListConfig:
    """The classes of Sports-1M's ``labels.txt``."""
    from kinoscope.data.lists.sports1m import class_names

    return ListConfig(class_names(root))


def folder_classes(root: str, classes: Sequence[str] | None = None) -> ListConfig:
    """The class folders of a folder that are, if given, in ``classes``."""
    from kinoscope.data.lists.folders import class_names

    return ListConfig(class_names(root, None if classes is None else list(classes)))


def motion_classes(task: str) -> ListConfig:
    """The classes of a task of the embedded videos."""
    from kinoscope.data.motion import class_names

    return ListConfig(class_names(task))


def image_classes(dataset: Any, root: str | None = None, download: bool = False) -> ListConfig:
    """The classes of an image data set."""
    from kinoscope.data.image_files import class_names

    return ListConfig(class_names(dataset, root, download))


def sample_shape(source: str, frames: int, size: int, fields: int | None = None) -> ListConfig:
    """What a network sees of a video: (3, frames, size, size), or of flow x and y of each field, (2·fields, …)."""
    if source != "flow":
        return ListConfig([3, frames, size, size])
    if fields is None:
        raise Refusal("data.input=flow needs a way to compute it: data/flow=farneback, dis or tvl1")
    return ListConfig([2 * fields, size, size])


def shards(root: str, key: str) -> Any:
    """What shards say of themselves, see `kinoscope.data.shards.description.Description`."""
    from kinoscope.data.shards.description import describe

    value = getattr(describe(root), key)
    return ListConfig(list(value)) if isinstance(value, tuple) else value


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
