"""The random choices of synthetic defects, all drawn before anything is made of them.

A `Recipe` makes the same pixels again from the same good parts, alone or in any batch, and goes through JSON:

    recipe = draw_recipe(len(rgb), settings, generator)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from das3d._bundle import Bundle
from das3d.arguments import expect_kind, is_whole, shown
from das3d.errors import SettingsError
from das3d.settings import SynthesisSettings

# Saved recipes and compiled code name a family by its number, so others are added at the end.
FAMILIES = ("blobs", "spots", "scratches", "shifts", "cuts", "warps")
BLOB, SPOT, SCRATCH, SHIFT, CUT, WARP = range(len(FAMILIES))
OFFSET = 0.15  # largest displacement of a shifted region along either axis, before it is turned, as a share of the side


@dataclass(frozen=True)
class Recipe(Bundle):
    """How to make B synthetic defects; every member has one entry a pair.

    Attributes:
        seed: int64, of the noise fields.
        family: index into `FAMILIES`.
        periods: (B, 2) Perlin periods across the image along each axis.
        angle: turn of noise and shapes, radians.
        threshold: tp of eq. (1).
        centre: uniform number that chooses the centre of a single shape among the part's pixels.
        at_rim: whether a cut lies along the outline.
        radius: of spots and cuts, a quarter of the length of scratches, as a share of the side.
        width: half of that of scratches, as a share of the side.
        phase: of the bends of scratches, radians.
        aspect: how much longer than wide a shape is.
        sigma: of eq. (3), as a share of the side.
        alpha: (B, 2) skew of eq. (3).
        magnitude: pz of eq. (6).
        sign: -1 concave, +1 convex, 0 both at once, of the families with a single shape.
        beta: of eq. (8).
        texture: index of the texture picture, where textures are given.
        colour: (B, 2, 3) the two colours of a generated texture.
        own_colour: share of the part's own colour in those.
        own_hue: how far those have the part's own hue; 1: they differ from it in brightness alone.
        edge: standard deviation of the blur of the defect's edge, in depth too where it is moved or missing, pixels.
        shade: how strongly relief shades RGB instead of a texture; 0: texture.
        lamp: the side that the light of shaded relief comes from, radians.
        offset: (B, 2) displacement of shifted regions, as a share of the side.
        turned: whether shifted regions are turned as well.
        keep_rgb, keep_depth: dI and dZ of eq. (12): True leaves that modality unharmed.
    """

    seed: Tensor
    family: Tensor
    periods: Tensor
    angle: Tensor
    threshold: Tensor
    centre: Tensor
    at_rim: Tensor
    radius: Tensor
    width: Tensor
    phase: Tensor
    aspect: Tensor
    sigma: Tensor
    alpha: Tensor
    magnitude: Tensor
    sign: Tensor
    beta: Tensor
    texture: Tensor
    colour: Tensor
    own_colour: Tensor
    own_hue: Tensor
    edge: Tensor
    shade: Tensor
    lamp: Tensor
    offset: Tensor
    turned: Tensor
    keep_rgb: Tensor
    keep_depth: Tensor

    def spare(self, whole: Tensor) -> Recipe:
        """The recipe with both modalities left unharmed in the pairs that `whole` (B,) marks."""
        return replace(self, keep_rgb=self.keep_rgb | whole, keep_depth=self.keep_depth | whole)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dict a pair, fit for JSON."""
        return [{field.name: getattr(self, field.name)[i].tolist() for field in fields(self)} for i in range(len(self))]

    @classmethod
    def from_dicts(cls, dicts: list[dict[str, Any]]) -> Recipe:
        """The recipe that `to_dicts` wrote.

        Raises:
            ValueError: an entry has another shape than `to_dicts` gives it, or a value that nothing can be made of.
            KeyError: one is missing.
        """
        whole = {"seed", "family", "texture"}
        flags = {"at_rim", "turned", "keep_rgb", "keep_depth"}
        shapes = {"periods": (2,), "alpha": (2,), "offset": (2,), "colour": (2, 3)}
        positive = {"periods", "radius", "aspect", "sigma"}

        def column(name: str) -> Tensor:
            dtype = torch.int64 if name in whole else torch.bool if name in flags else torch.float32
            values = torch.tensor([one[name] for one in dicts], dtype=dtype)
            if values.shape[1:] != shapes.get(name, ()):
                raise ValueError(f"{name} has the shape {tuple(values.shape[1:])}, expected {shapes.get(name, ())}")
            if not values.isfinite().all() or (name in positive and not (values > 0).all()):
                raise ValueError(f"{name} is {values.tolist()}, expected finite numbers{' above 0' * (name in positive)}")
            if name in whole and (values < 0).any():
                raise ValueError(f"{name} is {values.tolist()}, expected 0 or more")
            if name == "family" and (values >= len(FAMILIES)).any():
                raise ValueError(f"family is {values.tolist()}, expected 0 to {len(FAMILIES) - 1}")
            return values

        return cls(**{field.name: column(field.name) for field in fields(cls)})


