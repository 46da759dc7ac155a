"""Figures that others have published (`published.toml`), and the number of scans that they rest on."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

MEAN = "mean"
SAME = "published protocol"
OTHER = "not the published protocol"


@dataclass(frozen=True)
class Published:
    """What the literature says of one data set.

    Attributes:
        name: of the data set, as its authors write it.
        source: of the figures.
        train, test: number of scans in each category.
        figures: metric -> modality -> method -> category or "mean" -> value, all as printed.
    """

    name: str
    source: str
    train: dict[str, int]
    test: dict[str, int]
    figures: dict[str, dict[str, dict[str, dict[str, float]]]]

    def rows(self, metric: str, modality: str) -> dict[str, dict[str, float]]:
        """Method -> category -> value; nothing where the paper has no such table."""
        return self.figures.get(metric, {}).get(modality, {})

    def protocol(self, category: str, train: int, test: int) -> str:
        """One line that says whether figures of a category in `test`, from so many scans, may stand beside its own."""
        if (train, test) == (self.train[category], self.test[category]):
            return f"{SAME}: {test} test parts, {train} training parts"
        return f"{OTHER}: {test} of {self.test[category]} test parts, {train} of {self.train[category]} training parts"


@cache
def published_for(layout: str) -> Published | None:
    """The figures for a data set in this layout ("mvtec3d", "eyecandies"), None where the paper has none."""
    text = resources.files("das3d.benchmark").joinpath("published.toml").read_text(encoding="utf-8")
    known = tomllib.loads(text)
    if layout not in known or layout == "source":
        return None
    return _parse(known[layout], known["source"])


def _parse(table: dict[str, Any], source: str) -> Published:
    categories = table["categories"]
    figures = {
        metric: {
            modality: {method: dict(zip([*categories, MEAN], row, strict=True)) for method, row in methods.items()}
            for modality, methods in modalities.items()
        }
        for metric, modalities in table.items()
        if isinstance(modalities, dict)
    }
    counts = {name: dict(zip(categories, table[name], strict=True)) for name in ("train", "test")}
    return Published(table["name"], source, counts["train"], counts["test"], figures)
