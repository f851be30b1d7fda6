"""Finding what a dotted name means by reading source text, without importing anything.

Importing torch and Lightning takes seconds; reading the few files that a config names takes milliseconds. So names are
followed here as Python would follow them at import: through packages, re-exports, ``import *`` and plain aliases.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


@dataclass(frozen=True)
class Imported:
    """A name bound by an import: ``from module import attribute``, or a module where ``attribute`` is None."""

    module: str
    attribute: str | None = None


Binding = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.expr | Imported


@dataclass
class Module:
    """The top-level names of one source file."""

    name: str
    is_package: bool
    names: dict[str, Binding] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    dynamic: bool = False  # it makes names that no reader can see: __getattr__, globals(), exec


@dataclass(frozen=True)
class Found:
    """A definition, the module whose names it uses, and its path inside that module ("" for the module itself)."""

    module: Module
    node: Binding | None
    path: str = ""

    @property
    def dotted(self) -> str:
        return f"{self.module.name}.{self.path}" if self.path else self.module.name


@functools.cache
def load(name: str) -> Module | None:
    """The module of this dotted name, or None where there is none or its source cannot be read."""
    spec = _find_spec(name)
    if spec is None:
        return None
    if spec.origin is None or spec.loader is None:  # a namespace package: a folder without __init__.py
        return Module(name, is_package=True)
    if not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    module = Module(name, is_package=spec.submodule_search_locations is not None)
    _bind(tree.body, module)
    module.dynamic |= "__getattr__" in module.names
    return module


def locate(dotted: str) -> Found | None:
    """Follow a dotted name to its definition; None where reading alone does not find it."""
    head, *rest = dotted.split(".")
    module = load(head)
    if module is None:
        return None
    return _descend(Found(module, None), rest, frozenset())


def follow(module: Module, name: str) -> Found | None:
    """What a name means at the top level of a module."""
    return _follow(module, name, frozenset())


def canonical(module: Module, expression: ast.expr) -> str | None:
    """The dotted name that an expression stands for (``Optional`` → ``typing.Optional``), without following it."""
    if isinstance(expression, ast.Attribute):
        base = canonical(module, expression.value)
        return None if base is None else f"{base}.{expression.attr}"
    if not isinstance(expression, ast.Name):
        return None
    binding = module.names.get(expression.id)
    if isinstance(binding, Imported):
        return binding.module if binding.attribute is None else f"{binding.module}.{binding.attribute}"
    return expression.id if binding is None else f"{module.name}.{expression.id}"


def visible_names(module: Module) -> list[str]:
    """The public names of a module, for suggestions."""
    stars = [load(star) for star in module.stars]
    return sorted(
        {name for source in [module, *(star for star in stars if star)] for name in source.names if name[0] != "_"}
    )


def is_open(module: Module) -> bool:
    """Whether a module may hold names that reading cannot find."""
    return module.dynamic or any((star := load(name)) is None or is_open(star) for name in module.stars)


def _find_spec(name: str) -> ModuleSpec | None:
    # importlib.util.find_spec("a.b") would import a; only the top level may be asked that way.
    head, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(head)
    except (ImportError, ValueError):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        head = f"{head}.{part}"
        spec = PathFinder.find_spec(head, list(spec.submodule_search_locations))
    return spec


def _bind(body: Iterable[ast.stmt], module: Module, *, weak: bool = False) -> None:
    """Collect the names that statements bind. ``weak``: in an ``else`` or ``except``, only what is not bound yet."""

    def put(name: str, binding: Binding) -> None:
        if not (weak and name in module.names):
            module.names[name] = binding

    for statement in body:
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                put(statement.name, statement)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Name):
                        put(target.id, value)
                    elif not isinstance(target, ast.Attribute):
                        for name in _names(target):
                            put(name, ast.Constant(...))
                module.dynamic |= _calls_globals(value) or any(_calls_globals(target) for target in targets)
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                put(name, value)
            case ast.Import(names=aliases):
                for alias in aliases:
                    # "import a.b" binds a, "import a.b as c" binds a.b
                    put(
                        alias.asname or alias.name.split(".")[0],
                        Imported(alias.name if alias.asname else alias.name.split(".")[0]),
                    )
            case ast.ImportFrom(names=aliases):
                source = _absolute(module, statement)
                for alias in aliases:
                    if alias.name == "*":
                        module.stars.append(source)
                    else:
                        put(alias.asname or alias.name, Imported(source, alias.name))
            case ast.If(body=first, orelse=second):
                _bind(first, module, weak=weak)
                _bind(second, module, weak=True)
            case ast.Try(body=first, handlers=handlers, orelse=second, finalbody=last):
                _bind([*first, *second, *last], module, weak=weak)
                for handler in handlers:
                    _bind(handler.body, module, weak=True)
            case ast.With(body=first):
                _bind(first, module, weak=weak)
            case ast.Expr(value=value):
                module.dynamic |= _calls_globals(value)
            case ast.For():
                module.dynamic |= _calls_globals(statement)


def _names(target: ast.expr) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _calls_globals(node: ast.AST) -> bool:
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("globals", "exec", "setattr")
        for call in ast.walk(node)
    )


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    package = package[: len(package) - (statement.level - 1)]
    return ".".join([*package, statement.module] if statement.module else package)


Seen = frozenset[tuple[str, str]]  # (module, name) pairs on the way, so that circular re-exports end


def _follow(module: Module, name: str, seen: Seen) -> Found | None:
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    binding = module.names.get(name)
    if isinstance(binding, Imported):
        source = load(binding.module)
        if source is None:
            return None
        if binding.attribute is None:
            return Found(source, None)
        # "from torch import optim" inside torch itself comes back to where it started: then the submodule is meant.
        submodule = f"{binding.module}.{binding.attribute}"
        return _follow(source, binding.attribute, seen) or ((inner := load(submodule)) and Found(inner, None))
    if isinstance(binding, (ast.Name, ast.Attribute)):
        return _follow_expression(module, binding, seen) or Found(module, binding, name)
    if binding is not None:
        return Found(module, binding, name)
    for star in module.stars:
        source = load(star)
        if source is not None and name[0] != "_" and (found := _follow(source, name, seen)) is not None:
            return found
    if module.is_package and (submodule := load(f"{module.name}.{name}")) is not None:
        return Found(submodule, None)
    return None


def _follow_expression(module: Module, expression: ast.expr, seen: Seen) -> Found | None:
    parts: list[str] = []
    while isinstance(expression, ast.Attribute):
        parts.insert(0, expression.attr)
        expression = expression.value
    if not isinstance(expression, ast.Name):
        return None
    start = _follow(module, expression.id, seen)
    return None if start is None else _descend(start, parts, seen)


def _descend(found: Found, parts: list[str], seen: Seen) -> Found | None:
    for position, part in enumerate(parts):
        if found.node is None:
            # A package may bind a name equal to its submodule's (tqdm.tqdm): the submodule is meant on the way only.
            on_the_way = position < len(parts) - 1 and found.module.is_package
            submodule = load(f"{found.module.name}.{part}") if on_the_way else None
            step = Found(submodule, None) if submodule is not None else _follow(found.module, part, seen)
        elif isinstance(found.node, ast.ClassDef):
            step = _member(found, part)
        else:
            step = None
        if step is None:
            return None
        found = step
    return found


def _member(owner: Found, name: str) -> Found | None:
    assert isinstance(owner.node, ast.ClassDef)
    for statement in reversed(owner.node.body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and statement.name == name:
            return Found(owner.module, statement, f"{owner.path}.{name}")
    for base in owner.node.bases:
        parent = _follow_expression(owner.module, base, frozenset())
        if (
            parent is not None
            and isinstance(parent.node, ast.ClassDef)
            and (found := _member(parent, name)) is not None
        ):
            return found
    return None


def bases(found: Found) -> Iterator[tuple[str | None, Found | None]]:
    """The bases of a class: each one's dotted name and, where it can be read, its definition."""
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        if isinstance(base, ast.Subscript):  # Generic[T], Dataset[int]
            base = base.value
        yield canonical(found.module, base), _follow_expression(found.module, base, frozenset())
