"""The video data sets: UCF101, the embedded videos, HMDB51, lists like Kinetics', Sports-1M, folders of class folders.

Each only says which videos there are; all else is `kinoscope.data.video.Videos`. Videos that a list names and that are
not there are counted and said. From HMDB51 on they stay in the manifest with that reason, since of some lists most are
gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from kinoscope.data import motion
from kinoscope.data.lists import folders, hmdb51, kinetics, sports1m, ucf101
from kinoscope.data.lists import listing as listings
from kinoscope.data.motion import MotionParameters
from kinoscope.data.video import Videos


class UCF101(Videos):
    """Videos in UCF101's folders and lists (Soomro, Zamir, Shah 2012, CRCV-TR-12-01), or laid out like it.

    Args:
        root: the folder that holds UCF-101/ and ucfTrainTestlist/; it is only read.
        split: which of the three official splits.
        classes: names to use; default: those with a folder.
        videos: as of `Videos`. Clips of one group are near-duplicates, so validation holds out whole groups of them.
    """

    name = "ucf101"

    def __init__(
        self, root: str, split: Literal[1, 2, 3] = 1, classes: Sequence[str] | None = None, **videos: Any
    ) -> None:
        if split not in (1, 2, 3):
            raise ValueError(f"data.split is 1, 2 or 3, got {split}")
        self.split, self.classes = split, None if classes is None else [str(name) for name in classes]
        super().__init__(root=root, choice=(split, self.classes), **videos)

    def class_names(self) -> list[str]:
        return ucf101.class_names(self.root, self.classes)

    def listing(self) -> pa.Table:
        return listings.listing(ucf101.read_split(self.root, self.split, self.classes, self.validation))

    def fingerprint(self) -> str:
        return ucf101.fingerprint(self.root, self.split, self.classes)


class Motion(UCF101):
    """The embedded data set: real encoded videos, generated in seconds into ``<data_dir>/motion``.

    Args:
        task: what has to be told apart: appearance, local_motion or order.
        videos_seed: of the videos' content; ``seed`` is that of the training draws.
        groups: scenes.
        clips_per_group: videos of each class in each group; default: enough for 400 test videos.
        image_size: side of the square frames in pixels.
        length: frames per video; default: what the task needs.
        fps: frames per second.
        noise: standard deviation of the pixel noise in grey levels.
        data_dir: the videos go to ``<data_dir>/motion``, the manifest to ``<data_dir>/manifests``.
        batch_size: as in `Videos`, like all arguments that follow.
        workers: decoding processes per loader.
        frames: T, frames per clip.
        resize: decoded frames' short side, or [height, width]; null leaves them.
        size: side S of the square crop.
        flip: mirror training clips at random: here a direction is a class.
        test_views: clips per test video.
        videos: as of `UCF101`, without ``root`` and ``classes``.
    """

    name = "motion"

    def __init__(
        self,
        task: motion.Task = "local_motion",
        videos_seed: int = 0,
        groups: int = 25,
        clips_per_group: int | None = None,
        image_size: int = 64,
        length: int | None = None,
        fps: int = 25,
        noise: float = 2.0,
        data_dir: str = "data",
        batch_size: int = 32,
        workers: int = 1,
        frames: int = 10,
        resize: int | Sequence[int] | None = 64,
        size: int = 56,
        flip: bool = False,
        test_views: int = 3,
        **videos: Any,
    ) -> None:
        self.parameters = MotionParameters(task, videos_seed, groups, clips_per_group, image_size, length, fps, noise)
        super().__init__(
            root=str(motion.folder(data_dir, self.parameters)), classes=None, data_dir=data_dir,
            batch_size=batch_size, workers=workers, frames=frames, resize=resize, size=size, flip=flip,
            test_views=test_views, **videos,
        )  # fmt: skip

    def class_names(self) -> list[str]:
        return motion.class_names(self.parameters.task)

    def prepare_data(self) -> None:
        motion.generate(self.data_dir, self.parameters)
        super().prepare_data()


class Listed(Videos):
    """Videos whose identity is that of their listing: a subclass says `class_names` and `read`.

    Args:
        root: the data set's folder; it is only read.
        choice: what decides which videos there are.
        videos: as of `Videos`.
    """

    def __init__(self, root: str, choice: Sequence[Any], **videos: Any) -> None:
        super().__init__(root=root, choice=choice, **videos)
        self._identity: str | None = None

    def prepare_data(self) -> None:
        super().prepare_data()
        # What a million rows took while they were compared would stay with the training and its workers.
        pa.default_memory_pool().release_unused()

    def read(self) -> pa.Table:
        """The listing."""
        raise NotImplementedError

    def listing(self) -> pa.Table:
        table = self.read()
        self._identity = listings.fingerprint(table, self.root, self.class_names())
        return table

    def fingerprint(self) -> str:
        if self._identity is None:
            self.listing()
        assert self._identity is not None
        return self._identity


class HMDB51(Listed):
    """HMDB51 (Kuehne et al., ICCV 2011), or videos laid out like it.

    Args:
        root: the folder that holds testTrainMulti_7030_splits/ and the class folders; it is only read.
        split: which of the three official splits.
        classes: names to use; default: those with a folder.
        videos: as of `Videos`. Validation holds out all clips of a film.
    """

    name = "hmdb51"

    def __init__(
        self, root: str, split: Literal[1, 2, 3] = 1, classes: Sequence[str] | None = None, **videos: Any
    ) -> None:
        self.split, self.classes = split, _names(classes)
        super().__init__(root=root, choice=(split, self.classes), **videos)

    def class_names(self) -> list[str]:
        return hmdb51.class_names(self.root, self.split, self.classes)

    def read(self) -> pa.Table:
        return hmdb51.read_split(self.root, self.split, self.classes, self.validation)


class Kinetics(Listed):
    """Videos with CSV lists like those of Kinetics (Kay et al. 2017, arXiv:1705.06950).

    Args:
        root: the folder that holds the lists, and the videos at any depth; it is only read.
        classes: names to use; default: all of the lists.
        videos: as of `Videos`.
    """

    name = "kinetics"

    def __init__(self, root: str, classes: Sequence[str] | None = None, **videos: Any) -> None:
        self.classes = _names(classes)
        super().__init__(root=root, choice=(self.classes,), **videos)

    def class_names(self) -> list[str]:
        return kinetics.class_names(self.root, self.classes)

    def read(self) -> pa.Table:
        return kinetics.read(self.root, self.classes, self.validation)


class Sports1M(Listed):
    """Sports-1M (Karpathy et al., CVPR 2014): 487 classes, several of them for some videos.

    Args:
        root: the folder that holds labels.txt, original/ or cross-validation/, and videos/; it is only read.
        fold: of the cross-validation, 0 to 9; null: the original partition.
        videos: as of `Videos`.
    """

    name = "sports1m"

    def __init__(self, root: str, fold: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] | None = None, **videos: Any) -> None:
        self.fold = fold
        super().__init__(root=root, choice=(fold,), **videos)
        self.spec = dataclasses.replace(self.spec, multi_label=True)

    def class_names(self) -> list[str]:
        return sports1m.class_names(self.root)

    def read(self) -> pa.Table:
        return sports1m.read(self.root, self.fold, self.validation)


class Folders(Listed):
    """Any folder of class folders, below train/ and test/ or not.

    Args:
        root: the folder that holds the class folders, or train/, test/ and val/ with class folders; it is only read.
        classes: names to use; default: all folders.
        test: share of each class's videos that is the test, where no folder says it; the same for every seed.
        videos: as of `Videos`.
    """

    name = "folders"

    def __init__(self, root: str, classes: Sequence[str] | None = None, test: float = 0.2, **videos: Any) -> None:
        self.classes, self.test = _names(classes), test
        super().__init__(root=root, choice=(self.classes, test), **videos)

    def class_names(self) -> list[str]:
        return folders.class_names(self.root, self.classes)

    def read(self) -> pa.Table:
        return folders.read(self.root, self.classes, self.test, self.validation)


def _names(classes: Sequence[str] | None) -> list[str] | None:
    return None if classes is None else [str(name) for name in classes]
