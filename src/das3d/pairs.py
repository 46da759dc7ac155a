"""Synthetic defects on good pairs: to judge by eye, and for other detectors to learn from.

    pairs = SyntheticPairs.from_data("mydata", length=10_000)
    for batch in torch.utils.data.DataLoader(pairs, batch_size=8, num_workers=4):
        batch["rgb"], batch["depth"], batch["mask"]  # (8, 3, S, S), (8, 1, S, S), (8, 1, S, S)

A pair follows from the seed and its number alone: the same in any order, on any number of workers. Its recipes can be
written down and make it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from das3d import pictures
from das3d.arguments import expect_kind, is_whole, list_of, path_of, shown
from das3d.batches import GoodParts
from das3d.errors import DataError, SettingsError
from das3d.files import DepthFormat
from das3d.measurement import Statistics
from das3d.preparation import PreparedScan
from das3d.prepared import find_training_data, measure_parts, prepare_part, train_and_held_out
from das3d.recipes import FAMILIES, Recipe, draw_rounds
from das3d.settings import Settings, SynthesisSettings, make_settings
from das3d.synthesis import Harmed, apply_recipes
from das3d.textures import expect_textures, load_textures

# ------------------------------------------------------------------------------------------- any good pairs


def harm_pairs(
    rgb: Tensor,
    depth: Tensor,
    foreground: Tensor,
    settings: SynthesisSettings | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    textures: Tensor | None = None,
    use_rgb: bool = True,
    use_depth: bool = True,
) -> tuple[Harmed, list[Recipe]]:
    """Turn good pairs into labelled ones (equations (1) to (8) and (12) of the paper and the families beside them).

    Args:
        rgb: (B, 3, S, S) float32 in (0, 1).
        depth: (B, 1, S, S) float32, 0 nearest, 1 farthest or background.
        foreground: (B, 1, S, S) bool, where the part is; defects lie there.
        settings: kinds, sizes and strengths of defects; None: those of the preset `fast`.
        seed, first: pair b is harmed as number ``first + b`` of this seed, whatever else is in the batch.
        textures: (N, 3, S, S) pictures to paint with, in (0, 1) or uint8; None: generated.
        use_rgb, use_depth: False leaves that modality as it is.

    Returns:
        The harmed pairs with their masks (1 on defects; nothing but 0 where a pair was left good), and the recipes, one
        for each of ``settings.rounds``, which `apply_recipes` makes the same pixels of again.

    Raises:
        DataError: pairs or pictures are no tensors, or do not fit together.
        SettingsError: `settings` are none, or `seed` or `first` is no number from 0 up.
    """
    tensor: Any
    for name, tensor in (("rgb", rgb), ("depth", depth), ("foreground", foreground), ("textures", textures)):
        if name != "textures" or tensor is not None:
            expect_kind(Tensor, tensor, name, DataError)
            if tensor.ndim != 4 or not len(tensor):
                raise DataError(f"{name}: expected (N, C, S, S), N of them from 1 up, found {tuple(tensor.shape)}")
    settings = SynthesisSettings() if settings is None else settings
    expect_kind(SynthesisSettings, settings, "settings", giver="Settings.synthesis")
    for name, number in (("seed", seed), ("first", first)):
        _expect_number(number, name)
    recipes = draw_recipes(range(first, first + len(rgb)), settings, seed, rgb=use_rgb, depth=use_depth, textures=textures)
    recipes = [recipe.to(rgb.device) for recipe in recipes]
    try:
        return apply_recipes(rgb, depth, foreground, recipes, settings, textures), recipes
    except ValueError as error:
        raise DataError(f"pairs to harm: {error}") from None


def _expect_number(given: Any, name: str) -> None:
    if not is_whole(given, 0):
        raise SettingsError(f"{name}: expected a number from 0 up, found {shown(given)}")


def draw_recipes(
    numbers: Sequence[int],
    settings: SynthesisSettings,
    seed: int,
    *,
    rgb: bool = True,
    depth: bool = True,
    textures: Sized | None = None,
) -> list[Recipe]:
    """Recipes of the pairs with these numbers, one for each round; each pair has a generator of its own."""
    rounds: list[list[dict[str, Any]]] = [[] for _ in range(settings.rounds)]
    for number in numbers:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        drawn = draw_rounds(1, settings, generator, rgb=rgb, depth=depth, textures=textures)
        for of_round, recipe in zip(rounds, drawn, strict=True):
            of_round += recipe.to_dicts()
    return [Recipe.from_dicts(dicts) for dicts in rounds]


# ------------------------------------------------------------------------------------------- the parts of a data set


@dataclass(frozen=True)
class Pair:
    """One good pair, what became of it, and how.

    Attributes:
        number: which pair of its seed.
        part: id of the good part.
        rgb, depth, foreground: the good pair, (1, C, S, S).
        harmed: the same, harmed, with its mask.
        recipes: one a round.
    """

    number: int
    part: str
    rgb: Tensor
    depth: Tensor
    foreground: Tensor
    harmed: Harmed
    recipes: tuple[Recipe, ...]

    def fingerprint(self) -> str:
        """A hash of the harmed pixels, down to the last bit."""
        digest = hashlib.sha256()
        for member in (self.harmed.rgb, self.harmed.depth, self.harmed.mask):
            digest.update(member.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class SyntheticPairs(Dataset[dict[str, Tensor]]):
    """Good parts as a `torch.utils.data` data set of labelled pairs; ``pairs[n]`` is the same whenever it is asked for.

    Each item is a dict of tensors that the default collation stacks:

    ========== ============ ======= =====================================================
    rgb        (3, S, S)    float32 in (0, 1), perhaps harmed; 0 outside the part
    depth      (1, S, S)    float32 normalised, perhaps harmed; 1 outside the part
    mask       (1, S, S)    float32 1 on defects
    good_rgb   (3, S, S)    float32 before it was harmed
    good_depth (1, S, S)    float32 before it was harmed
    foreground (1, S, S)    bool    where the part is
    defective  ()           bool    whether there is a defect
    number     ()           int64   which pair this is
    ========== ============ ======= =====================================================

    Parts are taken in turn and are not moved or turned: how to augment good parts is the detector's choice.

    Attributes:
        names: ids of the good parts.
        statistics: how they were prepared; ``depth * (far - near) + near`` is metres from the plane or surface that was
            fitted to each part, or from the camera with ``preparation.level=false``.
    """

    def __init__(
        self,
        names: Sequence[str],
        scans: Sequence[PreparedScan],
        statistics: Statistics,
        settings: Settings | None = None,
        *,
        seed: int | None = None,
        length: int | None = None,
    ) -> None:
        """Pairs of parts that are prepared already.

        Args:
            names: of the parts, no two alike.
            scans: prepared by `statistics`.
            statistics: of the good parts.
            settings: of synthesis and modality; None: the preset `fast`.
            seed: of the recipes; None: that of the settings.
            length: number of pairs; None: as many as parts.

        Raises:
            DataError: names repeat, or are not as many as the scans, or there are none, or they are of something else.
            SettingsError: `settings` are none, or `seed` or `length` is no number from 0 up.
        """
        self.names = list_of(str, names, "names", DataError)
        scans = list_of(PreparedScan, scans, "scans", DataError)
        expect_kind(Statistics, statistics, "statistics", DataError)
        settings = _settings_or_fast(settings)
        for name, number in (("seed", seed), ("length", length)):
            if number is not None:
                _expect_number(number, name)
        self._places = {name: place for place, name in enumerate(self.names)}
        if not len(self._places) == len(self.names) == len(scans):
            found = f"{len(self.names)}, {len(self._places)} of them different"
            raise DataError(f"names: expected one of its own for each of {len(scans)} parts, found {found}")
        if not self.names:
            raise DataError("names: expected at least one part, found none")
        self.statistics = statistics
        self.settings = settings
        self.seed = self.settings.seed if seed is None else seed
        self._parts = GoodParts.from_scans(scans)
        self._length = len(self._parts) if length is None else length
        self._textures = load_textures(self.settings.synthesis, self._parts)

    @classmethod
    def from_data(
        cls,
        data: Path | str,
        category: str | None = None,
        *,
        settings: Settings | None = None,
        seed: int | None = None,
        length: int | None = None,
        most_parts: int | None = None,
        only: Collection[str] | None = None,
        statistics: Statistics | None = None,
        light: int | None = None,
        depth_format: DepthFormat | None = None,
    ) -> SyntheticPairs:
        """Pairs of the good training parts of a data set, prepared as for training and cached.

        Args:
            data, category, light, depth_format: as for `find_dataset`.
            settings, seed, length: as above.
            most_parts: use no more parts than this, evenly chosen from those of `only`; None: all.
            only: use the parts with these ids; None: all.
            statistics: how to prepare the parts; None: measured on all training parts.

        Raises:
            DataError: something is wrong with the data; every problem is named. Or no part is to be used.
        """
        data = path_of(data, "data")
        if most_parts is not None and not is_whole(most_parts, 1):
            raise DataError(f"most_parts: expected a number from 1 up, or None for all, found {shown(most_parts)}")
        if statistics is not None:
            expect_kind(Statistics, statistics, "statistics", DataError)
        only = None if only is None else set(list_of(str, only, "only", DataError))
        settings = _settings_or_fast(settings)
        expect_textures(settings.synthesis)
        dataset = find_training_data(data, category, settings, light=light, depth_format=depth_format)
        train, _ = train_and_held_out(dataset)
        statistics = statistics or measure_parts(train, settings)
        chosen = [part for part in train if only is None or part.id in only]
        if lacking := sorted((only or set()) - {part.id for part in chosen}):
            raise DataError(f"{dataset.root}: expected good training parts {', '.join(lacking)}, found others only")
        if not chosen:
            raise DataError(f"{dataset.root}: expected ids of good training parts to use, found none")
        if most_parts is not None:
            chosen = chosen[:: -(-len(chosen) // most_parts)]
        scans = [prepare_part(part, statistics, settings.preparation) for part in chosen]
        return cls([part.id for part in chosen], scans, statistics, settings, seed=seed, length=length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if not 0 <= number < self._length:
            raise IndexError(f"pair {number}: expected a number from 0 to {self._length - 1}")
        pair = self.pair(number)
        return {
            "rgb": pair.harmed.rgb[0],
            "depth": pair.harmed.depth[0],
            "mask": pair.harmed.mask[0],
            "good_rgb": pair.rgb[0],
            "good_depth": pair.depth[0],
            "foreground": pair.foreground[0],
            "defective": pair.harmed.mask.any(),
            "number": torch.tensor(number),
        }

    def pair(self, number: int) -> Pair:
        """Pair `number`, with its recipes."""
        recipes = draw_recipes(
            [number], self.settings.synthesis, self.seed, rgb=self.settings.uses_rgb, depth=self.settings.uses_depth,
            textures=self._textures,
        )  # fmt: skip
        return self.again(number, self.names[number % len(self.names)], recipes)

    def again(self, number: int, part: str, recipes: Sequence[Recipe]) -> Pair:
        """A pair by its recipes rather than by its number; `part` is the id of the good part.

        Raises:
            DataError: there is no such part here, or fewer texture pictures than when the recipes were drawn.
        """
        if part not in self._places:
            raise DataError(f"{part}: expected one of the {len(self.names)} good parts here, found no such part")
        needed = 1 + max((int(recipe.texture.max()) for recipe in recipes), default=-1)
        if self._textures is not None and len(self._textures) < needed:
            raise DataError(
                f"{part}: expected the texture pictures that its recipe was drawn with, {needed} at least, found "
                f"{len(self._textures)} ({self.settings.synthesis.texture_folder or 'the parts'})"
            )
        good = self._parts[torch.tensor([self._places[part]])]
        rgb = good.rgb.float() / 255
        harmed = apply_recipes(rgb, good.depth, good.foreground, recipes, self.settings.synthesis, self._textures)
        return Pair(number, part, rgb, good.depth, good.foreground, harmed, tuple(recipes))


def _settings_or_fast(settings: Settings | None) -> Settings:
    settings = make_settings() if settings is None else settings
    expect_kind(Settings, settings, "settings", giver="make_settings")
    return settings


# ------------------------------------------------------------------------------------------- in words and pictures


def describe(pair: Pair, statistics: Statistics) -> list[str]:
    """What was done to a pair, in lines: kinds, depth in mm, share of the part.

    A kind that one modality alone shows has its name behind it. Where the background shows now no millimetres are counted,
    which would be those to the table.
    """
    if not bool(pair.harmed.mask.any()):
        return ["left good"]
    kinds = []
    for recipe in pair.recipes:
        plural = FAMILIES[int(recipe.family)]
        kind = plural.removesuffix("es" if plural.endswith("ches") else "s")
        if not bool(recipe.keep_rgb & recipe.keep_depth):
            kinds.append(kind + " (depth)" * bool(recipe.keep_rgb) + " (RGB)" * bool(recipe.keep_depth))
    through = (pair.harmed.depth >= 1) & (pair.depth < 1)
    change = (pair.harmed.depth - pair.depth) * ~through * ((statistics.far - statistics.near) * 1000)
    nearer, farther = max(-float(change.min()), 0.0), max(float(change.max()), 0.0)
    depth = [f"{value:.1f} mm {way}" for value, way in ((nearer, "nearer"), (farther, "farther")) if value >= 0.05]
    depth += ["background shows"] * bool(through.any())
    share = float(pair.harmed.mask.sum() / pair.foreground.sum().clamp(min=1))
    return [" + ".join(kinds), *([", ".join(depth)] if depth else []), f"{share:.1%} of part"]


def pairs_sheet(rgb: Tensor, depth: Tensor, harmed: Harmed, captions: Sequence[Sequence[str]] = ()) -> pictures.Image:
    """A sheet of pairs (B, C, S, S), good above harmed, one column a pair."""
    return pictures.sheet(
        [
            ("good RGB", as_pictures(rgb)),
            ("harmed RGB", as_pictures(harmed.rgb)),
            ("mask", as_pictures(harmed.mask)),
            ("good depth", as_pictures(1 - depth)),
            ("harmed depth", as_pictures(1 - harmed.depth)),
            ("good relief", _reliefs(depth)),
            ("harmed relief", _reliefs(harmed.depth)),
        ],
        captions=captions,
    )


def _reliefs(depth: Tensor) -> list[pictures.Image]:
    values = depth[:, 0].detach().float().cpu().numpy()
    return [pictures.shaded_relief(one, one < 1) for one in values]


def as_pictures(images: Tensor) -> list[pictures.Image]:
    """(B, C, S, S) in (0, 1) as uint8 pictures."""
    arrays = images.detach().float().nan_to_num().clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    return [(array * 255).round().astype("uint8") for array in arrays]
