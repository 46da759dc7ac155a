"""CUDA graphs: hundreds of small kernels that a GPU is told of at once instead of one by one.

The kernels of small networks are shorter than it takes a host to launch them, so a GPU that is told of each waits most of
the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from das3d._bundle import Bundle

AS_IT_IS = 3  # calls before the capture, in which libraries set themselves up and find the memory that they work in

Inputs = TypeVar("Inputs", bound=Bundle)
Result = TypeVar("Result")


class Replayed(Generic[Inputs, Result]):
    """Work of a CUDA device that is captured once and replayed from then on.

    Every call does the work once, so it may change what it works on, as a training step does. It must not ask the device
    for a value, nor look at anything on the host but its inputs' shapes: a replay does what the capture did.

    What is returned is written over by the next call.
    """

    def __init__(self, work: Callable[[Inputs], Result], device: torch.device) -> None:
        """
        Args:
            work: of inputs on the device, whose shapes are the same in every call.
            device: a CUDA device.
        """
        self.work, self.device = work, device
        self.calls = 0
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph = torch.cuda.CUDAGraph()
        self.packed: Tensor  # inputs and result of the graph
        self.result: Result

    def __call__(self, inputs: Inputs) -> Result:
        """The work's result for inputs on the host."""
        # Pinned, or the host would wait until they have arrived; PyTorch keeps them until then.
        packed = inputs.packed().pin_memory()
        self.calls += 1
        if self.calls > AS_IT_IS + 1:
            self.packed.copy_(packed, non_blocking=True)
            self.graph.replay()
            return self.result
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            there = packed.to(self.device, non_blocking=True)
        if self.calls <= AS_IT_IS:
            with torch.cuda.stream(self.stream):
                self.result = self.work(inputs.unpacked(there))
        else:
            self.packed = there
            # Other threads may go on with their own work on the device.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.work(inputs.unpacked(there))
            current.wait_stream(self.stream)
            self.graph.replay()
        current.wait_stream(self.stream)
        return self.result
