"""Randomness that is keyed, not streamed: every draw is a function of (seed, counters, stream) and of nothing else.

A run whose random numbers depend only on *which* sample is drawn, never on how many were drawn before it, is the same
with 0, 2 or 8 workers and resumes in mid-epoch without any saved generator state.

The generator is a counter hash in the manner of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators"): each counter is added to the state in steps of the golden gamma and the state is mixed with the
finaliser of that paper, so that neighbouring counters share no visible structure.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Prior = Literal["uniform", "normal"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64 bits in which each input bit flips half of the output bits."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def _stream_key(stream: str) -> np.uint64:
    # Python's hash() differs from process to process; BLAKE2 does not.
    return np.uint64(int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little"))


def _bits(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits per broadcast element of the integer ``counters``."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        state = _mix(np.asarray(np.uint64(seed % 2**64)) * _GAMMA + _stream_key(stream))
        for counter in counters:
            keys = np.asarray(counter).astype(np.int64).view(np.uint64)
            state = _mix(state + (keys + np.uint64(1)) * _GAMMA)
    return np.asarray(state)


def _unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    # 53 bits: every value is a float64, and 1.0 is never reached
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def uniform(seed: int, epoch: ArrayLike, index: ArrayLike, stream: str) -> NDArray[np.float64]:
    """Uniform draws in [0, 1), one per broadcast element of ``epoch`` and ``index``.

    Args:
        seed: the run's seed.
        epoch: integer array or scalar.
        index: integer array or scalar, a sample's position in its subset.
        stream: what the draw is for ("crop_row", "flip", "start"); different streams are independent.

    Returns:
        float64 array of the broadcast shape of ``epoch`` and ``index``.
    """
    return _unit(_bits(seed, stream, epoch, index))


def permutation(seed: int, epoch: int, n: int, stream: str = "shuffle") -> NDArray[np.int64]:
    """A random order of 0 … n−1, (n,) int64: the sort order of n keyed draws."""
    return np.argsort(_bits(seed, stream, epoch, np.arange(n)), kind="stable").astype(np.int64)


def latent(
    seed: int, step: ArrayLike, positions: ArrayLike, shape: tuple[int, ...], prior: Prior = "normal"
) -> NDArray[np.float32]:
    """Noise for a generator, keyed by the step and each sample's position in the *global* batch.

    So the noise of a step is the same on one device or on eight.

    Args:
        seed: the run's seed.
        step: the training iteration, or an array of them.
        positions: (B,) positions in the global batch.
        shape: one sample's latent shape.
        prior: ``uniform`` on [−1, 1), or ``normal`` (mean 0, variance 1; Box and Muller 1958).

    Returns:
        (*step.shape, B, *shape) float32.
    """
    steps, rows = np.asarray(step)[..., None, None], np.asarray(positions).reshape(-1, 1)
    columns = np.arange(int(np.prod(shape)))
    u = _unit(_bits(seed, f"latent/{prior}", steps, rows, columns))
    if prior == "uniform":
        noise = 2.0 * u - 1.0
    elif prior == "normal":
        angle = _unit(_bits(seed, "latent/angle", steps, rows, columns))
        noise = np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * angle)  # 1 − u is in (0, 1], so the log is finite
    else:
        raise ValueError(f"prior must be 'uniform' or 'normal', got {prior!r}")
    return noise.astype(np.float32).reshape(*np.shape(step), len(rows), *shape)
