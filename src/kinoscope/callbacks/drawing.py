"""One look for every picture, and one way to disk and to the loggers.

A `Sheet` is a page measured in inches from its top left corner. Everything is placed where it belongs, so nothing has
to be cropped or packed afterwards, and images are put down pixel by pixel. At 1000 pixels' width, as on a slide or a
README, the smallest text is about 10 pixels high. Colours are Okabe and Ito's (2008), which colour-blind readers tell
apart; no picture says anything by colour alone.

matplotlib is imported here when a picture is drawn, and used through its objects alone: no pyplot, no global state.
torch is not imported for drawing: commands that only look at finished runs draw too, and answer in a second.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kinoscope.contracts import DataSpec
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger("kinoscope")

Pixels = NDArray[np.uint8]  # (H, W, 3)

INK, MUTED, RULE, PAPER = "#1b1f27", "#646c79", "#d5d9e0", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, AMBER, SKY)
RIGHT, WRONG = BLUE, VERMILLION

TITLE, TEXT, SMALL = 14.0, 9.0, 7.5  # points
DPI = 160
WIDTH, MARGIN, HEADER = 10.0, 0.35, 0.95  # inches; HEADER is where the content begins
PIXEL_ART = 40  # images up to this many pixels wide are enlarged without smoothing: their pixels are what the net sees


class Sheet:
    """A titled page. All lengths are inches from the top left corner; text sizes are points.

    Args:
        height: of the whole page.
        title: one line.
        subtitle: one line in small type: what is shown, in numbers.
        width: of the whole page.
    """

    def __init__(self, height: float, title: str, subtitle: str = "", width: float = WIDTH) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # The canvas rounds down: whole pixels, and a hair more.
        self.width, self.height = ((round(side * DPI) + 1e-6) / DPI for side in (width, height))
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor=PAPER)
        self._canvas = FigureCanvasAgg(self.figure)
        self.text(MARGIN, 0.43, title, size=TITLE, weight="bold", room=width - 2 * MARGIN)
        self.text(MARGIN, 0.70, subtitle, colour=MUTED, room=width - 2 * MARGIN)

    def text(
        self,
        left: float,
        base: float,
        words: str,
        size: float = TEXT,
        colour: str = INK,
        weight: Literal["normal", "bold"] = "normal",
        align: Literal["left", "center", "right"] = "left",
        room: float | None = None,
    ) -> Text:
        """Writes ``words`` on the baseline ``base``; in less than ``room`` inches, if need be smaller or shortened."""
        x, y = left / self.width, 1 - base / self.height
        # A class name may hold a dollar sign: never parse it as mathematics.
        text = self.figure.text(
            x, y, words, size=size, color=colour, weight=weight, ha=align, va="baseline", parse_math=False
        )
        if room is not None:
            self._fit(text, room)
        return text

    def _fit(self, text: Text, room: float) -> None:
        excess = self.extent(text) / room
        if excess > 1:
            text.set_fontsize(cast(float, text.get_fontsize()) / min(excess, 1.25))
        words = text.get_text()
        while self.extent(text) > room and len(words) > 1:
            words = words[:-1]
            text.set_text(words.rstrip() + "…")

    def extent(self, text: Text) -> float:
        """The width of a text in inches."""
        return text.get_window_extent(self._canvas.get_renderer()).width / DPI

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without ticks or spines."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def image(self, left: float, top: float, pixels: Pixels, width: float) -> float:
        """Puts an image down, ``width`` inches wide, exact to the pixel; returns its height in inches."""
        raster = np.asarray(enlarge(pixels, round(width * DPI)))
        x, bottom = round(left * DPI), round(self.height * DPI) - round(top * DPI) - raster.shape[0]
        self.figure.figimage(raster, x, bottom, origin="upper")
        return raster.shape[0] / DPI

    def frame(self, left: float, top: float, width: float, height: float, colour: str, weight: float) -> None:
        """Draws a border around a box, outside of it; ``weight`` in points."""
        self._rectangle(left, top, width, height, pad=weight / 144, fill=False, edgecolor=colour, linewidth=weight)

    def bar(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        """Fills a box."""
        self._rectangle(left, top, width, height, facecolor=colour, linewidth=0)

    def _rectangle(self, left: float, top: float, width: float, height: float, pad: float = 0, **look: Any) -> None:
        from matplotlib.patches import Rectangle

        corner = ((left - pad) / self.width, 1 - (top + height + pad) / self.height)
        size = ((width + 2 * pad) / self.width, (height + 2 * pad) / self.height)
        self.figure.add_artist(Rectangle(corner, *size, transform=self.figure.transFigure, **look))

    def picture(self) -> Image:
        """The page as an RGB image, ``DPI`` pixels to the inch."""
        from PIL import Image

        self._canvas.draw()
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3].copy())


def extents(words: Sequence[str], size: float) -> list[float]:
    """The width of each of the texts in inches, before there is a page to put them on."""
    ruler = Sheet(1.0, "")
    return [ruler.extent(ruler.text(0.0, 0.0, word, size)) for word in words]


def enlarge(pixels: Pixels, width: int) -> Image:
    """Resizes to ``width`` pixels: tiny images by nearest neighbour, all others by Lanczos."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    height = max(1, round(width * image.height / image.width))
    filter = Image.Resampling.NEAREST if image.width <= min(PIXEL_ART, width) else Image.Resampling.LANCZOS
    return image.resize((width, height), filter)


