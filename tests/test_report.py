"""The report: one file, nothing from outside, the same figures as `evaluate`, the worst mistakes first, usable by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PATIENCE, needs_chromium
from helpers import metrics_of
from PIL import Image
from playwright.sync_api import Browser
from tiny import das3d

from das3d.demo import CATEGORY
from das3d.detector import load
from das3d.regions import Region
from das3d.report import charts
from das3d.report.evaluated import read_evaluation
from das3d.report.gallery import TILE, shrunk, with_truth

Runs = Callable[..., Path]


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text of each card's heading and badge."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, tag: str, **wanted: str) -> list[dict[str, Any]]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return [one for one in found if all(one.get(name.rstrip("_")) == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def reported(tiny_run: Runs, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run folder of a modality, evaluated and reported; tests must not change it."""
    done: dict[str, Path] = {}

    def of(modality: str = "rgb+depth") -> Path:
        if modality not in done:
            run = Path(shutil.copytree(tiny_run(modality), tmp_path_factory.mktemp("report") / "run"))
            assert das3d("evaluate", run, "--data", tiny_data).exit_code == 0
            result = das3d("report", run)
            assert result.exit_code == 0, result.output
            done[modality] = run
        return done[modality]

    return of


@pytest.fixture
def copied(reported: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(reported(), tmp_path / "run"))


def page_of(run: Path) -> Page:
    return Page((run / "report.html").read_text())


def change_scores(run: Path, scores: dict[str, float], threshold: float) -> None:
    """Other scores for parts by id, and another threshold, in what `evaluate` wrote."""
    file = run / "evaluation" / "scores.csv"
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows([row | {"score": str(scores.get(row["id"], row["score"]))} for row in rows])
    metrics = metrics_of(run / "evaluation")
    metrics["threshold"]["value"] = threshold
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))


# ------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_report_needs_nothing_from_outside(reported: Callable[..., Path], modality: str) -> None:
    page = page_of(reported(modality))
    addresses = [
        value or "" for _, attributes in page.elements for name in ("src", "href") if (value := attributes.get(name))
    ]
    assert addresses and all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert not page.of("link") and "@import" not in page.text and not re.search(r"url\(\s*['\"]?http", page.text)


