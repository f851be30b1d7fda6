"""What the videos of ``motion`` show: the classes, their laws of movement, and the drawing.

T frames, S side of the square frame in pixels, P side of an object's window in pixels.

Every object has a position on the torus of the frame, an angle on the circle, and a log-scale on the circle between the
smallest and the largest radius. All start uniform, and a movement only shifts one of them round its circle. A uniform
variable shifted on its circle is uniform again, so at every frame the picture is distributed as at the first, whatever
moves and in whatever direction: in ``local_motion`` no single frame says anything about the class. Colours, shapes,
backgrounds and noise are drawn without regard to it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Task = Literal["appearance", "local_motion", "order"]

CLASSES: dict[str, tuple[str, ...]] = {
    "appearance": ("BlueCross", "BlueDisc", "GreenCross", "GreenDisc", "RedCross", "RedDisc"),
    "local_motion": ("Grow", "MoveLeft", "MoveRight", "RotateClockwise", "RotateCounterclockwise", "Shrink"),
    "order": ("CrossThenDisc", "DiscThenCross"),
}
MOVEMENTS = CLASSES["local_motion"]
# None of these is mapped to itself by any turn but the full one, so that a rotation always shows, with its sense.
SHAPES = ("arrow", "half_moon", "hook", "wedge")
RED, GREEN, BLUE = 0.0, 1 / 3, 2 / 3

COUNT = (2, 3)  # fewest and most objects
RADII = (0.1, 0.28)  # smallest and largest radius of an object, as a share of the frame's side
SPEED = (0.032, 0.06)  # share of the frame's side per frame: 1.5 to 3 px at 48 px
TURN = (0.2, 0.35)  # radians per frame
GROWTH = (0.07, 0.11)  # change of the log-radius per frame
# ``order``: no clip of CLIP frames shows both events, and clips find either event at every phase.
CLIP = 16
EVENT = 12
GAP = 32


@dataclass
class Thing:
    """One object through a whole video: (T,) arrays of its state, pixels and radians, and its looks."""

    shape: str
    colour: np.ndarray  # (3,) in grey levels
    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    radius: np.ndarray
    opacity: np.ndarray


def shortest(task: Task) -> int:
    """Fewest frames that a video of this task needs."""
    return 2 * CLIP + 2 * EVENT + GAP if task == "order" else 2


def video(task: Task, label: int, group: int, clip: int, seed: int, size: int, length: int, noise: float) -> np.ndarray:
    """One video, (T, S, S, 3) uint8; the same for the same arguments on every machine.

    The background belongs to the group and is shared by its clips of all classes, as in UCF101 where a group is one
    scene; everything else is drawn anew for each clip.
    """
    key = [seed, zlib.crc32(task.encode())]
    scene = np.random.default_rng([*key, 0, group])
    draw = np.random.default_rng([*key, 1, group, label, clip])
    frames = np.broadcast_to(_background(scene, size), (length, size, size, 3)).copy()  # (T, S, S, 3)
    for thing in _things(task, CLASSES[task][label], draw, size, length):
        _paint(frames, thing)
    if noise > 0:
        frames += noise * draw.standard_normal((length, size, size, 1), dtype=np.float32)  # grey, like a sensor's
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8)


def _things(task: Task, name: str, draw: np.random.Generator, size: int, length: int) -> list[Thing]:
    if task == "local_motion":
        return [
            _moving(draw, size, length, name, _any(draw, SHAPES), draw.random())
            for _ in range(draw.integers(COUNT[0], COUNT[1] + 1))
        ]
    if task == "appearance":
        shape = "cross" if name.endswith("Cross") else "disc"
        hue = {"R": RED, "G": GREEN, "B": BLUE}[name[0]]
        return [
            _moving(draw, size, length, _any(draw, MOVEMENTS), shape, hue)
            for _ in range(draw.integers(COUNT[0], COUNT[1] + 1))
        ]
    return [
        _moving(draw, size, length, _any(draw, MOVEMENTS), _any(draw, SHAPES), GREEN),
        *_events(draw, size, length, name),
    ]


def _moving(draw: np.random.Generator, size: int, length: int, movement: str, shape: str, hue: float) -> Thing:
    """An object that performs one movement, its state shifted evenly round one of its circles."""
    t = np.arange(length)
    x, y, turn, phase = draw.random(4)
    speed, rate, growth = draw.uniform(*np.transpose([SPEED, TURN, GROWTH]))
    low, high = np.log(RADII)
    sign = -1 if movement in ("MoveLeft", "RotateCounterclockwise", "Shrink") else 1
    moves, turns, grows = (movement.startswith(kind) for kind in ("Move", "Rotate", ("Grow", "Shrink")))
    return Thing(
        shape=shape,
        colour=_colour(draw, hue),
        x=size * ((x + sign * speed * moves * t) % 1),
        y=size * np.full(length, y),
        angle=2 * np.pi * turn + sign * rate * turns * t,
        radius=size * np.exp(low + (high - low) * ((phase + sign * growth / (high - low) * grows * t) % 1)),
        opacity=np.ones(length),
    )


def _events(draw: np.random.Generator, size: int, length: int, name: str) -> list[Thing]:
    """A red disc and a blue cross, each fading in and out at a place of its own, in the order of the class.

    The two times are drawn without regard to the class, which only says who comes first. Before the first event and
    after the second, as between them, there are at least CLIP frames: so a clip taken at random finds the first event
    at each phase as often as the second, and what it shows of the disc or the cross does not tell their order.
    """
    gap = GAP + int(draw.integers(0, min(GAP // 2, length - shortest("order")) + 1))
    first = CLIP + int(draw.integers(0, length - 2 * CLIP - 2 * EVENT - gap + 1))
    onsets = {True: first, False: first + EVENT + gap}
    disc_first = name == "DiscThenCross"
    things = []
    for shape, hue, is_first in (("disc", RED, disc_first), ("cross", BLUE, not disc_first)):
        thing = _moving(draw, size, length, "MoveRight", shape, hue)
        t = np.arange(length) - onsets[is_first]
        # The fade is the same forwards and backwards, so that the event itself has no direction of time.
        thing.opacity = np.clip(np.minimum(t + 1, EVENT - t) / 3, 0, 1)
        things.append(thing)
    return things


def _any(draw: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[draw.integers(len(names))]


def _colour(draw: np.random.Generator, hue: float) -> np.ndarray:
    """A bright colour near a hue in [0, 1), where 0 is red, 1/3 green and 2/3 blue."""
    angle = 2 * np.pi * (hue + draw.uniform(-0.04, 0.04))
    mix = 0.5 + 0.5 * np.cos(angle - 2 * np.pi / 3 * np.arange(3))
    return (draw.uniform(200, 255) * (0.25 + 0.75 * mix)).astype(np.float32)


def _background(scene: np.random.Generator, size: int) -> np.ndarray:
    """A dim, smooth wave over the frame, (S, S, 3), that closes at the edges like everything else."""
    y, x = np.mgrid[:size, :size] / size
    kx, ky = scene.integers(-1, 2, size=2)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (kx * x + ky * y + scene.random()))
    colours = scene.uniform(10, 70, size=(2, 3))
    return (colours[0] + wave[..., None] * (colours[1] - colours[0])).astype(np.float32)


def _paint(frames: np.ndarray, thing: Thing) -> None:
    """Draws the object over ``frames`` (T, S, S, 3), in place, in those where it is to be seen.

    Only the window round the object is computed; its rows and columns are taken modulo S, which is the torus.
    """
    size = frames.shape[1]
    seen = np.flatnonzero(thing.opacity)
    reach = int(np.ceil(1.1 * thing.radius[seen].max())) + 1
    window = np.arange(-reach, reach + 1)
    cols = np.floor(thing.x[seen]).astype(np.int64)[:, None] + window  # (T, P)
    rows = np.floor(thing.y[seen]).astype(np.int64)[:, None] + window
    dx = (cols + 0.5 - thing.x[seen, None]).astype(np.float32)[:, None, :]
    dy = (rows + 0.5 - thing.y[seen, None]).astype(np.float32)[:, :, None]
    radius = thing.radius[seen].astype(np.float32)[:, None, None]
    cos, sin = (f(thing.angle[seen]).astype(np.float32)[:, None, None] / radius for f in (np.cos, np.sin))
    # Into the object's own axes, where its radius is 1. As y points down, a growing angle turns it clockwise.
    u = cos * dx + sin * dy
    v = cos * dy - sin * dx
    cover = np.clip(0.5 - radius * _distance(thing.shape, u, v), 0, 1)  # (T, P, P): one pixel of soft edge
    cover = (cover * thing.opacity[seen].astype(np.float32)[:, None, None])[..., None]
    place = (seen[:, None, None], rows[:, :, None] % size, cols[:, None, :] % size)
    frames[place] += cover * (thing.colour - frames[place])


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a shape within radius 1.1 about the origin, negative inside; a bound where corners meet."""
    if shape == "disc":
        return np.hypot(u, v) - 1
    if shape == "cross":
        return np.minimum(_box(u, v, 0, 0, 1, 0.3), _box(u, v, 0, 0, 0.3, 1))
    if shape == "hook":
        return np.minimum(_box(u, v, -0.45, 0, 0.25, 0.8), _box(u, v, 0, 0.55, 0.7, 0.25))
    if shape == "half_moon":
        return np.maximum(np.hypot(u, v + 0.4) - 1, -v - 0.4)
    head = np.maximum(np.abs(v) * 0.8 + u * 0.6 - 0.6, -u)  # a triangle from the middle to the tip at u = 1
    if shape == "arrow":
        return np.minimum(head, _box(u, v, -0.5, 0, 0.5, 0.28))
    return np.maximum(np.abs(v) * 0.95 + u * 0.31 - 0.31, -u - 0.8)  # wedge


def _box(u: np.ndarray, v: np.ndarray, x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u - x) - half_width, np.abs(v - y) - half_height)
