"""The arguments of a ``_target_``: names, hints, defaults and descriptions, read from its source.

A target is imported only where reading does not find it (compiled code, names made at run time).
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from dataclasses import dataclass, field, replace
from typing import Any

from kinoscope.config import source
from kinoscope.config.hints import read_hint
from kinoscope.config.source import Found
from kinoscope.config.types import ANYTHING, Choice, Hint, OneOf, Scalar, union


class TargetNotFound(Exception):
    """No such module, class or function; ``near`` lists the names that are there instead."""

    def __init__(self, target: str, reason: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.target = target
        self.near = near


@dataclass(frozen=True)
class Parameter:
    """One argument. ``default`` is only meant where it is not required."""

    name: str
    hint: Hint = ANYTHING
    required: bool = False
    default: Any = None
    help: str = ""

    def accepts(self, value: Any) -> bool:
        """Whether a plain yaml value will do; null also wherever it is the default (``x: int = None``)."""
        return self.hint.accepts(value) or (value is None and not self.required and self.default is None)


@dataclass(frozen=True)
class Signature:
    """What may be passed by keyword. ``open``: ``**kwargs`` takes any other name as well."""

    origin: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: bool = False
    positional: tuple[str, ...] = ()


OPEN = Signature(origin="", open=True)


@functools.cache
def find(target: str) -> Signature:
    """The signature of a dotted name, as hydra would locate it.

    Raises:
        TargetNotFound: there is no such thing.
    """
    found = source.locate(target)
    if found is not None:
        signature = _read(found)
        return _import(target) if signature is None else _with_words(signature)
    owner = source.locate(target.rpartition(".")[0]) if "." in target else None
    if owner is not None and owner.node is None and not source.is_open(owner.module):
        name = target.rpartition(".")[2]
        raise TargetNotFound(target, f"{owner.dotted} has no '{name}'", tuple(source.visible_names(owner.module)))
    return _import(target)


# Lightning types these as str, so that a wrong one would only be found after torch was imported.
_DDP = tuple(
    f"ddp{launch}{unused}"
    for launch in ("", "_spawn", "_fork", "_notebook")
    for unused in ("", "_find_unused_parameters_true", "_find_unused_parameters_false")
)
_DEEPSPEED = ("", "_stage_1", "_stage_2", "_stage_2_offload", "_stage_3", "_stage_3_offload", "_stage_3_offload_nvme")
WORDS: dict[str, tuple[str, ...]] = {
    "Trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "Trainer.strategy": (
        *("auto", *_DDP, "fsdp", "fsdp_cpu_offload"),
        *(f"deepspeed{stage}" for stage in _DEEPSPEED),
        *("single_device", "single_xla", "single_tpu", "xla", "xla_debug"),
    ),
    "Trainer.gradient_clip_algorithm": ("norm", "value"),
    "Trainer.profiler": ("simple", "advanced", "pytorch", "xla"),
    "EarlyStopping.mode": ("min", "max"),
}


def _with_words(signature: Signature) -> Signature:
    """Lightning's ``str`` arguments narrowed to the words that it knows."""
    package, _, name = signature.origin.rpartition(".")
    if not package.startswith(("lightning.pytorch.", "pytorch_lightning.")):
        return signature

    def narrow(parameter: Parameter) -> Parameter:
        words = WORDS.get(f"{name}.{parameter.name}")
        if words is None:
            return parameter
        options = parameter.hint.options if isinstance(parameter.hint, OneOf) else (parameter.hint,)
        return replace(parameter, hint=union(*(Choice(words) if o == Scalar("str") else o for o in options)))

    return replace(signature, parameters={argument: narrow(p) for argument, p in signature.parameters.items()})


# --- reading -------------------------------------------------------------------------------------------------------


def _read(found: Found) -> Signature | None:
    """The signature of a definition; None where reading does not tell."""
    match found.node:
        case ast.ClassDef():
            return _read_class(found)
        case ast.FunctionDef(decorator_list=decorators):
            names = {name for decorator in decorators if (name := source.canonical(found.module, decorator))}
            is_method = "." in found.path and "staticmethod" not in names
            return _read_function(found, found.node, skip_first=is_method)
    return None


def _read_class(found: Found) -> Signature | None:
    node = found.node
    assert isinstance(node, ast.ClassDef)
    describe = _descriptions(ast.get_docstring(node))
    constructor = _method(node, "__init__") or _method(node, "__new__")
    if constructor is not None:
        signature = _read_function(found, constructor, skip_first=True, descriptions=describe)
        forwarded = _forwarded(constructor)
        if signature.open and forwarded is not None:
            signature = _join(signature, _read_bases(found), passed=forwarded)
        return signature
    if any(_is_dataclass(found, decorator) for decorator in node.decorator_list):
        return _read_fields(found, inherited=_read_bases(found), descriptions=describe)
    if any(name in ("typing.NamedTuple", "NamedTuple") for name, _ in source.bases(found)):
        return _read_fields(found, inherited=None, descriptions=describe)
    inherited = _read_bases(found)
    return None if inherited is None else replace(inherited, parameters=_describe(inherited.parameters, describe))


def _read_bases(found: Found) -> Signature | None:
    """The first constructor among the bases, depth first; no arguments where none of them has one."""
    plain = {"object", "abc.ABC", "typing.Generic", "typing.Protocol", "Generic", "Protocol", "ABC"}
    for name, base in source.bases(found):
        if name in plain:
            continue
        if base is None or not isinstance(base.node, ast.ClassDef):
            return None
        signature = _read_class(base)
        if signature is None or signature.parameters or signature.open:
            return signature
    return Signature(origin=found.dotted)


