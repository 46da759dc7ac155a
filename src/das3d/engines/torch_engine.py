"""PyTorch as an engine, and the module that every export is made from."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from das3d._bundle import Bundle
from das3d._replay import Replayed
from das3d.engines import BATCH, Engine, EngineOutput, Floats, Members, given, side_by_side, size_of
from das3d.errors import ModelError
from das3d.network import CoarseLevel, DAS3DNet
from das3d.settings import ScoreSettings, Settings
from das3d.synthesis import resampled


class Scorer(nn.Module):
    """From prepared parts to maps and scores: normalisation of RGB, networks, mean over views, mean filter and maximum.

    The views are the part as it lies, turned, and mirrored, as the settings say. What a network takes for a defect from
    nothing but a chance of the pixels' grid differs from view to view; a defect does not.
    """

    def __init__(self, network: nn.Module, settings: ScoreSettings) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        turns = [0.0, settings.turn, -settings.turn] if settings.turn else [0.0]
        flips: list[list[int]] = [[], [3], [2], [2, 3]] if settings.flips else [[]]
        self.views = [(turn, axes) for turn in turns for axes in flips]

    def forward(self, rgb: Tensor | None, depth: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Map, score, repaired RGB and repaired depth, as in `EngineOutput`, of RGB as uint8 and normalised depth."""
        there = (None if rgb is None else rgb.float() / 255, depth)
        seen = [[None if one is None else one.flip(axes) for one in turned(*there, turn)] for turn, axes in self.views]
        members = [None if views[0] is None else torch.cat(views) for views in zip(*seen, strict=True)]
        output = self.network(*members)
        by_view = (len(self.views), -1)
        found = zip(output.logits.unflatten(0, by_view), self.views, strict=True)
        back = [turned_back(logits.float().sigmoid().flip(axes), turn) for logits, (turn, axes) in found]
        maps = sum((image * shown for image, shown in back[1:]), start=back[0][0])  # the first view shows all of the part
        maps = (maps / sum((shown for _, shown in back[1:]), start=back[0][1]))[:, 0]
        # The first view is the part as it lies.
        repaired_rgb = None if output.rgb is None else output.rgb.unflatten(0, by_view)[0]
        repaired_depth = None if output.depth is None else output.depth.unflatten(0, by_view)[0, :, 0]
        return maps, part_scores(maps, self.settings), repaired_rgb, repaired_depth


def turned(rgb: Tensor | None, depth: Tensor | None, degrees: float) -> tuple[Tensor | None, Tensor | None]:
    """RGB (B, 3, S, S) in (0, 1) and depth (B, 1, S, S), as far as there, turned about the middle like training parts."""
    if not degrees:
        return rgb, depth
    member = rgb if depth is None else depth
    assert member is not None
    colours = torch.zeros_like(member[:, :1]).expand(-1, 3, -1, -1) if rgb is None else rgb
    shape = torch.ones_like(member[:, :1]) if depth is None else depth
    foreground = (colours > 0).any(dim=1, keepdim=True) | (shape != 1)  # the background is black and lies at 1
    colours, shape, _ = resampled(colours, shape, foreground, _turn(member, degrees))
    return None if rgb is None else colours, None if depth is None else shape


