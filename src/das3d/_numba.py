"""Numba, which compiles for CPUs what would be hundreds of small operations on tensors.

Modules whose names begin with `compiled` are made so and may be imported only where it is installed. Whatever they do is
also written as operations on tensors, which GPUs take, and CPUs without Numba; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from das3d.console import is_worker, tell

Array = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def takes_compiled(tensor: Tensor) -> bool:
    """Whether compiled code does what is to be done with a tensor: one on a CPU, where Numba is installed."""
    return tensor.device.type == "cpu" and _has_numba()


def compiled(function: Function) -> Function:
    """Compile at the first call and keep the result on disk, beside its file or in the user's cache."""
    from numba import njit

    _tell_of_compiling()
    # A product and a sum may be rounded once instead of twice; nothing else may change what comes out.
    compile_it: Any = partial(njit, nogil=True, error_model="numpy", fastmath={"contract"})
    try:
        return compile_it(cache=True)(function)
    except RuntimeError:  # there is no folder that it could be kept in
        return compile_it(function)


@cache
def _tell_of_compiling() -> None:
    # Once a process, before the first thing that is not read from disk: nobody should wonder what takes so long.
    from numba.core import event

    class Listener(event.Listener):
        told = is_worker()

        def on_start(self, begun: event.Event) -> None:
            ours = begun.data["dispatcher"].py_func.__module__.startswith("das3d.")  # and not the user's own
            if ours and not self.told:
                self.told = True
                tell("compiling for this processor, which takes some 20 seconds and is done once")

        def on_end(self, _: event.Event) -> None:
            pass

    event.register("numba:compile", Listener())  # type: ignore[no-untyped-call]


def side_by_side(work: Callable[[int], None], count: int) -> None:
    """Call `work` with each of the numbers below `count`, by as many threads as PyTorch may use."""
    numbers = iter(range(count))

    def take(_: int) -> None:
        for number in numbers:  # whoever is free takes the next one
            work(number)

    threads = min(torch.get_num_threads(), count)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(take, range(threads)))
    else:
        take(0)
