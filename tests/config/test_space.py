"""Overrides with several values, as dimensions of a search space."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kinoscope.config.compose import composing
from kinoscope.config.space import Choice, Dimension, Interval, Range, expand, split
from kinoscope.errors import Refusal


@pytest.fixture(autouse=True)
def hydra_is_ready() -> Iterator[None]:
    """Its grammar asks for a group's options, hence for the configs."""
    with composing("train"):
        yield


def read(line: str) -> Dimension:
    plain, space = split([line])
    assert plain == []
    ((key, dimension),) = space.items()
    assert key == line.partition("=")[0]
    return dimension


@pytest.mark.parametrize(
    ("line", "dimension"),
    [
        ("a=1,2", Choice(("1", "2"))),
        ("++a.b=choice(x,y)", Choice(("x", "y"))),
        ("model/optimizer@model.other=adam,sgd", Choice(("adam", "sgd"))),
        ("a='x y',[1,2],null", Choice(("'x y'", "[1,2]", "null"))),
        ("a=range(1,8,2)", Range(1, 7, 2, ("1", "3", "5", "7"))),
        ("a=range(8,1,-2)", Range(2, 8, 2, ("8", "6", "4", "2"))),
        ("a=range(0.1,0.5,0.1)", Range(0.1, 0.4, 0.1, ("0.1", "0.2", "0.3", "0.4"))),
        ("a=interval(1,8)", Interval(1.0, 8.0)),
        ("a=int(interval(1,8))", Interval(1, 8)),
        ("a=tag(log,interval(1e-4,1e-1))", Interval(1e-4, 1e-1, log=True)),
        ("a=tag(log,int(interval(1,64)))", Interval(1, 64, log=True)),
    ],
)
def test_a_dimension(line: str, dimension: Dimension) -> None:
    found = read(line)
    assert found == dimension
    if isinstance(dimension, (Range, Interval)):
        assert type(found.low) is type(dimension.low)  # type: ignore[union-attr] - 1 == 1.0, but one is a whole number


def test_a_glob_asks_for_a_groups_options() -> None:
    assert read("trainer=glob(*pu)") == Choice(("cpu", "gpu"))


def test_one_value_is_no_dimension() -> None:
    lines = ["a=1", "b=[1,2]", "c={x: 1}", "~d", "sweep.space={a: 'interval(0,1)'}", "=, cannot be read"]
    assert split(lines) == (lines, {})


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a=interval(2,1)", "ends before it begins"),
        ("a=interval(1,1)", "ends before it begins"),
        ("a=tag(log,interval(-1,1))", "numbers above zero"),
        ("a=tag(lin,interval(0,1))", "the one tag that is known here is log"),
        ("a=tag(log,range(1,9))", "it is for an interval"),
        ("a=range(5,5)", "holds no value"),
    ],
)
def test_what_makes_no_sense(line: str, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        split([line])


def test_every_value_is_looked_at_once() -> None:
    plain, space = split(["x=1", "a=1,2,3", "b=interval(0,1)", "c=range(0,100)"])
    lists = list(expand(plain, space))
    assert lists[0] == (["x=1", "a=1", "b=0.0", "c=0"], None)
    assert [key for _, key in lists[1:]] == ["a", "a", "b", "c"]
    assert {line for lines, _ in lists for line in lines} == {
        *("x=1", "a=1", "a=2", "a=3", "b=0.0", "b=1.0", "c=0", "c=99")
    }
