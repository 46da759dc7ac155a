"""CUDA graphs: hundreds of small kernels that a GPU is told of at once instead of one by one.

The kernels of small networks are shorter than it takes a host to launch them, so a GPU that is told of each waits most of
the time.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from das3d._bundle import Together

AS_IT_IS = 3  # calls before the capture, in which libraries set themselves up and find the memory that they work in

Inputs = TypeVar("Inputs", bound=Together)
Result = TypeVar("Result")

_capturing = Lock()  # PyTorch captures one graph at a time in a process


class Replayed(Generic[Inputs, Result]):
    """Work of a CUDA device that is captured once and replayed from then on.

    Every call does the work once, so it may change what it works on, as a training step does. It must not ask the device
    for a value, nor look at anything on the host but its inputs' shapes: a replay does what the capture did.

    What is returned is written over by the next call; threads that share one hold `lock` until they have read it.
    """

    def __init__(self, work: Callable[[Inputs], Result], device: torch.device) -> None:
        """
        Args:
            work: of inputs on the device, whose shapes are the same in every call.
            device: a CUDA device.
        """
        self.work, self.device = work, device
        self.lock = Lock()
        self.calls = 0  # that went well
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph: Any = None
        self.packed: Tensor  # inputs and result of the graph
        self.result: Result

    def __call__(self, inputs: Inputs) -> Result:
        """The work's result for inputs on the host."""
        # From pinned memory the copy runs while the host goes on; PyTorch keeps the memory until it is done.
        packed = inputs.packed().pin_memory()
        if self.graph is not None:
            self.packed.copy_(packed, non_blocking=True)
            self.graph.replay()
            return self.result
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            there = packed.to(self.device, non_blocking=True)
        if self.calls < AS_IT_IS:
            with torch.cuda.stream(self.stream):
                result = self.work(inputs.unpacked(there))
            current.wait_stream(self.stream)
        else:
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with their own work on the device.
            with _capturing, torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                result = self.work(inputs.unpacked(there))
            current.wait_stream(self.stream)
            graph.replay()
            # Kept when all went well: after a failure the next call captures anew.
            self.graph, self.packed, self.result = graph, there, result
        self.calls += 1
        return result