def turned_back(maps: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Maps (B, 1, S, S) of parts that were turned, as the parts lie, and (S, S) 1 where the turned view showed the part."""
    if not degrees:
        return maps, torch.ones_like(maps[0, 0])
    grid = _turn(maps, -degrees)
    return F.grid_sample(maps, grid, align_corners=False), (grid[0].abs() <= 1).all(dim=-1).float()


def _turn(images: Tensor, degrees: float) -> Tensor:
    # Where `grid_sample` reads to turn images (B, C, S, S), (B, S, S, 2). Plain arithmetic, which every engine knows.
    side = images.shape[-1]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    line = (torch.arange(side, device=images.device, dtype=torch.float32) + 0.5) * (2 / side) - 1
    u, v = line[None, :], line[:, None]
    return torch.stack([cos * u - sin * v, sin * u + cos * v], dim=-1)[None].expand(images.shape[0], -1, -1, -1)


def part_scores(maps: Tensor, settings: ScoreSettings) -> Tensor:
    """Scores (B,) of maps (B, S, S): the maximum of the mean-filtered map."""
    if settings.window > 1:
        wide, pad = settings.window, settings.window // 2
        # Rows, then columns: the mean of the rows' means, at less than half of the cost.
        maps = F.avg_pool2d(maps[:, None], (1, wide), stride=1, padding=(0, pad), count_include_pad=False)
        maps = F.avg_pool2d(maps, (wide, 1), stride=1, padding=(pad, 0), count_include_pad=False)
    return maps.flatten(1).amax(dim=1)


def fused(network: nn.Module) -> nn.Module:
    """A copy whose batch norms are part of the convolutions before them; same values within rounding, about 5 % faster."""
    network = copy.deepcopy(network).eval()
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for i, (layer, following) in enumerate(pairwise(block)):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                block[i], block[i + 1] = fuse_conv_bn_eval(layer, following), nn.Identity()
    for level in [module for module in network.modules() if isinstance(module, CoarseLevel)]:
        # One norm after a sum of two convolutions: its gain goes to both, the rest to one. Enlarging alters no constant.
        norm = level.norm
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        level.skip.weight = nn.Parameter(level.skip.weight * gain[:, None, None, None])
        level.below, level.norm = fuse_conv_bn_eval(level.below, norm), nn.Identity()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Inputs(Bundle):
    """What the networks see of a batch: RGB (B, 3, S, S) uint8, depth (B, 1, S, S) float32; None: not used."""

    rgb: Tensor | None
    depth: Tensor | None


class TorchEngine(Engine):
    """A network in evaluation mode on its device.

    On a GPU one part and `BATCH` of them are CUDA graphs, because launching takes longer than computing. Numbers in between
    are filled up to `BATCH`, larger ones are split. On a CPU as many parts as it has threads, or
    more, are computed side by side, each by one thread.

    Attributes:
        network: what training trains, or any module that takes RGB and depth as `DAS3DNet` does and gives an `Output`, from
            several threads at once. The engine computes with a copy that is made at once; later training does not reach it.
    """

    name = "PyTorch"

    def __init__(self, network: nn.Module, settings: ScoreSettings) -> None:
        self.network = network
        self.scorer = Scorer(fused(network), settings)
        self.torch_device = next(network.parameters()).device
        cuda = self.torch_device.type == "cuda"
        # On CUDA devices PyTorch rounds what convolutions multiply to TF32 unless told otherwise.
        self.precision = "tf32" if cuda and torch.backends.cudnn.allow_tf32 else "fp32"
        self.device = torch.cuda.get_device_name(self.torch_device) if cuda else self.torch_device.type.upper()
        self._graphs = {size: Replayed(self._found, self.torch_device) for size in (1, BATCH)} if cuda else {}

    @classmethod
    def open(cls, file: Path, settings: Settings, device: str = "auto", told: str | None = None) -> TorchEngine:
        """The engine of a safetensors model file.

        Args:
            file: the model.
            settings: those beside its weights.
            device: where it computes.
            told: the hash of its weights (`weights_hash`); None where the file has none.

        Raises:
            ModelError: its weights are damaged, or of other networks; or there is no such device.
        """
        from safetensors.torch import load_file

        network = DAS3DNet.from_settings(settings)
        weights = load_file(file)
        # A copy that was cut short may have its length all the same, with zeros at its end.
        if told is not None and told != weights_hash(weights):
            raise ModelError(
                f"{file}: expected the weights that were saved there, found damaged ones, as a copy that was cut short "
                "has; copy it again"
            )
        if differs := _difference(network.state_dict(), weights):
            raise ModelError(
                f"{file}: expected weights of the networks that its settings describe, found those of others "
                f"({differs}); train it again, or use it with the version that trained it"
            )
        network.load_state_dict(weights)
        network = network.eval().to(choose_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(network, settings.score)

    @cached_property
    def weights(self) -> str:
        """See `Engine.weights`."""
        return weights_hash(self.network.state_dict())

    def run(self, rgb: NDArray[np.uint8] | None = None, depth: Floats | None = None) -> EngineOutput:
        """See `Engine.run`."""
        members = given(rgb, depth)
        if self.torch_device.type == "cpu" and (pool := _pool_for(size_of(members))) is not None:
            return side_by_side(pool, self._compute, members)
        return self._compute(members)

    def _compute(self, arrays: Members) -> EngineOutput:
        members = Inputs(*(torch.from_numpy(arrays[name]) if name in arrays else None for name in ("rgb", "depth")))
        if not self._graphs or not len(members):
            return _on_host(self._found(members.to(self.torch_device)))
        whole: list[Tensor | None] = []
        for start in range(0, len(members), BATCH):
            some = members[start : start + BATCH]
            size = 1 if len(some) == 1 else BATCH
            graph = self._graphs[size]
            with graph.lock:
                found = graph(some[torch.arange(size).clamp(max=len(some) - 1)])
                # Straight to where they belong: joining batches would copy all of them once more.
                whole = whole or [None if one is None else torch.empty(len(members), *one.shape[1:]) for one in found]
                for kept, new in zip(whole, found, strict=True):
                    if kept is not None and new is not None:
                        kept[start : start + BATCH].copy_(new[: len(some)])
        return _on_host(whole)

    @torch.inference_mode()
    def _found(self, members: Inputs) -> Sequence[Tensor | None]:
        found: Sequence[Tensor | None] = self.scorer(members.rgb, members.depth)
        return found


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_making = Lock()


def _pool_for(parts: int) -> ThreadPoolExecutor | None:
    # As many threads as PyTorch uses here, of which each computes alone; None where there is a single one, or some would
    # have no part. They are made once, anew in a process that was forked, which has no threads of its parent.
    with _making:
        threads = torch.get_num_threads()
        if not 1 < threads <= parts:
            return None
        process = os.getpid(), threads
        if process not in _pools:
            _pools[process] = _pool_of(threads)
        return _pools[process]


def _pool_of(threads: int) -> ThreadPoolExecutor:
    # PyTorch keeps the number of threads for each thread, and for those to come: what the last one that set it said. So all
    # of these set it first, and then this one does, for whoever comes later.
    def alone() -> None:
        torch.get_num_threads()  # or what is set would be replaced by the number for new threads at the first computation
        torch.set_num_threads(1)

    pool, begun = ThreadPoolExecutor(threads, "das3d networks", initializer=alone), Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(begun.wait)
        begun.wait()
    except BaseException:
        begun.abort()  # or those that wait there would keep the program from ending
        raise
    finally:
        torch.set_num_threads(threads)
    return pool


def _on_host(found: Sequence[Tensor | None]) -> EngineOutput:
    return EngineOutput(*(None if tensor is None else tensor.float().cpu().numpy() for tensor in found))  # type: ignore[arg-type]


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    # In words, with an example of each kind; empty where all fit.
    def size(tensor: Tensor) -> str:
        return "x".join(map(str, tensor.shape)) or "1"

    both = [name for name in expected if name in found]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "of another size": [
            f"{name}: expected {size(expected[name])}, found {size(found[name])}"
            for name in both
            if expected[name].shape != found[name].shape
        ],
    }
    return "; ".join(f"{len(names)} {kind}, such as {names[0]}" for kind, names in kinds.items() if names)


def choose_device(device: str = "auto") -> torch.device:
    """The device that a user's word means. Raises ModelError where there is none such."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:  # whose text lists all that PyTorch was ever built for
        raise ModelError(f"device: expected auto, cpu, cuda, cuda:1 or mps, found {device!r}") from None
    try:
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]  # PyTorch goes on for pages
        raise ModelError(f"device: expected auto, cpu or a device of this machine, found {device!r} ({reason})") from None
    return chosen
