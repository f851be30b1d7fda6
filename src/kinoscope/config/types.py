"""What a type hint allows a yaml value to be.

A hint is read from source text (see signatures.py), never from an imported module, so that a wrong value is refused
before torch is loaded. Every doubt counts for the user: a hint that is not understood accepts anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


def is_sequence(value: object) -> bool:
    """A yaml list (or a tuple), not a string."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


class Hint:
    """Anything at all: the hint of what has none, or none that we understand."""

    def accepts(self, value: Any) -> bool:
        """Whether a constructor with this hint can be given this plain yaml value."""
        return True

    def choices(self) -> tuple[Any, ...]:
        """The values that a user may choose from, where they can be listed."""
        return ()

    def __str__(self) -> str:
        return "anything"


ANYTHING = Hint()


@dataclass(frozen=True)
class Scalar(Hint):
    """``int``, ``float`` (an int will do), ``bool``, ``str``, ``Path`` (a str) or ``None``."""

    kind: Literal["int", "float", "bool", "str", "Path", "None"]

    def accepts(self, value: Any) -> bool:
        if isinstance(value, bool):  # in Python a bool is an int, in a config it is a slip
            return self.kind == "bool"
        match self.kind:
            case "int":
                return isinstance(value, int)
            case "float":
                return isinstance(value, (int, float))
            case "str":
                return isinstance(value, str)
            case "Path":
                return isinstance(value, (str, Path))
            case "None":
                return value is None
        return False

    def choices(self) -> tuple[Any, ...]:
        return {"bool": (True, False), "None": (None,)}.get(self.kind, ())

    def __str__(self) -> str:
        return {"Path": "path", "None": "null", "bool": "true | false"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Choice(Hint):
    """``Literal`` or ``Enum``: one of these values."""

    values: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        return any(value == option and type(value) is type(option) for option in self.values)

    def choices(self) -> tuple[Any, ...]:
        return self.values

    def __str__(self) -> str:
        return " | ".join(show(value) for value in self.values)


@dataclass(frozen=True)
class OneOf(Hint):
    """A union of hints."""

    options: tuple[Hint, ...]

    def accepts(self, value: Any) -> bool:
        return any(option.accepts(value) for option in self.options)

    def choices(self) -> tuple[Any, ...]:
        return tuple(value for option in self.options for value in option.choices())

    def __str__(self) -> str:
        typed = [option for option in self.options if not isinstance(option, Instance)]  # what can be typed in a word
        return " | ".join(dict.fromkeys(str(option) for option in typed or self.options))


@dataclass(frozen=True)
class ListOf(Hint):
    """A list, tuple or any other sequence; ``items`` holds one hint per position where the length is fixed."""

    item: Hint = ANYTHING
    items: tuple[Hint, ...] | None = None

    def accepts(self, value: Any) -> bool:
        if not is_sequence(value):
            return False
        if self.items is None:
            return all(self.item.accepts(entry) for entry in value)
        return len(value) == len(self.items) and all(h.accepts(v) for h, v in zip(self.items, value, strict=True))

    def __str__(self) -> str:
        if self.items is not None:
            return f"[{', '.join(str(item) for item in self.items)}]"
        return "list" if self.item is ANYTHING else f"list of {self.item}"


@dataclass(frozen=True)
class DictOf(Hint):
    """A dict with values of one kind."""

    value: Hint = ANYTHING

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(self.value.accepts(entry) for entry in value.values())

    def __str__(self) -> str:
        return "dict" if self.value is ANYTHING else f"{{…: {self.value}}}"


@dataclass(frozen=True)
class Instance(Hint):
    """An object of a class: in yaml a node with ``_target_``, never a plain number or word."""

    name: str

    def accepts(self, value: Any) -> bool:
        return not isinstance(value, (str, int, float)) and value is not None and not is_sequence(value)

    def __str__(self) -> str:
        return f"{self.name} (a node with _target_)"


def union(*options: Hint) -> Hint:
    """The union of hints; one that accepts anything swallows the rest."""
    flat = [inner for option in options for inner in (option.options if isinstance(option, OneOf) else (option,))]
    if any(type(option) is Hint for option in flat):
        return ANYTHING
    return flat[0] if len(flat) == 1 else OneOf(tuple(dict.fromkeys(flat)))


def show(value: Any) -> str:
    """A value as one would type it in yaml."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if is_sequence(value):
        return f"[{', '.join(show(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show(entry)}" for key, entry in value.items()) + "}"
    return str(value)
