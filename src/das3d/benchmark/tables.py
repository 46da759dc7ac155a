"""What a benchmark found, beside what others have published: Markdown, CSV and pictures.

One table for each metric and modality. Figures of a category are means over seeds with the sample standard deviation; the
mean of a row is taken over categories first and then over those seeds that finished all of them.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das3d.atomic import write_atomically
from das3d.benchmark import NOT_RUN
from das3d.benchmark.published import MEAN, OTHER, Published, published_for
from das3d.console import duration, figure, sizes_text, warn
from das3d.errors import MissingPackageError
from das3d.metrics import FIGURES
from das3d.settings import Settings

if TYPE_CHECKING:
    from das3d.benchmark import Outcome, Plan

DEFINITIONS = {
    "i_auroc": "area under the ROC curve over the scores of the parts",
    "p_auroc": "area under the ROC curve over all pixels of a category",
    "aupro_30": "mean overlap with each defect region against the false-positive rate of pixels, its area up to a rate of "
    "0.3 divided by 0.3; every distinct score is a threshold",
    "aupro_10": "the same up to a rate of 0.1",
    "aupro_05": "the same up to a rate of 0.05",
    "aupro_01": "the same up to a rate of 0.01",
}
RUN_COLUMNS = (
    "variant", "category", "modality", "seed", *FIGURES, "state", "protocol", "test_good", "test_defective",
    "training_parts", "minutes", "iterations", "map_size", "machine", "device", "precision", "torch", "das3d",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A mean over `count` seeds and its sample standard deviation; None with a single seed."""

    mean: float
    deviation: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")


@dataclass(frozen=True)
class Row:
    """One method: its figure in each category, and their mean where it has them all."""

    name: str
    ours: bool
    figures: dict[str, Figure | None]
    mean: Figure | None
    published: float | None = None  # for a variant: what the literature found


@dataclass(frozen=True)
class Table:
    """One metric with one modality: rows of this benchmark first, published ones after them."""

    metric: str
    modality: str
    categories: tuple[str, ...]
    rows: tuple[Row, ...]
    complete: bool  # whether the categories are all of the published data set's

    @property
    def has_mean(self) -> bool:
        return len(self.categories) > 1


def write(plan: Plan, outcomes: Sequence[Outcome], *, pictures: bool = False) -> None:
    """Write ``benchmark.md``, ``runs.csv`` and one CSV table a metric; with `pictures` one PNG a metric as well."""
    tables = make_tables(plan, outcomes)
    write_atomically(plan.out / "runs.csv", _csv(RUN_COLUMNS, map(_run_row, outcomes)))
    for metric in FIGURES:
        chosen = [table for table in tables if table.metric == metric]
        write_atomically(plan.out / f"{metric}.csv", _csv(_CELLS, (row for table in chosen for row in _cells(table))))
    shown = []
    if pictures and any(outcome.metrics for outcome in outcomes):
        try:
            shown = _draw(plan.out, tables, _note(outcomes))
        except MissingPackageError as error:
            warn(f"no pictures: {error}")
    write_atomically(plan.out / "benchmark.md", markdown(plan, outcomes, tables, shown).encode())


def make_tables(plan: Plan, outcomes: Sequence[Outcome]) -> list[Table]:
    """Every metric with every modality that has been run."""
    modalities = list(dict.fromkeys(outcome.run.modality for outcome in outcomes))
    categories = tuple(dict.fromkeys(outcome.run.category for outcome in outcomes))
    variants = {variant.name: variant for variant in plan.variants}
    names = list(dict.fromkeys(outcome.run.variant for outcome in outcomes))
    known = _published(outcomes)
    presets = {outcome.run.variant: outcome.metrics["preset"] for outcome in outcomes if outcome.metrics}
    tables = []
    for metric in FIGURES:
        for modality in modalities:
            rows = []
            for name in names:
                values: dict[str, dict[int, float]] = {category: {} for category in categories}
                for outcome in outcomes:
                    run = outcome.run
                    if outcome.metrics and (run.variant, run.modality) == (name, modality):
                        value = outcome.metrics[metric]
                        values[run.category] |= {} if value is None else {run.seed: value}
                # What is published of variants is of both modalities.
                told = name in variants and modality == "rgb+depth"
                found = variants[name].published.get(metric) if told else None
                rows.append(
                    _our_row(f"das3d, {name or presets.get(name, plan.variants[0].settings.preset)}", values, found)
                )
            if known is not None:
                rows += [_published_row(*row, categories) for row in known.rows(metric, modality).items()]
            complete = known is not None and set(known.test) == set(categories)
            tables.append(Table(metric, modality, categories, tuple(rows), complete))
    return tables