def draw_recipe(
    batch: int,
    settings: SynthesisSettings,
    generator: torch.Generator,
    *,
    rgb: bool = True,
    depth: bool = True,
    textures: Sized | None = None,
) -> Recipe:
    """Draw all random numbers for `batch` pairs.

    Args:
        settings: ranges and frequencies.
        generator: on the CPU, so that a seed gives the same recipe whatever the device.
        rgb, depth: which modalities are used; an unused one counts as unharmed.
        textures: the pictures there are to choose from; their number counts.

    Raises:
        SettingsError: what is given is none of these, or there is no pair to draw for or no picture to choose.
    """
    if not is_whole(batch, 1):
        raise SettingsError(f"batch: expected a number of pairs from 1 up, found {shown(batch)}")
    expect_kind(SynthesisSettings, settings, "settings", giver="Settings.synthesis")
    expect_kind(torch.Generator, generator, "generator", giver="torch.Generator()")
    if textures is not None and not (isinstance(textures, Sized) and len(textures)):
        found = "none" if isinstance(textures, Sized) else shown(textures)
        raise SettingsError(f"textures: expected one picture or more, or None, found {found}")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    def log_uniform(low: float, high: float) -> Tensor:
        low = max(low, 1e-6)
        return low * (high / low) ** torch.rand(batch, generator=generator)

    weights = torch.tensor([getattr(settings, family) for family in FAMILIES])
    octave = torch.randint(0, settings.perlin_octaves + 1, (batch, 2), generator=generator)
    # Numbers that no family needs together are drawn as one: cuts have no lamp, shifts no width.
    return Recipe(
        seed=torch.randint(0, 2**31, (batch,), generator=generator),
        family=torch.multinomial(weights, batch, replacement=True, generator=generator),
        periods=2.0**octave,
        angle=uniform(-math.pi / 2, math.pi / 2),
        threshold=uniform(settings.threshold_low, settings.threshold_high),
        centre=(place := uniform(0, 1, 2))[:, 0],
        at_rim=place[:, 1] < 0.5,
        phase=6.3 * place[:, 0],
        lamp=2 * math.pi * place[:, 1],
        radius=log_uniform(settings.spot_low, settings.spot_high),
        aspect=log_uniform(1.0, 3.0),
        sigma=log_uniform(settings.sigma_low, settings.sigma_high),
        alpha=uniform(-settings.skew, settings.skew, 2),  # eq. (4)
        magnitude=uniform(settings.magnitude_low, settings.magnitude_high),
        sign=torch.randint(-1, 2, (batch,), generator=generator).float(),
        beta=(opacity := uniform(0, 1)) * settings.opacity_rest,
        width=(0.5 + 1.2 * opacity) / 128,  # lines of one to three and a half pixels at 128
        turned=opacity > 2 / 3,
        texture=torch.randint(0, 1 if textures is None else len(textures), (batch,), generator=generator),
        colour=uniform(0, 1, 2, 3),
        own_colour=uniform(0, settings.own_colour),
        own_hue=(uniform(0, 1) < settings.own_hue).float(),
        edge=uniform(0, settings.edge_high),
        shade=uniform(0, 1) * (uniform(0, 1) < settings.shaded),
        offset=uniform(-OFFSET, OFFSET, 2),
        keep_rgb=(uniform(0, 1) < settings.drop) if rgb else torch.ones(batch, dtype=torch.bool),
        keep_depth=(uniform(0, 1) < settings.drop) if depth else torch.ones(batch, dtype=torch.bool),
    )


def draw_rounds(
    batch: int,
    settings: SynthesisSettings,
    generator: torch.Generator,
    *,
    rgb: bool = True,
    depth: bool = True,
    textures: Sized | None = None,
) -> list[Recipe]:
    """Recipes for all of ``settings.rounds``, one a round; a share of `harmless` pairs is left whole in every one.

    Arguments as for `draw_recipe`.
    """
    whole = torch.rand(batch, generator=generator) < settings.harmless
    return [
        draw_recipe(batch, settings, generator, rgb=rgb, depth=depth, textures=textures).spare(whole)
        for _ in range(settings.rounds)
    ]