@pytest.mark.parametrize(
    ("modality", "pictures"),
    [
        ("rgb+depth", ["RGB", "Depth", "RGB, repaired", "Depth, repaired", "Heat"]),
        ("rgb", ["RGB", "Depth", "RGB, repaired", "Heat"]),  # depth tells the part from the table
        ("depth", ["RGB", "Depth", "Depth, repaired", "Heat"]),  # RGB lies beside it and people know it
    ],
)
def test_every_part_shows_what_its_modality_has(reported: Callable[..., Path], modality: str, pictures: list[str]) -> None:
    run = reported(modality)
    page = page_of(run)
    with (run / "evaluation" / "scores.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    cards = page.of("li", class_="card")
    assert {card["data-name"] for card in cards} == set(rows)
    threshold = load(run, "cpu").threshold
    assert threshold is not None
    for row in rows.values():
        score = float(row["score"])
        assert f"score <b>{score:.3f}</b>, {threshold.compared(score)}</span>" in page.text, "in the words of predict"
    for card in cards:
        row = rows[card["data-name"]]
        assert float(card["data-score"]) == float(row["score"]) and card["data-kind"] == row["defect"]
        shown = [image["alt"] for image in page.of("img") if image["alt"].endswith(f" of {row['id']}")]
        expected = pictures + (["Ground truth"] if row["label"] == "1" else [])
        assert shown == [f"{name} of {row['id']}" for name in expected]
    for image in page.of("img"):
        decoded = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert decoded.format == "JPEG" and (max(decoded.size) <= TILE or " of " not in image["alt"])
    assert len(page.of("script", class_="surface")) == len(rows), "rendered parts have depth, used or not"


def test_figures_and_counts_are_those_of_the_evaluation(copied: Path) -> None:
    change_scores(copied, {"test/dent/000": 0.1, "test/good/000": 0.9, "test/good/001": 0.2}, threshold=0.5)
    assert das3d("report", copied).exit_code == 0
    page, metrics = page_of(copied), metrics_of(copied / "evaluation")
    for name in ("i_auroc", "aupro_30", "p_auroc"):
        assert f"<dd>{metrics[name]:.3f}</dd>" in page.text
    for kind, value in metrics["per_defect"].items():
        assert re.search(rf'<th scope="row">{kind}</th><td>1</td><td>{value:.3f}</td>', page.text)
    assert re.search(r'<th scope="row">good</th><td>2</td><td>-</td>\s*<td>1 \(50.0%\)</td>', page.text)
    assert "1 of 2 good parts lie above it" in page.text


def test_worst_mistakes_come_first(copied: Path) -> None:
    scores = {
        "test/dent/000": 0.3, "test/stain/000": 0.1, "test/scratch/000": 0.6, "test/good/000": 0.9, "test/good/001": 0.2,
    }  # fmt: skip
    change_scores(copied, scores, threshold=0.5)
    evaluation = read_evaluation(copied / "evaluation")
    assert evaluation is not None
    known = [(row.id, row.outcome) for row in evaluation.rows if row.id in scores]
    assert known == [
        ("test/stain/000", "missed"), ("test/dent/000", "missed"), ("test/good/000", "false alarm"),
        ("test/scratch/000", "found"), ("test/good/001", "passed"),
    ]  # fmt: skip
    result = das3d("report", copied, "--parts", "2", "--out", copied / "short.html")
    assert result.stdout.startswith(f"{copied / 'short.html'}: 2 parts, ")
    page = Page((copied / "short.html").read_text())
    assert [card["data-name"] for card in page.of("li", class_="card")] == [row.id for row in evaluation.rows[:2]]
    assert f"{len(evaluation.rows) - 2} further parts are left out" in page.text


def test_regions_stand_beside_the_pictures_and_are_outlined(copied: Path) -> None:
    region = Region(
        centroid=(30.0, 20.0), box=(25, 15, 10, 10), outline=((25, 15), (34, 15), (34, 24), (25, 24)), area_px=100,
        area_mm2=12.34, height_mm=-0.5, height_noise_mm=0.1, evidence="shape", colour=0.1, shape=0.9, score=0.8, peak=0.9,
        mean=0.7,
    )  # fmt: skip

    def heat() -> str:
        assert das3d("report", copied).exit_code == 0
        return str(page_of(copied).of("img", alt="Heat of test/dent/000")[0]["src"])

    file = copied / "evaluation" / "regions.json"
    file.write_text('{"pixel_threshold": 0.1, "parts": []}')
    before = heat()
    part = {"id": "test/dent/000", "score": 0.8, "regions": [region.to_dict()] * 5}
    file.write_text(json.dumps({"pixel_threshold": 0.1, "parts": [part]}))
    assert heat() != before
    assert (
        page_of(copied).text.count(f"<li>{region.describe()}</li>") == 3
        and "<li>2 smaller ones</li>" in page_of(copied).text
    )


# ------------------------------------------------------------------------------------ what may be wrong


def test_run_without_evaluation_tells_the_command(tiny_run: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run(), tmp_path / "run"))
    result = das3d("report", run)
    assert result.exit_code == 0 and f"das3d evaluate {run} --data DATA" in result.stdout
    text = (run / "report.html").read_text()
    assert f"das3d evaluate {run} --data DATA" in text and "Synthetic training pairs" in text
    assert 'class="card"' not in text and "importmap" not in text


def test_moved_scans_are_found_by_data(copied: Path, tiny_data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_data, tmp_path / "moved"))
    metrics = metrics_of(copied / "evaluation")
    metrics["data"] = str(tmp_path / "gone")
    (copied / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    result = das3d("report", copied)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path / 'gone'}: expected the scans that were evaluated, found no folder; name it with --data\n"
    )
    assert das3d("report", copied, "--data", moved).exit_code == 0
    shutil.rmtree(moved / metrics["category"] / "test" / "dent")
    result = das3d("report", copied, "--data", moved / metrics["category"])
    assert result.exit_code == 1 and "found 1 missing, such as test/dent/000" in result.stderr


def test_damaged_evaluation_and_missing_map(copied: Path) -> None:
    next((copied / "evaluation" / "maps").glob("*.tiff")).unlink()
    result = das3d("report", copied)
    assert (
        result.exit_code == 1 and ".tiff: expected the map of a part, found none; run das3d evaluate again" in result.stderr
    )
    scores, regions = copied / "evaluation" / "scores.csv", copied / "evaluation" / "regions.json"
    for file in (scores, regions):
        content = file.read_bytes()
        file.write_bytes(content[:-9] if file == regions else content + b"test/dent/9,")
        result = das3d("report", copied)
        expected = f"error: {file}: expected what das3d evaluate writes, found a problem: "
        assert result.exit_code == 1 and result.stderr.startswith(expected) and result.stderr.count("\n") == 1
        file.write_bytes(content)