def _our_row(name: str, values: Mapping[str, Mapping[int, float]], published: float | None) -> Row:
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in values.values())))
    means = [statistics.fmean(of_seed[seed] for of_seed in values.values()) for seed in seeds]
    figures = {category: Figure.of(list(of_seed.values())) for category, of_seed in values.items()}
    return Row(name, True, figures, Figure.of(means), published)


def _published_row(name: str, values: Mapping[str, float], categories: Sequence[str]) -> Row:
    figures = {category: Figure(values[category]) if category in values else None for category in categories}
    if set(values) - {MEAN} == set(categories):
        mean: Figure | None = Figure(values[MEAN])  # as printed
    else:
        there = [figure.mean for figure in figures.values() if figure]
        mean = Figure(statistics.fmean(there)) if len(there) == len(categories) else None
    return Row(name, False, figures, mean)


def _published(outcomes: Sequence[Outcome]) -> Published | None:
    # By layout and name: another data set in the same layout has nothing to do with the published figures.
    for outcome in outcomes:
        known = published_for(outcome.metrics["layout"]) if outcome.metrics else None
        if known and outcome.run.category in known.test:
            return known
    return None


def in_short(outcome: Outcome) -> str:
    """One line about a run."""
    if outcome.metrics is None:
        return f"failed: {outcome.error}"
    shown = ", ".join(f"{FIGURES[name]} {figure(outcome.metrics[name])}" for name in ("i_auroc", "p_auroc", "aupro_30"))
    return f"{shown}; trained {outcome.metrics['training']['minutes']:.1f} min"


def protocol_of(outcome: Outcome) -> str:
    """Whether a run's figures may stand beside published ones; "" where there are none or it has not finished."""
    known = _published([outcome])
    if known is None or outcome.metrics is None:
        return ""
    metrics = outcome.metrics
    return known.protocol(outcome.run.category, metrics["training"]["parts"], metrics["n_good"] + metrics["n_defective"])


# ------------------------------------------------------------------------------------------------------------ Markdown


def markdown(plan: Plan, outcomes: Sequence[Outcome], tables: Sequence[Table], pictures: Sequence[str] = ()) -> str:
    """The whole report as one Markdown text."""
    lines = [f"# Benchmark of {plan.data.resolve().name}", "", *_conditions(plan, outcomes), ""]
    for metric, title in FIGURES.items():
        lines += [f"## {title}", "", f"{title}: {DEFINITIONS[metric]}.", ""]
        for table in tables:
            if table.metric == metric:
                lines += [f"### {title}, {table.modality}", "", *_markdown_table(table), ""]
        if f"{metric}.png" in pictures:
            lines += [f"![{title} of every method]({metric}.png)", ""]
    return "\n".join([*lines, "## Runs", "", *_run_lines(outcomes), ""])


def _conditions(plan: Plan, outcomes: Sequence[Outcome]) -> list[str]:
    finished = [outcome for outcome in outcomes if outcome.metrics]
    known = _published(outcomes)
    lines = [f"{len(finished)} of {len(outcomes)} runs are finished.", ""]
    protocols = {outcome.run.category: protocol_of(outcome) for outcome in finished}
    for category, protocol in protocols.items():
        if protocol:
            lines.append(f"- {category}: {protocol.replace(OTHER, f'**{OTHER}**')}")
    if known is not None:
        lines.append(
            f"- rows without das3d are published figures ({known.source}) of the whole test sets of {known.name}; "
            "that paper works at 256 x 256 pixels"
        )
        if any(OTHER in protocol for protocol in protocols.values()):
            lines.append("- where the protocol differs, they are a guide and no like for like")
    lines.append("- ours: mean over seeds ± sample standard deviation; - where nothing has been found or published")
    sizes = sorted({tuple(size) for outcome in finished for size in outcome.metrics["map_size"]})  # type: ignore[index]
    if sizes:
        lines.append(f"- maps are compared with the ground truth at the parts' own size: {sizes_text(sizes)}")
    budget = f"{duration(plan.budget)} for each run" if plan.budget else "as many iterations as the settings say"
    lines.append(f"- training: {budget}")
    for variant in plan.variants:
        name = f"settings of {variant.name}" if variant.name else "settings"
        lines.append(f"- {name}: {_settings_in_words(variant.settings)}")
    for name in ("machine", "device", "precision"):
        values = sorted({str(outcome.metrics["training"][name]) for outcome in finished})  # type: ignore[index]
        lines += [f"- {name}: {'; '.join(values)}"] if values else []
    versions = sorted({f"das3d {o.metrics['das3d']}, torch {o.metrics['training']['torch']}" for o in finished})  # type: ignore[index]
    return [*lines, *([f"- versions: {'; '.join(versions)}"] if versions else [])]


