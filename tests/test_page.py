"""The service's page in a real browser: what a person does, and what he then sees."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tifffile
import uvicorn
from browser import needs_chromium
from playwright.sync_api import Browser, Page, expect

from das3d.demo import CATEGORY
from das3d.detector import load
from das3d.service import make_app, open_models
from das3d.service.inspections import Inspection, Inspections

pytestmark = needs_chromium
KEY = "an open secret"
expect.set_options(timeout=30_000)  # milliseconds; machines that test are busy
Files = tuple[Path, Path]
Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def parts(tiny_data: Path) -> list[Files]:
    """RGB and points of four parts, good ones first."""
    test = tiny_data / CATEGORY / "test"
    rgb = sorted(test.glob("*/rgb/*"), key=lambda path: (path.parts[-3] != "good", path))
    return [(path, path.parent.parent / "xyz" / f"{path.stem}.tiff") for path in rgb[:4]]


@pytest.fixture
def serve(tiny_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def running(key: str | None = None, names: Sequence[str] = ()) -> Iterator[str]:
        """The address of a service over the tiny model, under each of the names where some are given."""
        run = str(tiny_run())
        app = make_app(open_models([f"{name}={run}" for name in names] or [run]), Inspections(tmp_path), key=key)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()

    return running


@contextmanager
def opened(browser: Browser, address: str, width: int = 1300, height: int = 900) -> Iterator[Page]:
    """The page, with a watch on what it asks for and what goes wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if not is_own(request.url, address) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(address)
        yield page
    finally:
        context.close()
    assert not foreign, "the page must work without a network"
    assert not errors


def is_own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def drop(page: Page, files: Files) -> None:
    """Drop two files onto the page."""
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        [[path.name, list(path.read_bytes())] for path in files],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def pixels(page: Page, canvas: str) -> str:
    return str(page.locator(canvas).evaluate("canvas => canvas.toDataURL()"))


def pixels_after(page: Page, canvas: str, before: str) -> str:
    """What the canvas shows once it shows something else."""
    for _ in range(300):
        if (now := pixels(page, canvas)) != before:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(f"{canvas} does not change")


def move(page: Page, threshold: float) -> None:
    script = "(input, to) => { input.value = to; input.dispatchEvent(new Event('input')) }"
    page.eval_on_selector("#threshold", script, threshold)