def test_figures_that_are_not_there_are_named(copied: Path) -> None:
    file = copied / "evaluation" / "metrics.json"
    metrics = metrics_of(file.parent)
    for names in (["map_size"], ["notes", "per_defect", "aupro_05"]):
        file.write_text(json.dumps({name: value for name, value in metrics.items() if name not in names}))
        result = das3d("report", copied)
        found = f"error: {file}: expected what das3d evaluate writes, found no {', '.join(names)}; run it again\n"
        assert (result.exit_code, result.stderr) == (1, found)
    file.write_text("[]")
    result = das3d("report", copied)
    assert result.exit_code == 1 and f"{file}: expected what das3d evaluate writes, found no data" in result.stderr


@pytest.mark.parametrize("row", ["1,", "1,nothing,0.2,0.3,0.1", "one,0.1,0.2,0.3,0.1"])
def test_damaged_losses_are_named(copied: Path, row: str) -> None:
    with (copied / "losses.csv").open("a+") as file:
        file.seek(0)
        line = len(file.readlines()) + 1
        file.write(row)
    result = das3d("report", copied)
    columns = "iteration, loss_rgb, loss_depth, loss_discriminator"
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert f"error: {copied / 'losses.csv'}, line {line}: expected a number for {columns}, found ['1'" in result.stderr or (
        "one" in row and "found ['one'" in result.stderr
    )
    (copied / "losses.csv").unlink()
    assert das3d("report", copied).exit_code == 0


def test_run_that_is_none(tmp_path: Path) -> None:
    result = das3d("report", tmp_path / "no")
    assert result.exit_code == 1 and result.stderr == f"error: {tmp_path / 'no'}: expected a run folder, found nothing\n"


def test_page_names_the_command_that_tells_whether_the_promise_still_holds(copied: Path) -> None:
    assert das3d("report", copied).exit_code == 0
    assert f"das3d drift {copied} --scores" in page_of(copied).text


def test_threshold_that_has_changed_since_is_told(copied: Path) -> None:
    change_scores(copied, {}, threshold=0.123)
    assert das3d("report", copied).exit_code == 0
    text = (copied / "report.html").read_text()
    assert "and was 0.123 here; run das3d evaluate again" in text


