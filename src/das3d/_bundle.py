"""Tensors that belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Together:
    """A dataclass of tensors that travel at once, so that none goes without the others.

    A member may be one of these itself, a tuple of them, or None.
    """

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same of changed tensors."""
        return type(self)(**{field.name: _mapped(getattr(self, field.name), change) for field in fields(self)})

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the members."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.mapped(note)
        return found

    def to(self, device: torch.device | str) -> Self:
        # Onto a GPU without waiting for each of dozens of tensors; what comes back must have arrived before it is read.
        onto_gpu = torch.device(device).type == "cuda"
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=onto_gpu))

    def packed(self) -> Tensor:
        """All tensors in one of bytes; `unpacked` takes them out again."""
        return torch.cat([_bytes_of(tensor) for tensor in _by_size(self.tensors())])

    def unpacked(self, packed: Tensor) -> Self:
        """The same of tensors like these, without a copy from what `packed` gave, on any device."""
        tensors = self.tensors()
        order = _by_size(tensors)
        ends = accumulate(tensor.numel() * tensor.element_size() for tensor in order)
        views = {
            id(tensor): packed[end - tensor.numel() * tensor.element_size() : end].view(tensor.dtype).view(tensor.shape)
            for tensor, end in zip(order, ends, strict=True)
        }
        return self.mapped(lambda tensor: views[id(tensor)])


@dataclass(frozen=True)
class Bundle(Together):
    """Tensors whose first axis counts the same things, such as the pairs of a batch; they are picked all at once."""

    def __len__(self) -> int:
        return len(_first(self))

    def __getitem__(self, index: int | slice | Tensor) -> Self:
        """Some of the things; a single one keeps its axis."""
        if isinstance(index, int):
            index = range(len(self))[index]  # IndexError beyond the last, which also ends a for loop
            index = slice(index, index + 1)
        return self.mapped(lambda tensor: tensor[index])


def _first(bundle: Together) -> Tensor:
    member = next(member for member in vars(bundle).values() if member is not None)
    return _first(member) if isinstance(member, Together) else member


def _mapped(member: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if member is None:
        return None
    if isinstance(member, Together):
        return member.mapped(change)
    return tuple(_mapped(one, change) for one in member) if isinstance(member, tuple) else change(member)


def _by_size(tensors: list[Tensor]) -> list[Tensor]:
    # Large elements first, so that each begins at a multiple of its size.
    return sorted(tensors, key=lambda tensor: -tensor.element_size())


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
