"""What the benchmarks share: rounds within a budget of time, medians with their spread, ratios printed last."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median, quantiles


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60.0, help="to spend in all (default 60)")
    return options


def rounds(deadline: float, least: int = 1) -> Iterator[int]:
    """Numbers of rounds from 0 on, as long as another one of the mean length would end before the deadline.

    Args:
        deadline: on the clock of ``time.monotonic``.
        least: so many rounds come in any case.
    """
    began = time.monotonic()
    number = 0
    while True:
        yield number
        number += 1
        now = time.monotonic()
        if number >= least and now + (now - began) / number > deadline:
            return


def show(title: str, unit: str, samples: Mapping[str, Sequence[float]]) -> None:
    """A table of medians and quartiles, one row per variant, one sample per round."""
    count = max(len(values) for values in samples.values())
    print(f"\n{title}: median of {count} rounds, and quartiles, in {unit}")
    for name, values in samples.items():
        low, middle, high = spread(values)
        print(f"  {name:44} {middle:10.3f}   {low:10.3f} … {high:.3f}")


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, median(values), high


def print_ratios(ratios: Mapping[str, float]) -> None:
    """The result: one ``name: ratio`` a line, and nothing after them."""
    assert all(math.isfinite(ratio) for ratio in ratios.values()), ratios
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.4f}" if ratio >= 0.001 or not ratio else f"{name}: {ratio:.3g}")  # never 0 for little