def as_pixels(images: Tensor) -> Pixels:
    """(…, C, H, W) in 0…1 → (…, H, W, 3) uint8 on the CPU; one channel becomes grey, values beyond are clipped."""
    import torch

    images = images.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).movedim(-3, -1)
    return (images.expand(*images.shape[:-1], 3) if images.shape[-1] == 1 else images[..., :3]).numpy()


def unit_range(trainer: pl.Trainer, images: Tensor) -> Tensor:
    """A batch of network inputs or outputs, (B, C, …), back on the pixel scale 0…1."""
    return cast(Any, trainer).datamodule.preprocess.denormalise(images)


def spec_of(trainer: pl.Trainer, system: pl.LightningModule) -> DataSpec:
    """What the data are, from the system or, where nobody told it, from the data module."""
    return getattr(system, "spec", None) or cast(Any, trainer).datamodule.spec


def require(callback: pl.Callback, system: pl.LightningModule, verb: str) -> None:
    """Refuses a callback that asks a system for what it does not offer."""
    if not callable(getattr(system, verb, None)):
        name = type(callback).__name__
        raise Refusal(f"{name} needs a system that can {verb}, and {type(system).__name__} cannot: leave {name} out")


@contextmanager
def looking(trainer: pl.Trainer, system: pl.LightningModule) -> Iterator[None]:
    """Evaluation mode, no gradients, the trainer's precision; every module's mode is restored afterwards.

    A picture must not change the training: batch statistics in particular stay untouched.
    """
    import torch

    modes = [(module, module.training) for module in system.modules()]
    system.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def publish(
    trainer: pl.Trainer, picture: Image, name: str, key: str | None = None, to_loggers: bool = True, final: bool = False
) -> None:
    """Writes ``pictures/<name>.png`` in the run folder and hands the picture to the loggers; rank 0 only.

    No run ends for a picture: a folder that cannot be written to, or a logger that fails, is a warning.

    Args:
        trainer: knows the run folder and the loggers.
        picture: what to publish.
        name: the file's name without ``.png``.
        key: the loggers' name for it, ``pictures/<key>``; the file's name by default.
        to_loggers: whether loggers get it too.
        final: whether this is a stage's last picture, whose path is announced.
    """
    if not trainer.is_global_zero:
        return
    path = Path(trainer.default_root_dir) / "pictures" / f"{name}.png"
    try:
        save(picture, path)
    except OSError as error:
        log.warning("picture %s was not written: %s", path, error.strerror or error)
        return
    if to_loggers:
        hand_over(trainer, "log_image", key=f"pictures/{key or name}", images=[picture])
    if final:
        announce(path)


def hand_over(
    trainer: pl.Trainer,
    verb: Literal["log_image", "log_video", "log_table", "log_histograms"],
    **content: Any,
) -> None:
    """Gives something to see to each logger that has the ``verb``; what a logger throws is a warning.

    The seam between callbacks, which know no logger, and loggers. All verbs but the first are kinoscope's own:

    - ``log_image(key, images)``: pictures.
    - ``log_video(key, path)``: an mp4 file.
    - ``log_table(key, columns, rows)``: a column holds words, numbers, pictures, or paths of mp4 files.
    - ``log_histograms(histograms, step)``: for each name the counts (n,) of its bins and their edges (n + 1,).
    """
    for logger in trainer.loggers:
        log_it = getattr(logger, verb, None)
        if log_it is None:
            continue
        try:
            log_it(**content)
        except Exception as error:  # whatever a logger throws, the run is worth more than its picture
            what = f"{verb.removeprefix('log_')} {content.get('key', '')}".strip()
            log.warning("%s did not take the %s: %s", type(logger).__name__, what, error)


def announce(path: Path) -> None:
    """Logs a picture's path, relative to the working directory where it lies below, without tearing a progress bar."""
    from tqdm import tqdm

    here = Path.cwd()
    shown = path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path
    with tqdm.external_write_mode(file=sys.stderr):
        log.info("picture: %s", shown)


def save(picture: Image, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture.save(unfinished, format="PNG", compress_level=4)  # half the default's time, the same size within 2 %
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def plural(n: int, noun: str) -> str:
    """``1 image``, ``1,200 images``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def percent(share: float) -> str:
    """0.958 → ``95.8 %``; 1 → ``100 %``, and nothing less: 0.9999 → ``99.9 %``."""
    return f"{min(100 * share, 100 if share == 1 else 99.9):.1f}".removesuffix(".0") + " %"
