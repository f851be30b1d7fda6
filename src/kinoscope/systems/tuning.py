"""How networks compute, with the same result: compiled, with channels last in memory, exact where torch is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kinoscope.config.suggest import did_you_mean
from kinoscope.errors import Refusal
from kinoscope.systems.base import System

Compile = bool | Mapping[str, Any] | None
OPTIONS = ("mode", "backend", "dynamic", "fullgraph", "options")  # of torch.compile
# On a CPU torch takes their weights' gradients in bfloat16 from memory that nobody has written, where a kernel reaches
# past both ends of an axis, as in C3D's last convolution: any number can come out. Seen with torch 2.13 on AVX-512.
UNSOUND_IN_BFLOAT16 = (nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # (B, C, H, W) and (B, C, T, H, W)


def require_tunable(
    system: System, compile: Compile, channels_last: bool, device: torch.device, precision: str = "32-true"
) -> None:
    """Raises `Refusal` for what cannot be done to this system, or on this machine.

    Args:
        system: whose networks are meant.
        compile: true, or the options of ``torch.compile``.
        channels_last: whether the memory format is to be changed.
        device: where the networks will run.
        precision: the Trainer's.
    """
    if precision != "bf16-mixed" and (layers := _unsound(system, device, precision)):
        raise Refusal(
            f"trainer.precision={precision}: on a CPU, torch gets the gradients of {type(layers[0]).__name__} wrong; "
            "choose bf16-mixed, which keeps such layers in float32"
        )
    asked = [name for name, wanted in (("compile", compile), ("channels_last", channels_last)) if wanted]
    if asked and not system.entries:
        raise Refusal(f"{' and '.join(asked)}: {type(system).__name__} trains no network; leave it out")
    if not compile:
        return
    options = _options(compile)
    for name in options:
        if name not in OPTIONS:
            hint = did_you_mean(name, OPTIONS) or f"the options are {', '.join(OPTIONS)}"
            raise Refusal(f"compile: torch.compile has no option '{name}'; {hint}")
    try:
        torch.compile(nn.Identity(), **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise Refusal(f"compile: {str(error).strip().splitlines()[0]}") from error
    if options.get("backend", "inductor") == "inductor":
        _require_code_generator(device)


def _require_code_generator(device: torch.device) -> None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise Refusal("compile: the inductor backend needs Triton on a GPU: pip install triton, or compile=false")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise Refusal(
            "compile: the inductor backend needs a C++ compiler on the CPU, and none is found: install g++ or clang++, "
            "name one in CXX, or leave compile out"
        ) from None


def _options(compile: Compile) -> dict[str, Any]:
    return dict(compile) if isinstance(compile, Mapping) else {}


def tune(system: System, compile: Compile, channels_last: bool) -> None:
    """Compiles a system's networks and lays out their weights, in place: the names of the weights stay.

    An input follows the layout of the first convolution it meets, so batches need no conversion of their own.

    Args:
        system: on any device, before it is trained.
        compile: true, or the options of ``torch.compile``; null or false compiles nothing.
        channels_last: (B, C, H, W) becomes (B, H, W, C) in memory, videos likewise.
    """
    if channels_last:
        for parameter in system.parameters():
            if parameter.ndim in FORMATS:
                parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.ndim])
    for network, methods in system.entries if compile else []:
        for method in methods:  # a module's own compile() leaves out those whose forward is torch's, as a Sequential's
            setattr(network, method, torch.compile(getattr(network, method), **_options(compile)))


def keep_sound(system: System, device: torch.device, precision: str) -> None:
    """On a CPU, keeps those layers in float32 whose gradients torch gets wrong in bfloat16 (`bf16-mixed`)."""
    for layer in _unsound(system, device, precision):
        layer.forward = partial(_in_float32, layer.forward)


def _unsound(system: System, device: torch.device, precision: str) -> list[nn.Module]:
    if device.type != "cpu" or not precision.startswith("bf16"):
        return []
    return [layer for layer in system.modules() if isinstance(layer, UNSOUND_IN_BFLOAT16)]


def _in_float32(forward: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return forward(x.float(), *others)
