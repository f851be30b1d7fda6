"""Lengths of convolved and pooled axes, so that a constructor can derive the sizes of its later layers."""

from __future__ import annotations


def out_length(length: int, kernel: int, stride: int = 1, padding: int = 0, ceil: bool = False) -> int:
    """Output length of a convolution or pooling along one axis of ``length``; 0 or less where the kernel does not fit.

    With ``ceil`` (Caffe's pooling) a last, partly covered window counts, unless it would start in the right padding.
    """
    room = length + 2 * padding - kernel
    windows = -(-room // stride) + 1 if ceil else room // stride + 1
    if ceil and (windows - 1) * stride >= length + padding:
        windows -= 1
    return windows
