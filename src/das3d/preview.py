"""``das3d synth``: a sheet of synthetic defects on one's own parts, and recipes that make any of them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import das3d
from das3d.atomic import write_atomically
from das3d.console import say, warn
from das3d.errors import DataError
from das3d.files import DepthFormat
from das3d.measurement import Statistics
from das3d.pairs import Pair, SyntheticPairs, describe, pairs_sheet
from das3d.pictures import save_picture
from das3d.recipes import Recipe
from das3d.settings import Settings, settings_from_dict
from das3d.synthesis import Harmed

COLUMNS = 8


def preview_pairs(
    data: Path,
    out: Path,
    settings: Settings,
    count: int,
    *,
    category: str | None = None,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
) -> list[Pair]:
    """Harm `count` good parts, evenly chosen, and write ``pairs.png`` and ``recipes.json``.

    Args:
        data, category, light, depth_format: as for `find_dataset`.
        out: folder to write.
        settings: of synthesis; its seed chooses the pairs.
        count: how many.
    """
    source = SyntheticPairs.from_data(
        data, category, settings=settings, most_parts=count, light=light, depth_format=depth_format
    )
    pairs = [source.pair(number) for number in range(count)]
    write_atomically(out / "recipes.json", json.dumps(as_json(source, pairs), indent=1).encode())
    _show(source, pairs, out / "pairs.png")
    command = f"das3d synth DATA{f' --category {category}' if category else ''} --recipe {out / 'recipes.json'} --index N"
    say(f"pairs.png and recipes.json in {out}; {command} makes one again")
    return pairs


def preview_again(
    data: Path,
    recipes: Path,
    out: Path,
    *,
    index: int | None = None,
    category: str | None = None,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
) -> list[Pair]:
    """Make the pairs of a ``recipes.json`` again, all or one, and write ``pairs.png``, or ``pair_N.png``.

    Args:
        data, category, light, depth_format: as for `find_dataset`; where the parts of the recipes are.
        recipes: the file.
        out: folder to write.
        index: which pair; None: all.

    Raises:
        DataError: the file is no such file, has no such pair, or the data lacks its part.
    """
    known = read_json(recipes)
    wanted = [one for one in known["pairs"] if index in (None, one["number"])]
    if not wanted:
        raise DataError(f"{recipes}: expected a pair {index}, found pairs 0 to {len(known['pairs']) - 1}")
    # The parts of all pairs, not of the wanted ones alone: with synthesis.texture = "parts" recipes count on them.
    source = SyntheticPairs.from_data(
        data, category, settings=known["settings"], statistics=known["statistics"],
        only={one["part"] for one in known["pairs"]}, light=light, depth_format=depth_format,
    )  # fmt: skip
    pairs = [source.again(one["number"], one["part"], one["recipes"]) for one in wanted]
    name = "pairs.png" if index is None else f"pair_{index}.png"
    _show(source, pairs, out / name)
    changed = [pair for pair, one in zip(pairs, wanted, strict=True) if pair.fingerprint() != one["fingerprint"]]
    if changed:
        numbers = ", ".join(str(pair.number) for pair in changed)
        warn(f"pairs {numbers}: pixels differ from before; the scans, das3d {known['das3d']} or the machine were others")
    else:
        say(f"the same pixels as before, to the last bit; {name} in {out}")
    return pairs


def as_json(source: SyntheticPairs, pairs: Sequence[Pair]) -> dict[str, Any]:
    """All that makes the pairs again from the scans: settings, statistics, recipes."""
    return {
        "das3d": das3d.__version__,
        "seed": source.seed,
        "settings": source.settings.model_dump(),
        "statistics": source.statistics.to_dict(),
        "pairs": [
            {
                "number": pair.number,
                "part": pair.part,
                "what": describe(pair, source.statistics),
                "fingerprint": pair.fingerprint(),
                "recipes": [recipe.to_dicts()[0] for recipe in pair.recipes],
            }
            for pair in pairs
        ],
    }


def read_json(path: Path) -> dict[str, Any]:
    """What `as_json` gave, with settings, statistics and recipes as such.

    Raises:
        DataError: it is no such file, or one of another version.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        known["settings"] = settings_from_dict(known["settings"], source=str(path))
        known["statistics"] = Statistics.from_dict(known["statistics"])
        known["pairs"] = [
            {**one, "recipes": [Recipe.from_dicts([recipe]) for recipe in one["recipes"]]} for one in known["pairs"]
        ]
        for one in known["pairs"]:
            one["part"], one["number"], one["fingerprint"]
        known["das3d"]
    except FileNotFoundError:
        raise DataError(f"{path}: expected recipes, found no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected recipes that das3d synth of this version wrote, found {type(error).__name__}: {error}"
        ) from None
    return dict(known)


def _show(source: SyntheticPairs, pairs: Sequence[Pair], path: Path) -> None:
    sheets = []
    for start in range(0, len(pairs), COLUMNS):
        some = pairs[start : start + COLUMNS]
        captions = [[f"{pair.number}  {pair.part}", *describe(pair, source.statistics)] for pair in some]
        harmed = Harmed(
            torch.cat([pair.harmed.rgb for pair in some]),
            torch.cat([pair.harmed.depth for pair in some]),
            torch.cat([pair.harmed.mask for pair in some]),
        )
        good_rgb, good_depth = torch.cat([pair.rgb for pair in some]), torch.cat([pair.depth for pair in some])
        sheets.append(pairs_sheet(good_rgb, good_depth, harmed, captions))
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(s, ((0, 12), (0, width - s.shape[1]), (0, 0)), constant_values=245) for s in sheets]
    save_picture(path, np.vstack(padded))
    for pair in pairs:
        say(f"{pair.number:>3}  {pair.part}: {'; '.join(describe(pair, source.statistics))}")
