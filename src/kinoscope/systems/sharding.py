"""Networks whose parameters, gradients and optimizer states are spread over the devices (FSDP2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from kinoscope.errors import Refusal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from kinoscope.systems.base import System


def shard(system: System, mesh: DeviceMesh) -> None:
    """Shards each network of a system over the mesh's ``data_parallel`` ranks, in place; once.

    Raises:
        Refusal: a system that cannot be sharded, or a mesh that would give ranks of one model different samples.
    """
    name = type(system).__name__
    if not system.fsdp:
        raise Refusal(f"trainer.strategy: {name} is not sharded; train it with trainer=ddp")
    if mesh["tensor_parallel"].size() > 1:
        raise Refusal(
            "trainer.strategy: these networks are not cut across devices; choose tensor_parallel_size=1 and "
            f"data_parallel_size={mesh.size()}"
        )
    for network, methods in system.entries:
        if isinstance(network, FSDPModule):  # a second fit, or the test after one
            continue
        fully_shard(network, mesh=mesh["data_parallel"])
        for method in methods:
            if method != "forward":
                register_fsdp_forward_method(network, method)