def record(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Inspections that come in at once, without their files."""
    values = {
        "at": datetime.now(UTC), "model": "bolt", "model_hash": "ab" * 32, "engine": "none", "version": "0",
        "score": 0.1, "threshold": 0.5, "verdict": "good", "regions": [], "height": 4, "width": 5, "seconds": 0.1,
        "map": "gone.tiff",
    }  # fmt: skip
    kept = Inspections(folder)
    with kept._session.begin() as session:
        session.add_all(Inspection(**values | row) for row in rows)
    kept.close()


def test_a_part_is_dropped_seen_turned_and_judged_anew(browser: Browser, serve: Serve, parts: list[Files]) -> None:
    with serve() as address, opened(browser, address) as page:
        expect(page.locator("#nothing")).to_contain_text("Nothing inspected yet")
        drop(page, parts[0])
        expect(page.locator("#list li")).to_have_count(1)
        told = page.request.get(f"{address}/inspections/1").json()
        expect(page.locator("#name")).to_have_text(told["part"])
        expect(page.locator("#verdict")).to_have_text(told["verdict"])
        expect(page.locator("#score")).to_contain_text(f"{told['score']:.3f}"[:4])

        # The part in 3D, in each of its colours, and turned.
        solid = "#solid canvas"
        page.wait_for_selector(solid)
        seen = [pixels(page, solid)]
        for colour in ("rgb", "depth"):
            page.locator(f"#solid button[data-colour={colour}]").click()
            seen.append(pixels_after(page, solid, seen[-1]))
        page.locator(solid).press("ArrowLeft")
        seen.append(pixels_after(page, solid, seen[-1]))
        assert len(set(seen)) == 4

        # The threshold moves, and verdict, heat and list with it; what was recorded stays.
        before = pixels(page, "#heatmap")
        move(page, told["score"] / 2)
        expect(page.locator("#verdict")).to_have_text("defective")
        expect(page.locator("#list .chip")).to_have_text("defective")
        if told["verdict"] == "good":
            expect(page.locator("#changed")).to_have_text("recorded as good")
        pixels_after(page, "#heatmap", before)
        move(page, min(1, told["score"] * 1.1))
        expect(page.locator("#verdict")).to_have_text("good")
        page.click("#reset")
        expect(page.locator("#verdict")).to_have_text(told["verdict"])
        assert page.request.get(f"{address}/inspections/1").json() == told

        page.locator("#opacity").press("Home")
        with page.expect_download() as download:
            page.click("#save-map")
        assert tifffile.imread(download.value.path()).shape == (told["height"], told["width"])


def test_folders_and_past_parts(browser: Browser, serve: Serve, parts: list[Files], tmp_path: Path) -> None:
    folder = tmp_path / "dropped"
    for number, (rgb, xyz) in enumerate(parts):
        for member, file in (("rgb", rgb), ("xyz", xyz)):
            path = folder / "bin" / member / f"{number}{file.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read_bytes())
    (folder / "bin/rgb/9.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a part")
    with serve() as address, opened(browser, address) as page:
        page.set_input_files("#folder", folder)
        expect(page.locator("#list li")).to_have_count(4)
        expect(page.locator("#uploads")).to_contain_text("9.png: expected an RGB image, found a damaged or unknown file")
        names = page.locator("#list b").all_text_contents()
        assert sorted(names) == [f"dropped/bin/{number}" for number in range(4)]

        page.reload()
        page.locator("#list button").nth(3).click()
        expect(page.locator("#name")).to_have_text(names[3])
        expect(page.locator("#list [aria-current=true] b")).to_have_text(names[3])
        assert page.url.endswith("#1")
        expect(page.locator("#solid canvas")).to_be_visible()
        page.goto(f"{address}/#2")
        expect(page.locator("#name")).to_have_text(names[2])
        page.fill("#search", names[1])
        expect(page.locator("#list li")).to_have_count(1)
        page.fill("#search", "")
        expect(page.locator("#list li")).to_have_count(4)
        verdicts = [item["verdict"] for item in page.request.get(f"{address}/inspections").json()["items"]]
        page.select_option("#filter", "defective")
        expect(page.locator("#list li")).to_have_count(verdicts.count("defective"))


def test_parts_that_wait_are_judged_by_the_model_that_was_chosen_for_them(
    browser: Browser, serve: Serve, parts: list[Files], tmp_path: Path
) -> None:
    folder = tmp_path / "dropped"
    for number in range(5):  # more than are sent at once
        for member, file in zip(("rgb", "xyz"), parts[0], strict=True):
            path = folder / member / f"{number}{file.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read_bytes())
    held: list[Any] = []
    with serve(names=("nut", "bolt")) as address, opened(browser, address) as page:
        expect(page.locator("#engine")).not_to_be_empty()
        page.route("**/inspections", lambda route: held.append(route))
        page.set_input_files("#folder", folder)
        expect(page.locator("#uploads")).to_contain_text("dropped/4: waiting")
        page.select_option("#model", "bolt")
        page.eval_on_selector("#unit", "select => { select.value = 'mm' }")  # by which this depth is out of range
        page.unroute("**/inspections")  # which lets go what was held
        expect(page.locator("#list li")).to_have_count(5)
        expect(page.locator("#uploads li")).to_have_count(0)
        told = page.request.get(f"{address}/inspections").json()["items"]
        assert [item["model"] for item in told] == ["nut"] * 5


def test_a_part_that_is_chosen_while_the_page_begins_stays(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    with serve() as address:
        record(tmp_path, [{"part": f"b{number}"} for number in range(3)])
        with opened(browser, address) as page:
            expect(page.locator("#name")).to_have_text("b2")
            page.goto("about:blank")
            late: list[Any] = []
            page.route("**/refused?*", lambda route: late.append(route))
            page.goto(address)
            page.locator("#list button").nth(2).click()
            expect(page.locator("#name")).to_have_text("b0")
            late[0].continue_()
            with page.expect_response("**/inspections?*"):  # the page has begun, and looks for further parts
                pass
            expect(page.locator("#name")).to_have_text("b0")
            assert page.url.endswith("#1")


def test_names_tell_what_belongs_together(browser: Browser, serve: Serve) -> None:
    cases = {
        "a_rgb.png a_depth.png b_rgb.jpg b_depth.npy": "a:rgb,depth b:rgb,depth",
        "bolt/rgb/1.png bolt/xyz/1.tiff bolt/gt/1.png": "bolt/1:rgb,depth",
        "left.png right.ply": "left:rgb,depth",
        "x.jpg y.jpg z.npy": "x:rgb y:rgb z:depth",
        "deep.png plain.png": "plain:rgb,depth",
        "a_rgb.png a_rgb.jpg": " | a: two files for rgb, a_rgb.png and a_rgb.jpg; not inspected",
        "a_rgb.png a.tiff a_depth.tiff b.png": "b:rgb | a: two files for depth, a.tiff and a_depth.tiff; not inspected",
        "bolt/Images/1.png bolt/cloud/1.ply bolt/Images/2.png bolt/points/2.ply": "bolt/1:rgb,depth bolt/2:rgb,depth",
        "rgb/a_points.png xyz/a_points.ply rgb/b.png": "a_points:rgb,depth b:rgb",
        "a_image.png a_points.ply b_colour.jpg b_cloud.pcd a_gt.png": "a:rgb,depth b:rgb,depth",
        "a-rgb.png b_z.npy c_xyz.npy": "a-rgb:rgb b_z:depth c:depth",
        "e\u0301_rgb.png \xe9_depth.npy 1.png": "1:rgb \xe9:rgb,depth",
        "notes.txt": " | no RGB or depth files in what was dropped",
    }
    with serve() as address, opened(browser, address) as page:
        told = page.evaluate(
            """async (cases) => {
                const { pairs } = await import("/assets/page/pairs.js");
                const grey = new Uint8Array(26);
                grey[24] = 16;
                return Promise.all(cases.map(async (words) => {
                    const entries = words.split(" ").map((path) => {
                        const name = path.split("/").at(-1);
                        return { path, file: new File([name === "deep.png" ? grey : new Uint8Array(26)], name) };
                    });
                    const { parts, problems } = await pairs(entries);
                    const shown = parts.map((one) => `${one.part}:${["rgb", "depth"].filter((m) => one[m])}`).join(" ");
                    return [shown, ...problems].join(" | ");
                }));
            }""",
            list(cases),
        )
        assert dict(zip(cases, told, strict=True)) == cases


def test_parts_that_came_in_while_nobody_looked_are_in_the_list(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    with serve() as address, opened(browser, address) as page:
        rows, older = page.locator("#list li"), page.locator("#more")
        record(tmp_path, [{"part": str(number)} for number in range(60)])
        expect(rows).to_have_count(50)
        older.click()
        expect(rows).to_have_count(60)
        record(tmp_path, [{"part": "60"}])
        expect(rows).to_have_count(61)
        record(tmp_path, [{"part": str(number)} for number in range(61, 181)])
        expect(rows).to_have_count(50)
        while older.is_visible():
            count = rows.count()
            older.click()
            expect(rows).not_to_have_count(count)
        assert page.locator("#list b").all_text_contents() == [str(number) for number in reversed(range(181))]


def test_older_parts_come_once_and_never_into_another_list(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    record(tmp_path, [{"part": f"a{number}"} for number in range(60)])
    held: list[Any] = []
    with serve() as address, opened(browser, address) as page:
        rows = page.locator("#list li")
        expect(rows).to_have_count(50)
        page.route("**/inspections?*before=*", lambda route: held.append(route))
        click = "button => { button.click(); button.click() }"
        with page.expect_request("**/inspections?*before=*"):
            page.eval_on_selector("#more", click)
        expect(page.locator("#more")).to_be_disabled()
        page.fill("#search", "a1")
        expect(rows).to_have_count(11)
        with page.expect_response("**/inspections?*before=*"):
            held.pop(0).continue_()
        expect(page.locator("#more")).to_be_enabled()
        expect(rows).to_have_count(11)
        page.fill("#search", "")
        expect(rows).to_have_count(50)
        page.eval_on_selector("#more", click)
        page.wait_for_timeout(500)
        assert len(held) == 1, "asked once"
        held[0].continue_()
        expect(rows).to_have_count(60)
        assert page.locator("#list b").all_text_contents() == [f"a{number}" for number in reversed(range(60))]


def test_a_verdict_is_the_recorded_one_until_the_threshold_is_moved(
    browser: Browser, serve: Serve, tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    with serve() as address, opened(browser, address) as page:
        (model,) = page.request.get(f"{address}/models").json()
        by_it = {"model": model["name"], "model_hash": model["hash"], "threshold": 0.4, "verdict": "good"}
        record(
            tmp_path,
            [
                by_it | {"part": "earlier", "model_hash": "ab" * 32, "false_alarm_probability": 1 / 11},
                by_it | {"part": "at the threshold", "score": 0.4 + 0.9 * model["tolerance"]},
            ],
        )
        expect(page.locator("#list .chip")).to_have_text(["good", "good"])
        page.get_by_role("button", name="at the threshold").click()
        expect(page.locator("#verdict")).to_have_text("good")
        expect(page.locator("#facts dl")).to_contain_text(model["about"])
        threshold = load(tiny_run(), "cpu").threshold
        assert threshold is not None
        as_predict = threshold.compared(0.4 + 0.9 * model["tolerance"])
        expect(page.locator("#compared")).to_have_text(as_predict)
        expect(page.locator("#shown")).not_to_contain_text(re.compile(r"\d %"))
        move(page, 0.4)
        expect(page.locator("#limit")).to_have_text("0.400")
        expect(page.locator("#verdict")).to_have_text("good")
        move(page, 0.4 - 0.2 * model["tolerance"])
        expect(page.locator("#verdict")).to_have_text("defective")
        page.get_by_role("button", name="earlier").click()
        expect(page.locator("#facts dl")).to_contain_text("by an earlier model of this name")
        expect(page.locator("#compared")).to_have_text("")


def test_a_part_is_marked_as_what_it_was_in_truth(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    with serve() as address, opened(browser, address) as page:
        record(tmp_path, [{"part": "one"}])
        expect(page.locator("#name")).to_have_text("one")
        expect(page.locator("#truth")).to_have_value("unknown")
        page.focus("#truth")
        expect(page.locator("#follow")).not_to_be_checked()
        record(tmp_path, [{"part": "two"}])
        expect(page.locator("#list li")).to_have_count(2)
        expect(page.locator("#name")).to_have_text("one")
        page.select_option("#truth", "defective")
        below = page.locator("#list small")
        expect(below).to_have_text([re.compile("bolt$"), re.compile("bolt · in truth defective$")])
        others = Inspections(tmp_path)
        told = others.get(1)
        assert told is not None and (told.truth, told.verdict) == ("defective", "good")
        expect(page.locator("#verdict")).to_have_text("good")

        page.route("**/truth?*", lambda route: route.fulfill(status=503, json={"detail": "the database is away"}))
        page.select_option("#truth", "good")
        expect(page.locator("#unmarked")).to_have_text("the database is away")
        expect(page.locator("#truth")).to_have_value("defective")
        page.get_by_role("button", name="two").click()
        expect(page.locator("#truth")).to_have_value("unknown")
        expect(page.locator("#unmarked")).not_to_be_visible()
        others.mark(2, "good")
        others.close()
        expect(below.first).to_have_text(re.compile("in truth good$"))


def test_parts_are_listed_by_what_they_were_in_truth(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    with serve() as address:
        record(tmp_path, [{"part": name} for name in ("one", "two", "three")])
        with opened(browser, address) as page:
            names = page.locator("#list b")
            expect(page.locator("#name")).to_have_text("three")
            page.select_option("#marked", "unknown")
            expect(names).to_have_text(["three", "two", "one"])
            page.focus("#truth")
            page.select_option("#truth", "defective")
            expect(names).to_have_text(["two", "one"])
            expect(page.locator("#total")).to_have_text("2")
            page.select_option("#marked", "defective")
            expect(names).to_have_text(["three"])
            expect(page.locator("#total")).to_have_text("1")
            expect(page.locator("#counts")).to_have_text("0 of the 1 parts listed are defective.")
            page.select_option("#marked", "")
            expect(page.locator("#counts")).to_have_text("0 of the 3 parts listed are defective.")
            page.select_option("#filter", "defective")
            expect(names).to_have_count(0)
            expect(page.locator("#counts")).to_have_text("0 of the 1 parts listed are defective.")
            page.select_option("#filter", "")
            page.select_option("#marked", "defective")
            expect(names).to_have_text(["three"])

            # Somebody else marks a part of before: it joins the list, and is no part that comes in.
            page.check("#follow")
            others = Inspections(tmp_path)
            others.mark(1, "defective")
            others.close()
            expect(names).to_have_text(["three", "one"])
            page.wait_for_timeout(500)
            expect(page.locator("#name")).to_have_text("three")


def test_a_service_that_is_away_leaves_no_verdict_that_seems_new(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    def colours(page: Page) -> str:
        return str(page.eval_on_selector("#verdict", "one => getComputedStyle(one).backgroundColor"))

    asked = "**/inspections?*"
    with serve() as address, opened(browser, address) as page:
        record(tmp_path, [{"part": "last", "at": datetime.now(UTC) - timedelta(minutes=5, seconds=1)}])
        expect(page.locator("#verdict")).to_have_text("good")
        expect(page.locator("#age")).to_have_text("5 min ago")
        expect(page.locator("#lost")).not_to_be_visible()
        good = colours(page)
        for broken, told in [
            (lambda route: route.abort(), r": the service cannot be reached$"),
            (lambda route: route.fulfill(status=503, json={"detail": "the database is away"}), r": the database is away$"),
            (lambda route: None, r""),  # no answer at all, as of a machine without power
        ]:
            page.route(asked, broken)
            expect(page.locator("#lost")).to_have_text(re.compile(r"^No contact since \d+:\d\d:\d\d[^:]*" + told))
            assert colours(page) != good
            page.unroute(asked)
            expect(page.locator("#lost")).not_to_be_visible()
            assert colours(page) == good


def test_a_part_whose_files_are_gone_shows_nothing_of_another(
    browser: Browser, serve: Serve, parts: list[Files], tmp_path: Path
) -> None:
    record(tmp_path, [{"part": "expired", "map": ""}, {"part": "moved", "map": "gone.tiff"}])
    with serve() as address, opened(browser, address) as page:
        page.set_input_files("#files", list(parts[0]))
        page.wait_for_selector("#solid canvas")
        expect(page.locator("#save-map")).to_be_enabled()
        seen = pixels(page, "#heatmap")
        for name, told in (
            ("expired", "were removed: they are kept for a time only"),
            ("moved", "no longer where they were"),
        ):
            page.get_by_role("button", name=name).click()
            expect(page.locator("#name")).to_have_text(name)
            expect(page.locator("#unseen")).to_contain_text(told)
            expect(page.locator("#solid")).to_contain_text(told)
            expect(page.locator("#save-map")).to_be_disabled()
            expect(page.locator("#save-overlay")).to_be_disabled()
            expect(page.locator("#score")).to_have_text("score 0.100")
            assert len(pixels(page, "#heatmap")) < len(seen) / 10, "no picture of the part before"
        page.locator("#list button").first.click()
        page.wait_for_selector("#solid canvas")
        expect(page.locator("#unseen")).not_to_be_visible()
        expect(page.locator("#save-map")).to_be_enabled()
        assert pixels(page, "#heatmap") == seen


def test_a_part_whose_picture_comes_late_shows_nothing_of_another_and_is_not_shown_as_one(
    browser: Browser, serve: Serve, parts: list[Files], tmp_path: Path
) -> None:
    record(tmp_path, [{"part": "moved", "map": "gone.tiff"}])
    late: list[Any] = []
    with serve() as address, opened(browser, address) as page:
        page.set_input_files("#files", list(parts[0]))
        page.wait_for_selector("#solid canvas")
        seen = pixels(page, "#heatmap")
        page.route("**/inspections/*/view", lambda route: late.append(route))
        page.get_by_role("button", name="moved").click()
        expect(page.locator("#name")).to_have_text("moved")
        assert len(pixels(page, "#heatmap")) < len(seen) / 10, "while this part's is on its way"
        expect(page.locator("#solid canvas")).to_have_count(0)
        page.unroute("**/inspections/*/view")
        page.evaluate("""() => {
            window.held = [];
            const decode = Image.prototype.decode;
            Image.prototype.decode = function () {
                return new Promise((done) => window.held.push(() => done(decode.call(this))));
            };
        }""")
        page.locator("#list button").first.click()
        while page.evaluate("window.held.length") < 2:
            page.wait_for_timeout(100)
        page.get_by_role("button", name="moved").click()
        expect(page.locator("#unseen")).to_contain_text("no longer where they were")
        page.evaluate("async () => { for (const go of window.held) go(); }")
        page.wait_for_timeout(500)
        assert len(pixels(page, "#heatmap")) < len(seen) / 10, "not what comes late of the part before"


def test_the_page_has_inspections_counted_once_and_knows_how_many_there_are(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    record(tmp_path, [{"part": f"a{number}"} for number in range(60)])
    with serve() as address, opened(browser, address) as page:
        total = page.locator("#total")
        expect(total).to_have_text("60")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        record(tmp_path, [{"part": "b1"}, {"part": "b2"}])
        expect(total).to_have_text("62")
        assert not [url for url in asked if "count=true" in url], "once, when the page was opened"
        record(tmp_path, [{"part": f"b{number}"} for number in range(3, 63)])
        expect(total).to_have_text("122")
        page.fill("#search", "b")
        expect(total).to_have_text("62")
        page.fill("#search", "b1")
        expect(total).to_have_text("11")
        page.route("**/inspections?*part=b2&*", lambda route: late.append(route))
        late: list[Any] = []
        page.fill("#search", "b2")
        page.fill("#search", "b")
        expect(total).to_have_text("62")
        late[0].continue_()
        with page.expect_request("**/inspections?*"):
            pass
        expect(total).to_have_text("62")
        expect(page.locator("#list li")).to_have_count(50)


def test_a_part_that_could_not_be_judged_does_not_pass_as_the_one_before(
    browser: Browser, serve: Serve, parts: list[Files], tmp_path: Path
) -> None:
    with serve() as address, opened(browser, address) as page:
        record(tmp_path, [{"part": "before"}])
        expect(page.locator("#verdict")).to_have_text("good")
        expect(page.locator("body")).not_to_have_class("passed")
        broken = {"name": "broken.tiff", "mimeType": "image/tiff", "buffer": b"no TIFF"}
        page.request.post(f"{address}/inspections", multipart={"depth": broken, "part": "serial-18"})
        told = r"^serial-18 could not be judged at \d+:\d\d:\d\d.*: broken.tiff: expected depth"
        expect(page.locator("#refused")).to_have_text(re.compile(told))
        expect(page.locator("body")).to_have_class("passed")
        page.uncheck("#follow")
        expect(page.locator("#refused")).not_to_be_visible()
        page.check("#follow")
        expect(page.locator("#refused")).to_be_visible()
        record(tmp_path, [{"part": "after"}])
        expect(page.locator("#name")).to_have_text("after")
        expect(page.locator("#refused")).not_to_be_visible()
        expect(page.locator("body")).not_to_have_class("passed")


def test_a_live_part_is_judged_as_recorded_whatever_threshold_was_moved_before(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    with serve() as address, opened(browser, address) as page:
        record(tmp_path, [{"part": "one"}])
        expect(page.locator("#name")).to_have_text("one")
        move(page, 0.05)
        expect(page.locator("#verdict")).to_have_text("defective")
        record(tmp_path, [{"part": "two"}])
        expect(page.locator("#name")).to_have_text("two")
        expect(page.locator("#verdict")).to_have_text("good")
        expect(page.locator("#list .chip")).to_have_text(["good", "good"])


def test_a_phone_shows_everything_below_each_other(browser: Browser, serve: Serve, parts: list[Files]) -> None:
    with serve() as address, opened(browser, address, 360, 740) as page:
        page.set_input_files("#files", list(parts[1]))
        page.wait_for_selector("#solid canvas")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        tops = [page.locator(f"#{id}").bounding_box() for id in ("intake", "part", "heatmap", "solid", "past")]
        assert all(box is not None for box in tops)
        heights = [box["y"] for box in tops if box]
        assert heights == sorted(heights)
        small = page.evaluate(
            "[...document.querySelectorAll('button, .button, select, input[type=search]')]"
            ".filter((one) => one.offsetParent && one.getBoundingClientRect().height < 34).map((one) => one.outerHTML)"
        )
        assert not small, "too small for fingers"


def test_the_page_asks_for_the_key(browser: Browser, serve: Serve, parts: list[Files]) -> None:
    with serve(KEY) as address, opened(browser, address) as page:
        page.fill("#key", "wrong one")
        page.click("#ask button")
        expect(page.locator("#ask")).to_be_visible()
        page.fill("#key", KEY)
        page.click("#ask button")
        expect(page.locator("#ask")).not_to_be_visible()
        page.set_input_files("#files", list(parts[0]))
        page.wait_for_selector("#solid canvas")
        expect(page.locator("#list li")).to_have_count(1)
