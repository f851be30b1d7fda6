"""What a sweep varies: overrides with several values, read as the dimensions of a search space.

The words are Hydra's own: ``a,b`` and ``choice(a,b)``, ``range(1,9,2)``, ``interval(0,1)``, ``int(interval(1,64))`` for
whole numbers, and ``tag(log,interval(1e-4,1e-1))`` for an interval that is searched on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from kinoscope.errors import Refusal

Number: TypeAlias = int | float


@dataclass(frozen=True)
class Choice:
    """One of these values, as they would be typed."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Evenly spaced numbers, ascending; both ends are among them."""

    low: Number
    high: Number
    step: Number
    values: tuple[str, ...]  # in the order that was typed


@dataclass(frozen=True)
class Interval:
    """Any number between two ends: whole ones if both ends are."""

    low: Number
    high: Number
    log: bool = False


Dimension: TypeAlias = Choice | Range | Interval
Space: TypeAlias = "dict[str, Dimension]"  # by the key as it is typed, '+' and package included


def read_override(line: str) -> Override:
    """One override as Hydra reads it, inside of `kinoscope.config.compose.composing`. Raises its `HydraException`."""
    # The loader is what glob(*) asks for a group's options.
    (override,) = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides([line])
    return override


def split(lines: Sequence[str]) -> tuple[list[str], Space]:
    """The overrides with one value each, and the dimensions that the others are.

    What cannot be read at all counts as the former; `kinoscope.config.overrides.judge` says what is wrong with it.

    Raises:
        Refusal: a dimension that makes no sense, such as an interval that ends before it begins.
    """
    plain: list[str] = []
    space: Space = {}
    for line in lines:
        try:
            override = read_override(line)
            if not override.is_sweep_override():
                plain.append(line)
                continue
            space[override.get_key_element()] = _dimension(line, override)
        except HydraException:
            plain.append(line)
    return plain, space


def _dimension(line: str, override: Override) -> Dimension:
    value = override.value()
    tags: set[str] = getattr(value, "tags", set())
    unknown = sorted(tags - {"log"})
    if unknown or (tags and not isinstance(value, IntervalSweep)):
        raise Refusal(f"{line}: the one tag that is known here is log, and it is for an interval")
    if isinstance(value, IntervalSweep):
        return _interval(line, value)
    values = tuple(override.sweep_string_iterator())
    if not values:
        raise Refusal(f"{line}: this range holds no value")
    if not isinstance(value, RangeSweep) or value.shuffle:
        return Choice(values)
    start, step = Decimal(str(value.start)), Decimal(str(value.step))
    cast = int if all(isinstance(part, int) for part in (value.start, value.stop, value.step)) else float
    numbers = [cast(start + position * step) for position in range(len(values))]  # 0.3, where floats add up to 0.30…04
    return Range(min(numbers), max(numbers), cast(abs(step)), tuple(map(str, numbers)))


def _interval(line: str, value: IntervalSweep) -> Interval:
    low, high, log = value.start, value.end, "log" in value.tags
    assert low is not None
    assert high is not None
    if low >= high:
        raise Refusal(f"{line}: this interval ends before it begins")
    if log and low <= 0:
        raise Refusal(f"{line}: a logarithmic scale needs numbers above zero")
    return Interval(low, high, log)


def probes(dimension: Dimension) -> tuple[str, ...]:
    """The values that are looked at before work starts: all of a list, the ends of what holds many."""
    match dimension:
        case Choice(values):
            return values
        case Range(values=values):
            return tuple(dict.fromkeys((values[0], values[-1])))
        case Interval(low, high):
            return (repr(low), repr(high))


def expand(lines: Sequence[str], space: Mapping[str, Dimension]) -> Iterator[tuple[list[str], str | None]]:
    """The override lists that stand for a sweep: one with every first value, then one more for each other value.

    The jobs are their product; every value is seen once here, and a fault in a value needs no second look.

    Args:
        lines: the overrides that all jobs share.
        space: what varies.

    Yields:
        A list of overrides, and the key whose value is looked at in it (None: all of them).
    """
    first = {key: f"{key}={probes(dimension)[0]}" for key, dimension in space.items()}
    yield [*lines, *first.values()], None
    for key, dimension in space.items():
        for value in probes(dimension)[1:]:
            yield [*lines, *{**first, key: f"{key}={value}"}.values()], key
