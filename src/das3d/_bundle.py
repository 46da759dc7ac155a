"""Tensors that belong together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bundle:
    """A dataclass of tensors whose first axis counts the same things, such as the pairs of a batch.

    They are picked and moved to a device all at once, so that none goes without the others.
    """

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index: int | slice | Tensor) -> Self:
        """Some of the things; a single one keeps its axis."""
        if isinstance(index, int):
            index = range(len(self))[index]  # IndexError beyond the last, which also ends a for loop
            index = slice(index, index + 1)
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        # Onto a GPU without waiting for each of dozens of tensors; what comes back must have arrived before it is read.
        onto_gpu = torch.device(device).type == "cuda"
        moved = {field.name: getattr(self, field.name).to(device, non_blocking=onto_gpu) for field in fields(self)}
        return type(self)(**moved)
