"""Many trainings with their evaluations, under one recipe: categories x modalities x seeds, and variants of the recipe.

Read `benchmark` first. Each run has a folder of its own and says itself whether it is finished, so a benchmark that was
stopped goes on where it was, and more seeds, categories or variants can be added later.
"""

from __future__ import annotations

import json
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from das3d.atomic import write_atomically
from das3d.choices import Modality
from das3d.console import say
from das3d.datasets import expect_outside, find_categories, find_dataset
from das3d.detector import MODEL_FILE, load
from das3d.errors import DataError, SettingsError, one_line
from das3d.evaluation import evaluate
from das3d.files import DepthFormat
from das3d.layouts import light_of
from das3d.metrics import FIGURES
from das3d.run import differences, train
from das3d.settings import Settings, flatten, settings_from_dict

RECIPE_FILE = "benchmark.json"
NOT_RUN = "not run yet"  # the error of a run that nobody has begun
METRICS_FILE = "metrics.json"
ERROR_FILE = "error.txt"


@dataclass(frozen=True)
class Variant:
    """A recipe under a name.

    Attributes:
        name: "" where a benchmark has only one.
        settings: modality and seed in them are replaced by those of each run.
        published: metric -> figure that somebody has published for such a variant.
    """

    name: str
    settings: Settings
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training with its evaluation, in a folder of its own."""

    variant: str
    category: str
    modality: Modality
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return " ".join([*filter(None, [self.variant]), self.category, self.modality, f"seed {self.seed}"])

    @property
    def finished(self) -> bool:
        return (self.folder / MODEL_FILE).is_file() and (self.folder / "evaluation" / METRICS_FILE).is_file()


@dataclass(frozen=True)
class Outcome:
    """What has come of a run so far: metrics, or why there are none."""

    run: Run
    metrics: dict[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be run, and how.

    Attributes:
        data: root of the data set.
        out: one folder for all runs and tables.
        variants: recipes by name.
        categories, modalities, seeds: every combination is run with every variant.
        budget: seconds for each training; None: as many iterations as the settings say.
        device, light, depth_format: as for `das3d.train`.
    """

    data: Path
    out: Path
    variants: tuple[Variant, ...]
    categories: tuple[str, ...]
    modalities: tuple[Modality, ...] = ("rgb+depth",)
    seeds: tuple[int, ...] = (0,)
    budget: float | None = None
    device: str = "auto"
    light: int | None = None
    depth_format: DepthFormat | None = None

    def runs(self) -> list[Run]:
        """All runs, one seed after the other, so that tables are early complete, if coarse."""
        return [
            self.run(variant.name, category, modality, seed)
            for seed in self.seeds
            for category in self.categories
            for modality in self.modalities
            for variant in self.variants
        ]

    def run(self, variant: str, category: str, modality: Modality, seed: int) -> Run:
        folder = self.out / "runs" / category / modality / f"seed{seed}"
        return Run(variant, category, modality, seed, folder / variant if variant else folder)

    def settings_of(self, run: Run) -> Settings:
        values = next(variant.settings for variant in self.variants if variant.name == run.variant).model_dump()
        return settings_from_dict(values | {"modality": run.modality, "seed": run.seed})

    def recipe(self) -> dict[str, Any]:
        """All that must stay the same for figures to belong into one table, as plain values."""
        return {
            "data": str(self.data.resolve()),
            "budget": self.budget,
            "light": light_of(self.light),
            "depth_format": None if self.depth_format is None else asdict(self.depth_format),
            "variants": {variant.name: _recipe_of(variant.settings) for variant in self.variants},
        }


def make_plan(data: Path | str, out: Path | str, *, categories: Sequence[str] | None = None, **options: Any) -> Plan:
    """A plan for all categories of a data set, or for some.

    Raises:
        DataError: there is no such category.
    """
    there = find_categories(data)
    if unknown := [name for name in categories or () if name not in there]:
        raise DataError(f"{data}: expected categories {', '.join(unknown)}, found {', '.join(there) or 'none'}")
    if not there:
        raise DataError(f"{data}: expected a data set, found none")
    return Plan(Path(data), Path(out), categories=tuple(categories or there), **options)


def benchmark(plan: Plan, *, cluster: Any = None) -> list[Outcome]:
    """Train and evaluate every run of the plan that is not finished, and write the tables after each.

    A run that fails is reported and does not hold up the others.

    Args:
        plan: by `make_plan`.
        cluster: a `das3d.cluster.Cluster` that shares the runs among machines; here, one after the other, where None.

    Returns:
        The outcomes of all runs in the folder, those of earlier plans as well.

    Raises:
        SettingsError: the folder holds a benchmark of another recipe.
        DataError: the folder lies in the data.
    """
    from das3d.benchmark import tables

    for category in plan.categories:
        expect_outside(plan.out, plan.data, category)
    told, known = _keep_recipe(plan)
    todo = [run for run in plan.runs() if not run.finished]
    count = len(plan.runs())
    say(f"{count} runs, {count - len(todo)} of them finished before")
    for done, outcome in enumerate(_outcomes(plan, todo, cluster), start=count - len(todo) + 1):
        say(f"[{done}/{count}] {outcome.run.name}: {tables.in_short(outcome)}")
        tables.write(told, [outcome_of(run) for run in known])
    outcomes = [outcome_of(run) for run in known]
    tables.write(told, outcomes, pictures=True)
    return outcomes


def _outcomes(plan: Plan, runs: Sequence[Run], cluster: Any) -> Iterator[Outcome]:
    work = partial(finish, plan)
    if cluster is None:
        yield from map(work, runs)
        return
    for index, outcome, error in cluster.map(work, runs, whole_machine=True):
        yield outcome if outcome is not None else _failed(runs[index], error, error)