def _read_function(
    found: Found, node: ast.FunctionDef, *, skip_first: bool, descriptions: dict[str, str] | None = None
) -> Signature:
    described = {**(descriptions or {}), **_descriptions(ast.get_docstring(node))}
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_first else 0 :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {
        argument.arg: Parameter(
            name=argument.arg,
            hint=ANYTHING if argument.annotation is None else read_hint(found.module, argument.annotation),
            required=default is None,
            default=_literal(default),
            help=described.get(argument.arg, ""),
        )
        for argument, default in pairs
    }
    keyword_only = {argument.arg for argument in arguments.kwonlyargs}
    return Signature(
        # A class' constructor is known by the class' name.
        origin=found.dotted,
        parameters=parameters,
        open=arguments.kwarg is not None,
        positional=tuple(name for name in parameters if name not in keyword_only),
    )


def _read_fields(found: Found, inherited: Signature | None, descriptions: dict[str, str]) -> Signature:
    assert isinstance(found.node, ast.ClassDef)
    parameters = dict(inherited.parameters) if inherited is not None else {}
    for statement in found.node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if "ClassVar" in ast.unparse(statement.annotation):
                continue
            hint = read_hint(found.module, statement.annotation)
            parameters[name] = Parameter(name, hint, statement.value is None, _literal(statement.value))
    return Signature(found.dotted, _describe(parameters, descriptions), positional=tuple(parameters))


def _join(own: Signature, parent: Signature | None, passed: frozenset[str]) -> Signature:
    """``__init__(self, a, **kwargs)`` that calls ``super().__init__(b=…, **kwargs)`` takes the parent's arguments."""
    if parent is None:
        return own
    taken = {n: p for n, p in parent.parameters.items() if n not in own.parameters and n not in passed}
    return replace(own, parameters={**own.parameters, **taken}, open=parent.open)


def _forwarded(constructor: ast.FunctionDef) -> frozenset[str] | None:
    """The names that ``super().__init__`` is given explicitly if it is also given ``**kwargs``; else None."""
    if constructor.args.kwarg is None:
        return None
    rest = constructor.args.kwarg.arg
    for call in ast.walk(constructor):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__" and not call.args:
            stars = [k.value for k in call.keywords if k.arg is None]
            if any(isinstance(value, ast.Name) and value.id == rest for value in stars):
                return frozenset(k.arg for k in call.keywords if k.arg is not None)
    return None


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    # The last definition is the one that runs: the earlier ones are overloads.
    return next((s for s in reversed(node.body) if isinstance(s, ast.FunctionDef) and s.name == name), None)


def _is_dataclass(found: Found, decorator: ast.expr) -> bool:
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return source.canonical(found.module, decorator) in ("dataclasses.dataclass", "dataclass")


def _literal(default: ast.expr | None) -> Any:
    if default is None:
        return None
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def _describe(parameters: dict[str, Parameter], descriptions: dict[str, str]) -> dict[str, Parameter]:
    return {n: replace(p, help=p.help or descriptions.get(n, "")) for n, p in parameters.items()}


_ARGUMENT = re.compile(r"^(?P<indent> +)(?P<name>\w+)(?: *\([^)]*\))?: *(?P<text>.*)$")


def _descriptions(docstring: str | None) -> dict[str, str]:
    """The entries of a Google-style ``Args:`` section, one line each."""
    if not docstring or "Args:" not in docstring:
        return {}
    entries: dict[str, str] = {}
    name, indent = "", None
    for line in docstring.partition("Args:\n")[2].splitlines():
        if line and not line[0].isspace():
            break
        match = _ARGUMENT.match(line)
        if match and indent in (None, len(match["indent"])):
            name, indent = match["name"], len(match["indent"])
            entries[name] = match["text"].strip()
        elif name and line.strip():
            entries[name] = f"{entries[name]} {line.strip()}".strip()
        else:
            name = ""
    return entries


# --- importing, where reading does not tell ------------------------------------------------------------------------


def _import(target: str) -> Signature:
    module_name, _, _ = target.partition(".")
    parts = target.split(".")
    value: Any = None
    for length in range(len(parts), 0, -1):
        module_name = ".".join(parts[:length])
        try:
            value = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and not (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise TargetNotFound(target, f"{module_name} needs {error.name}, which is not installed") from error
            continue
        except Exception as error:
            raise TargetNotFound(target, f"importing {module_name} failed: {error}") from error
        break
    else:
        raise TargetNotFound(target, f"there is no module '{parts[0]}' (is your package on PYTHONPATH?)")
    for done, part in enumerate(parts[length:], start=length):
        if not hasattr(value, part):
            raise TargetNotFound(target, f"{'.'.join(parts[:done])} has no '{part}'", tuple(dir(value)))
        value = getattr(value, part)
    try:
        arguments = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature
        return OPEN
    named = [a for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    empty = inspect.Parameter.empty
    return Signature(
        origin=target,
        parameters={
            a.name: Parameter(a.name, required=a.default is empty, default=None if a.default is empty else a.default)
            for a in named
        },
        open=any(a.kind is a.VAR_KEYWORD for a in arguments),
        positional=tuple(a.name for a in named if a.kind is not a.KEYWORD_ONLY),
    )
