"""FSDP2 as a strategy: every device holds a share of the parameters, gradients and optimizer states."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for PyTorch's ``fully_shard``, with the defaults of this house.

    Samples and parameters are shared out over all devices of all nodes, and no layer is cut in two (no tensor
    parallelism). Checkpoints are the whole state in one file, as with any other strategy.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's own default is one share per node
        super().setup_environment()