def _settings_in_words(settings: Settings) -> str:
    changed = "".join(f", {name}={json.dumps(value)}" for name, value, _ in settings.changed())
    return f"preset {settings.preset}{changed}"


def _markdown_table(table: Table) -> list[str]:
    mean = "mean" if table.complete else f"mean of these {len(table.categories)}"
    columns = ["method", *table.categories, *([mean] if table.has_mean else [])]
    published = any(row.published is not None for row in table.rows)
    columns += ["published mean of such a variant"] if published else []
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in table.rows:
        cells = [row.figures[category] for category in table.categories] + ([row.mean] if table.has_mean else [])
        texts = ["-" if cell is None else str(cell) for cell in cells]
        name = _name(row)
        if row.ours:
            name, texts = f"**{name}**", [text if text == "-" else f"**{text}**" for text in texts]
        texts += [("-" if row.published is None else f"{row.published:.3f}")] if published else []
        lines.append("| " + " | ".join([name, *texts]) + " |")
    return lines


def _name(row: Row) -> str:
    counts = sorted({figure.count for figure in row.figures.values() if figure})
    if not row.ours or not counts:
        return row.name
    return f"{row.name} ({' to '.join(map(str, counts[:: max(len(counts) - 1, 1)]))} seed{'s' if counts[-1] > 1 else ''})"


def _run_lines(outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        "| run | state | " + " | ".join(FIGURES.values()) + " | test parts (good + defective) | minutes | iterations |"
    ]
    lines.append("|---" * (len(FIGURES) + 5) + "|")
    for outcome in outcomes:
        metrics = outcome.metrics
        if metrics is None:
            cells = [NOT_RUN if outcome.error == NOT_RUN else f"failed: {outcome.error}"]
            cells += [""] * (len(FIGURES) + 3)
        else:
            facts = metrics["training"]
            cells = ["finished", *(figure(metrics[name]) for name in FIGURES)]
            cells += [
                f"{metrics['n_good']} + {metrics['n_defective']}",
                f"{facts['minutes']:.1f}",
                str(facts["iterations"]),
            ]
        lines.append("| " + " | ".join([outcome.run.name, *(cell.replace("|", "/") for cell in cells)]) + " |")
    return lines


# ------------------------------------------------------------------------------------------------------ CSV and pictures

_CELLS = ("modality", "method", "source", "category", "value", "deviation", "seeds")


def _cells(table: Table) -> Iterable[dict[str, Any]]:
    for row in table.rows:
        source = "this benchmark" if row.ours else "published"
        figures = [*row.figures.items(), *([(MEAN, row.mean)] if table.has_mean else [])]
        for category, mean in figures:
            if mean is not None:
                deviation = "" if mean.deviation is None else f"{mean.deviation:.4f}"
                digits = f"{mean.mean:.4f}" if row.ours else f"{mean.mean:.3f}"
                values = (table.modality, row.name, source, category, digits, deviation, mean.count if row.ours else "")
                yield dict(zip(_CELLS, values, strict=True))
        if row.published is not None:
            values = (table.modality, row.name, "published for such a variant", MEAN, f"{row.published:.3f}", "", "")
            yield dict(zip(_CELLS, values, strict=True))


def _run_row(outcome: Outcome) -> dict[str, Any]:
    run, metrics = outcome.run, outcome.metrics
    row = {"variant": run.variant, "category": run.category, "modality": run.modality, "seed": run.seed}
    if metrics is None:
        return row | {"state": outcome.error}
    facts = metrics["training"]
    return row | {
        **{name: "" if metrics[name] is None else f"{metrics[name]:.6f}" for name in FIGURES},
        "state": "finished", "protocol": protocol_of(outcome), "test_good": metrics["n_good"],
        "test_defective": metrics["n_defective"], "training_parts": facts["parts"],
        "map_size": sizes_text(metrics["map_size"]),
        **{name: facts[name] for name in RUN_COLUMNS if name in facts},
    }  # fmt: skip


def _note(outcomes: Sequence[Outcome]) -> str:
    others = dict.fromkeys(outcome.run.category for outcome in outcomes if OTHER in protocol_of(outcome))
    return f"{', '.join(others)}: {OTHER}" if others else ""


def _draw(out: Path, tables: Sequence[Table], note: str) -> list[str]:
    from das3d.benchmark.picture import draw

    names = []
    for metric in FIGURES:
        chosen = [table for table in tables if table.metric == metric and any(row.ours and _has(row) for row in table.rows)]
        if chosen:
            draw(out / f"{metric}.png", FIGURES[metric], chosen, note)
            names.append(f"{metric}.png")
    return names


def _has(row: Row) -> bool:
    return any(row.figures.values())


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
