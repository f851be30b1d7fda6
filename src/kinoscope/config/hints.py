"""From an annotation in source text to the yaml values it allows."""

from __future__ import annotations

import ast
import functools
from typing import Any

from kinoscope.config import source
from kinoscope.config.source import Found
from kinoscope.config.types import ANYTHING, Choice, DictOf, Hint, Instance, ListOf, Scalar, union

_SCALARS: dict[str, Hint] = {
    **{name: Scalar(name) for name in ("int", "float", "bool", "str")},
    "None": Scalar("None"),
    "pathlib.Path": Scalar("Path"),
    "os.PathLike": Scalar("Path"),
}
_SEQUENCES = {"list", "tuple", "set", "frozenset", "Sequence", "List", "Tuple", "Set", "Iterable", "Collection"}
_MAPPINGS = {"dict", "Mapping", "MutableMapping", "Dict"}
_OBJECTS = {"torch.Tensor", "torch.nn.Module", "torch.nn.modules.module.Module", "datetime.timedelta"}
_TYPING = ("typing", "typing_extensions", "collections.abc")


def read_hint(module: source.Module, annotation: ast.expr, depth: int = 0) -> Hint:
    """The hint that an annotation stands for in its module."""
    if depth > 20:  # a recursive alias
        return ANYTHING
    read = functools.partial(read_hint, module, depth=depth + 1)
    match annotation:
        case ast.Constant(value=None):
            return Scalar("None")
        case ast.Constant(value=str(text)):
            try:
                return read(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return ANYTHING
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return union(read(left), read(right))
        case ast.Subscript(value=value, slice=index):
            return _read_generic(module, value, index, depth)
        case ast.Name() | ast.Attribute():
            return _read_name(module, annotation, depth)
    return ANYTHING


def _plain_name(dotted: str) -> str:
    """``typing.Optional`` → ``Optional``, builtins as they are; anything else keeps its module."""
    head, _, tail = dotted.rpartition(".")
    return tail if head in _TYPING else dotted


def _read_generic(module: source.Module, value: ast.expr, index: ast.expr, depth: int) -> Hint:
    read = functools.partial(read_hint, module, depth=depth + 1)
    arguments = index.elts if isinstance(index, ast.Tuple) else [index]
    name = _plain_name(source.canonical(module, value) or "")
    if name == "Literal":
        return _read_literal(module, arguments, depth)
    if name == "Optional":
        return union(read(index), Scalar("None"))
    if name == "Union":
        return union(*(read(argument) for argument in arguments))
    if name in ("Annotated", "Final", "Required"):
        return read(arguments[0])
    if name in ("tuple", "Tuple"):
        if len(arguments) == 2 and isinstance(arguments[1], ast.Constant) and arguments[1].value is ...:
            return ListOf(read(arguments[0]))
        return ListOf(items=tuple(read(argument) for argument in arguments))
    if name in _SEQUENCES:
        return ListOf(read(arguments[0]))
    if name in _MAPPINGS:
        return DictOf(read(arguments[-1]))
    return ANYTHING


def _read_literal(module: source.Module, arguments: list[ast.expr], depth: int) -> Hint:
    values: list[Any] = []
    for argument in arguments:
        try:
            values.append(ast.literal_eval(argument))
        except ValueError:  # Literal[Colour.RED], or the name of another Literal
            inner = read_hint(module, argument, depth + 1)
            if not inner.choices():
                return ANYTHING
            values += inner.choices()
    return Choice(tuple(values))


def _read_name(module: source.Module, annotation: ast.expr, depth: int) -> Hint:
    dotted = source.canonical(module, annotation) or ""
    name = _plain_name(dotted)
    if name in _SCALARS:
        return _SCALARS[name]
    if name in _SEQUENCES:
        return ListOf()
    if name in _MAPPINGS:
        return DictOf()
    if dotted in _OBJECTS:
        return Instance(dotted.rpartition(".")[2])
    if dotted.rpartition(".")[0] in _TYPING:  # Any, Callable, …
        return ANYTHING
    found = source.locate(dotted) if "." in dotted else source.follow(module, dotted) if dotted else None
    if found is None or found.node is None:
        return ANYTHING
    if isinstance(found.node, ast.ClassDef):
        return _read_instance(found)
    if isinstance(found.node, ast.expr):  # an alias: Split = Literal[1, 2, 3]
        return read_hint(found.module, found.node, depth + 1)
    return ANYTHING


def _read_instance(found: Found) -> Hint:
    """A class as a hint: its members if it is an Enum, an object otherwise."""
    assert isinstance(found.node, ast.ClassDef)
    names = {(name or "").rpartition(".")[2] for name, _ in source.bases(found)}
    if names & {"Enum", "StrEnum", "IntEnum"}:
        values = [s.value for s in found.node.body if isinstance(s, ast.Assign)]
        members = tuple(v.value for v in values if isinstance(v, ast.Constant))
        return Choice(members) if len(members) == len(values) else ANYTHING
    if names & {"str", "int", "float", "Path", "TypedDict", "NewType", "NamedTuple"}:
        return ANYTHING
    return Instance(found.node.name)