def finish(plan: Plan, run: Run) -> Outcome:
    """Train and evaluate one run, going on where it stopped. What goes wrong comes back in the outcome."""
    try:
        if not (run.folder / MODEL_FILE).is_file():
            settings = plan.settings_of(run)
            # Before hours are spent: without test parts there is nothing to compare.
            find_dataset(
                plan.data, run.category, needs="test", light=plan.light, depth_format=plan.depth_format,
                rgb=settings.uses_rgb, depth=settings.uses_depth,
            )  # fmt: skip
            train(
                plan.data, run.folder, category=run.category, settings=settings, device=plan.device,
                budget=plan.budget, resume=True, light=plan.light, depth_format=plan.depth_format,
            )  # fmt: skip
        detector = load(run.folder, plan.device)
        evaluate(detector, plan.data, run.folder / "evaluation", category=run.category)
    except Exception as error:  # whatever it is, the other runs are not to blame
        return _failed(run, _first_line(error), traceback.format_exc())
    (run.folder / ERROR_FILE).unlink(missing_ok=True)
    return outcome_of(run)


def outcome_of(run: Run) -> Outcome:
    """What the run's folder says."""
    file = run.folder / "evaluation" / METRICS_FILE
    if run.finished:
        return Outcome(run, json.loads(file.read_text(encoding="utf-8")))
    failed = run.folder / ERROR_FILE
    return Outcome(run, error=failed.read_text(encoding="utf-8").split("\n", 1)[0] if failed.is_file() else NOT_RUN)


def _failed(run: Run, line: str, details: str) -> Outcome:
    write_atomically(run.folder / ERROR_FILE, f"{line}\n\n{details}\n".encode())
    return Outcome(run, error=line)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    more = f" (and {len(lines) - 1} more lines)" if len(lines) > 1 else ""
    kind = "" if type(error).__module__.startswith("das3d") else f"{type(error).__name__}: "
    return one_line(kind + lines[0], most=300) + more


def _keep_recipe(plan: Plan) -> tuple[Plan, list[Run]]:
    # Refuses a folder of another recipe; keeps this one with all runs that the folder has been asked for. Gives those, and
    # the plan with the variants of earlier ones too, of which the tables tell.
    file = plan.out / RECIPE_FILE
    recipe, published = plan.recipe(), {variant.name: variant.published for variant in plan.variants}
    earlier: tuple[Variant, ...] = ()
    asked: list[Any] = [[run.variant, run.category, run.modality, run.seed] for run in plan.runs()]
    if file.is_file():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            before = known["recipe"]
            asked = [*known["runs"], *(run for run in asked if run not in known["runs"])]
            shared = {name: before["variants"][name] for name in recipe["variants"] if name in before["variants"]}
            found = differences(_plain(before | {"variants": shared}), _plain(recipe))
            published = known.get("published", {}) | published
            earlier = tuple(
                Variant(name, settings_from_dict(values, source=str(file)), published.get(name, {}))
                for name, values in before["variants"].items()
                if name not in recipe["variants"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{file}: expected the recipe of a benchmark, found {one_line(error)}") from None
        if found:
            raise SettingsError(
                f"{file}: expected the recipe that this benchmark began with, found {found}; use a new --out"
            )
        recipe["variants"] = before["variants"] | recipe["variants"]
    kept = {"recipe": recipe, "published": published, "runs": asked}
    write_atomically(file, json.dumps(kept, indent=2).encode())
    return replace(plan, variants=(*earlier, *plan.variants)), [plan.run(*which) for which in asked]


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    # "variants..drop" for a benchmark without variants would be no help to anybody.
    variants = {f"{name} " if name else "": settings for name, settings in recipe["variants"].items()}
    values = {prefix + key: value for prefix, settings in variants.items() for key, value in flatten(settings).items()}
    return {key: value for key, value in recipe.items() if key != "variants"} | values


def _recipe_of(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"modality", "seed"})


def read_variants(file: Path) -> tuple[dict[str, list[str]], dict[str, dict[str, float]]]:
    """Variants in a TOML file: what each sets, and the figures that somebody has published for it.

        [some-name]
        set = ["synthesis.drop=0"]
        published = { i_auroc = 0.959 }

    Raises:
        SettingsError: the file is missing or says something else.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{file}: expected a file of variants, found no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{file}: expected variants as TOML, found {error}") from None
    sets: dict[str, Any] = {}
    published: dict[str, Any] = {}
    for name, table in tables.items():
        known = table if isinstance(table, dict) else {}
        sets[name], published[name] = known.get("set"), known.get("published", {})
        fits = isinstance(sets[name], list) and all(isinstance(change, str) for change in sets[name])
        if not fits or known.keys() - {"set", "published"} or not isinstance(published[name], dict):
            raise SettingsError(f'{file}: {name}: expected set = ["section.name=value", ...], found {one_line(table)}')
        for figure, value in published[name].items():
            if figure not in FIGURES or type(value) not in (int, float) or not 0 <= value <= 1:
                raise SettingsError(
                    f"{file}: {name}: expected published figures of {', '.join(FIGURES)} from 0 to 1, found "
                    f"{one_line(figure)} = {one_line(repr(value))}"
                )
        if not name or set(name) & set('/\\:*?"<>|') or name.startswith("."):
            raise SettingsError(f"{file}: expected names that can be folders, found {name!r}")
    if not sets:
        raise SettingsError(f"{file}: expected at least one variant, found none")
    return sets, published