def test_without_a_threshold_no_part_is_counted(copied: Path) -> None:
    metrics = metrics_of(copied / "evaluation") | {"threshold": None, "detected": None, "false_alarms": None}
    (copied / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    assert das3d("report", copied).exit_code == 0
    text = (copied / "report.html").read_text()
    assert text.count("the model has no threshold") == 2 and "lie above" not in text.split("The threshold and what")[0]
    assert "Right of the threshold" not in text


def test_other_data_than_that_of_training_is_named(copied: Path, tiny_data: Path, tmp_path: Path) -> None:
    assert das3d("report", copied).exit_code == 0
    assert "Test data" not in (copied / "report.html").read_text()
    other = Path(shutil.copytree(tiny_data, tmp_path / "other"))
    assert das3d("evaluate", copied, "--data", other).exit_code == 0
    assert das3d("report", copied).exit_code == 0
    assert f'<th scope="row">Test data</th><td>{other / CATEGORY}</td>' in (copied / "report.html").read_text()


@needs_chromium
@pytest.mark.parametrize("width", [360, 688])
def test_long_kinds_of_defect_leave_the_page_as_wide_as_the_screen(copied: Path, browser: Browser, width: int) -> None:
    kind = "a_kind_of_defect_with_a_name_that_goes_on_and_on_and_on_without_any_space"
    metrics = (copied / "evaluation" / "metrics.json").read_text()
    scores = (copied / "evaluation" / "scores.csv").read_text()
    (copied / "evaluation" / "metrics.json").write_text(metrics.replace('"dent"', f'"{kind}"'))
    (copied / "evaluation" / "scores.csv").write_text(scores.replace(",dent,", f",{kind},"))
    assert das3d("report", copied).exit_code == 0 and kind in (copied / "report.html").read_text()
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((copied / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    if width == 688:  # of paper, A4 upright, on which nobody scrolls
        assert (
            page.evaluate(
                "(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(document.querySelector('.scroll'))"
            )
            <= 1
        )
    page.close()


def test_names_cannot_put_anything_into_the_page(copied: Path) -> None:
    metrics = metrics_of(copied / "evaluation")
    metrics["notes"] = ["<script>alert(1)</script>"]
    (copied / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    assert das3d("report", copied).exit_code == 0
    text = (copied / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


# ------------------------------------------------------------------------------------ its members


def test_outline_lies_around_the_defect() -> None:
    mask = np.zeros((400, 400), bool)
    mask[100:140, 200:260] = True
    picture = with_truth(np.full((400, 400, 3), 90, np.uint8), mask)
    changed = (picture != 90).any(axis=2)
    assert picture.shape == (TILE, TILE, 3)
    scale = TILE / 400
    rows, columns = np.nonzero(changed)
    assert np.allclose((rows.min(), rows.max()), (100 * scale, 140 * scale), atol=3)
    assert np.allclose((columns.min(), columns.max()), (200 * scale, 260 * scale), atol=3)
    assert not changed[int(120 * scale), int(230 * scale)], "the defect itself stays visible"
    dark = with_truth(np.full((40, 40, 3), 90, np.uint8), None)
    assert (dark == 30).all()


@pytest.mark.parametrize("size", [(10, 20), (600, 300), (257, 256)])
def test_shrunk_keeps_proportions_and_never_enlarges(size: tuple[int, int]) -> None:
    picture = shrunk(np.zeros((*size, 3), np.uint8))
    assert max(picture.shape[:2]) == min(max(size), TILE)
    assert picture.shape[0] / picture.shape[1] == pytest.approx(size[0] / size[1], rel=0.02)


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (charts.Axis("", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (charts.Axis("", 0, 0.3), [0, 0.1, 0.2, 0.3]),
        (charts.Axis("", 0.26, 0.51), [0.3, 0.35, 0.4, 0.45, 0.5]),
        (charts.Axis("", 0, 12345), [0, 2500, 5000, 7500, 10000]),
        (charts.Axis("", 1e-3, 10, log=True), [1e-3, 1e-2, 0.1, 1, 10]),
    ],
)
def test_ticks_are_round_and_inside(axis: charts.Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)
    assert axis.share([axis.low, axis.high]).tolist() == [0, 1]


def test_lines_go_through_their_points() -> None:
    svg = charts.line_chart(
        "a < b", [charts.Series("s", "good", [0, 1], [0, 0.5])], charts.Axis("x", 0, 1), charts.Axis("y", 0, 1)
    )
    points = re.search(r'<polyline class="line good" points="([^"]*)"', svg)
    assert points is not None
    (x0, y0), (x1, y1) = ([float(number) for number in pair.split(",")] for pair in points[1].split())
    plot = charts.HEIGHT - charts.TOP - charts.BOTTOM
    assert (x0, y0) == (charts.LEFT, charts.HEIGHT - charts.BOTTOM)
    assert (x1, y1) == (charts.WIDTH - charts.RIGHT, pytest.approx(charts.TOP + plot / 2))
    assert 'aria-label="a &lt; b"' in svg


def test_bars_count_every_score_once() -> None:
    groups = [("3 good", "good", [0.1, 0.1, 0.9]), ("1 bad", "bad", [1.0])]
    svg = charts.histogram("scores", groups, charts.Axis("score", 0, 1), line=None)
    assert [int(number) for number in re.findall(r"<title>(\d+) ", svg)] == [2, 1, 1]


# ------------------------------------------------------------------------------------ in a browser


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_report_works_from_disk(reported: Callable[..., Path], browser: Browser, width: int) -> None:
    run = reported()
    evaluation = read_evaluation(run / "evaluation")
    assert evaluation is not None
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    page.goto((run / "report.html").as_uri())

    def shown() -> list[str | None]:
        return [card.get_attribute("data-name") for card in page.locator(".card:visible").all()]

    assert shown() == [row.id for row in evaluation.rows]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing reaches beyond the screen"
    page.get_by_label("Kind").select_option("good")
    page.get_by_label("Order").select_option("low")
    good = sorted((row for row in evaluation.rows if not row.defective), key=lambda row: row.score)
    assert shown() == [row.id for row in good]
    assert page.locator("output").inner_text() == f"{len(good)} of {len(evaluation.rows)} parts"

    page.locator(".card:visible").first.get_by_role("button", name="View in 3D").click()
    page.locator("dialog canvas").wait_for()
    assert page.locator("dialog h2").inner_text() == good[0].id
    colours = page.get_by_role("group", name="Colour").get_by_role("button")
    assert colours.all_inner_texts() == ["Heat", "RGB", "Depth"]
    page.get_by_role("button", name="Close").click()
    page.locator("dialog canvas").wait_for(state="detached")
    page.locator(".card:visible img").first.click()
    assert page.locator("dialog img").get_attribute("alt") == f"RGB of {good[0].id}"
    page.close()
    assert not errors
