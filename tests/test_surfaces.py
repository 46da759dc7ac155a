"""Surfaces: what the viewer gets is what the scan holds, and the viewer shows nothing that was not measured."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PATIENCE, needs_chromium
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser

from das3d.background import plane_depth
from das3d.errors import DataError
from das3d.scan import Camera, scan_from_arrays
from das3d.surfaces import MODULES, Surface, import_map, read_asset, surface_of
from das3d.window import Window


def unpacked(packed: dict[str, Any]) -> NDArray[np.float64]:
    """Depth (H, W) as the viewer's `unpack` reads it."""
    high, low = np.frombuffer(zlib.decompress(base64.b64decode(packed["depth"])), np.uint8).reshape(2, -1).astype(int)
    codes = (np.cumsum(high * 256 + low) & 0xFFFF).reshape(packed["height"], packed["width"])
    return np.where(codes > 0, packed["near"] + (codes - 1) * packed["step"], np.nan)


depths = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.one_of(st.floats(0.25, 2, width=32), st.just(np.nan)),
)  # fmt: skip


@given(depths)
@settings(deadline=None, max_examples=50)
def test_depth_survives_packing_to_a_step_and_missing_points_stay_missing(depth: NDArray[np.float32]) -> None:
    packed = Surface(depth, None, None, None).to_json()
    json.dumps(packed, allow_nan=False)
    found = unpacked(packed)
    assert np.array_equal(np.isnan(found), np.isnan(depth))
    known = ~np.isnan(depth)
    assert np.allclose(found[known], depth[known], atol=0.51 * packed["step"] + 1e-6, rtol=0)


def test_coarser_depths_are_measured_ones() -> None:
    # A mean over the edge of a part would float between it and the table.
    depth = np.full((40, 64), 0.7, np.float32)
    depth[:, :31] = 0.5
    depth[5:15, 40:50] = 0
    surface = surface_of(scan_from_arrays(depth=depth), largest=16)
    assert surface.depth.shape == (10, 16)
    known = np.isfinite(surface.depth)
    assert set(np.unique(surface.depth[known])) == {np.float32(0.5), np.float32(0.7)}
    assert not known[2, 11] and known.sum() >= 150


def test_the_smallest_finding_stays_visible_in_a_coarser_surface() -> None:
    anomaly = np.zeros((100, 100), np.float32)
    anomaly[33, 71] = 0.4
    surface = surface_of(scan_from_arrays(depth=np.ones((100, 100))), anomaly, high=0.5, largest=25)
    assert surface.heat is not None and surface.heat[33 // 4, 71 // 4] == np.float32(0.8)
    assert np.count_nonzero(surface.heat) == 1


def test_colours_stay_with_their_depth_where_the_last_blocks_reach_over_the_edge() -> None:
    width, step = 400, 3  # 134 blocks, the last of which is a third of one
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    rgb = np.broadcast_to(ramp[None, :, None], (30, width, 3)).copy()
    depth = np.broadcast_to(0.5 + np.arange(width) / 1000, (30, width)).astype(np.float32)
    surface = surface_of(scan_from_arrays(rgb, depth), largest=-(-width // step))
    assert surface.rgb is not None and surface.depth.shape == surface.rgb.shape[:2] == (10, 134)
    columns = (surface.depth[5] - 0.5) * 1000
    np.testing.assert_allclose(surface.rgb[5, :, 0], columns * 255 / (width - 1), atol=1.5)


def test_window_plane_and_pitch() -> None:
    plane = (0.1, 0.2, 1.5)
    depth = plane_depth(plane, (40, 60))
    scan = scan_from_arrays(np.zeros((40, 60, 3), np.uint8), depth - 0.01, camera=Camera(500, 500, 30, 20))
    surface = surface_of(scan, window=Window.square(-10, 0, 60, (40, 60)), plane=plane, largest=30)
    assert surface.depth.shape == (30, 30) and surface.rgb is not None and surface.rgb.shape == (30, 30, 3)
    assert np.isnan(surface.depth[:5]).all() and np.isnan(surface.depth[25:]).all(), "beyond the frame nothing is known"
    assert np.allclose(surface.depth[5:25], -0.01, atol=1e-6), "a tilted table lies flat"
    assert surface.pitch == pytest.approx(2 * float(np.median(depth - 0.01)) / 500)
    mirrored = scan_from_arrays(np.zeros((40, 60, 3), np.uint8), depth - 0.01, camera=Camera(-500, -500, 30, 20))
    assert surface_of(mirrored, largest=60).pitch == pytest.approx(float(np.median(depth - 0.01)) / 500)


def test_a_scan_without_depth_has_no_surface() -> None:
    with pytest.raises(DataError, match="scan: expected depth for a view in 3D, found RGB alone"):
        surface_of(scan_from_arrays(np.zeros((4, 4, 3), np.uint8)))


def test_import_map_names_every_module() -> None:
    served = json.loads(import_map("/assets/"))["imports"]
    assert served == {"three": "/assets/vendor/three.min.js", "das3d/viewer": "/assets/viewer.js"}
    inlined = json.loads(import_map())["imports"]
    for name, path in MODULES.items():
        assert base64.b64decode(inlined[name].partition(",")[2]) == read_asset(path)
    assert b"MIT License" in read_asset("vendor/three.LICENSE")


PAGE = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} div {{ height: 100vh }}</style>
<div id="view"></div>
<script type="importmap">{imports}</script><script type="module">
import {{ createViewer, join, unpack }} from "das3d/viewer";
const told = {{}}, report = (value) => (window.answer = value), element = document.getElementById("view");
const surface = {surface};
{script}
</script>"""


def run_script(browser: Browser, folder: Path, script: str, surface: Surface) -> Any:
    """What a script of the page gives to `report`; the page is one file on disk."""
    file = folder / "page.html"
    file.write_text(PAGE.format(imports=import_map(), surface=json.dumps(surface.to_json()), script=script))
    page = browser.new_page(viewport={"width": 400, "height": 400})
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(file.as_uri())
    page.wait_for_function("window.answer !== undefined", timeout=PATIENCE)
    answer = page.evaluate("window.answer")
    page.close()
    return answer


@needs_chromium
def test_viewer_in_one_file_from_disk(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    depth = (0.5 + 0.01 * rng.random((12, 16))).astype(np.float32)
    depth[3:6, 4:8] = np.nan
    rgb, heat = np.full((12, 16, 3), (200, 40, 90), np.uint8), rng.random((12, 16), np.float32)
    told = run_script(
        browser,
        tmp_path,
        """
        const grid = await unpack(surface);
        told.depth = [...grid.depth].map((z) => (Number.isFinite(z) ? z : null));
        told.heat = [...grid.heat];
        told.rgb = [...grid.rgb.slice(0, 3)];
        const view = createViewer(element, grid);
        told.colours = view.colours;
        const root = element.firstElementChild.shadowRoot;
        const pressed = () => [...root.querySelectorAll("[aria-pressed=true]")].map((button) => button.textContent);
        told.first = pressed();
        root.querySelector("[data-colour=depth]").click();
        root.querySelector("[data-relief='4']").click();
        told.then = pressed();
        try { view.colour("smell"); } catch (error) { told.refused = error.message; }
        view.dispose();
        told.left = element.childElementCount;
        const plain = createViewer(element, { width: 2, height: 1, depth: new Float32Array(2), toolbar: false });
        told.plain = plain.colours;
        try { createViewer(element, { width: 2, height: 2, depth: new Float32Array(3) }); }
        catch (error) { told.wrong = error.message; }
        report(told);
        """,
        Surface(depth, 0.001, rgb, heat),
    )
    found = np.array(told["depth"], float).reshape(depth.shape)
    assert np.array_equal(np.isnan(found), np.isnan(depth)) and np.nanmax(np.abs(found - depth)) < 1e-5
    assert np.allclose(np.reshape(told["heat"], heat.shape), heat, atol=0.51 / 255)
    assert np.allclose(told["rgb"], (200, 40, 90), atol=3), "JPEG keeps a plain colour"
    assert told["colours"] == ["heat", "rgb", "depth"] and told["plain"] == ["depth"]
    assert told["first"] == ["Heat", "Height x 1"] and told["then"] == ["Depth", "Height x 4"]
    assert told["refused"] == "colour: expected one of heat, rgb, depth, found smell"
    assert told["left"] == 0 and told["wrong"] == "depth: expected 4 numbers for 2 x 2, found 3"


@needs_chromium
def test_viewer_bridges_neither_holes_nor_steps(browser: Browser, tmp_path: Path) -> None:
    depth = np.full((8, 10), 0.5, np.float32)
    depth[:, 5:] = 0.6
    depth[2, 2] = np.nan
    told = run_script(
        browser,
        tmp_path,
        "told.triangles = [...join(await unpack(surface), 0.01)]; report(told);",
        Surface(depth, None, None, None),
    )
    triangles = np.reshape(told["triangles"], (-1, 3))
    corners = depth.ravel()[triangles]
    assert np.isfinite(corners).all() and (np.ptp(corners, axis=1) < 0.01).all()
    # 2 x 7 x (4 + 4) without the hole, which takes the six triangles around it; two come back on the other diagonals.
    assert len({tuple(sorted(triangle)) for triangle in triangles.tolist()}) == len(triangles) == 112 - 4
    rows, columns = np.divmod(triangles, 10)
    assert (np.ptp(rows, axis=1) == 1).all() and (np.ptp(columns, axis=1) == 1).all()


@needs_chromium
def test_viewer_paints_the_part_and_nothing_where_nothing_was_measured(browser: Browser, tmp_path: Path) -> None:
    depth = np.full((40, 40), 0.5, np.float32)
    depth[10:30, 10:30] = np.nan
    heat = np.zeros((40, 40), np.float32)
    heat[:, :8] = 1
    script = """
        const { canvas } = createViewer(element, { ...(await unpack(surface)), toolbar: false });
        requestAnimationFrame(() => requestAnimationFrame(() => report(canvas.toDataURL("image/png"))));
    """
    shot = run_script(browser, tmp_path, script, Surface(depth, 0.001, np.full((40, 40, 3), 90, np.uint8), heat))
    image = Image.open(io.BytesIO(base64.b64decode(shot.partition(",")[2])))
    white_page = Image.new("RGBA", image.size, "white")
    picture = np.asarray(Image.alpha_composite(white_page, image.convert("RGBA")).convert("RGB")).astype(int)
    red = (picture[..., 0] > 2 * picture[..., 1]) & (picture[..., 0] > 80)
    white = (picture == 255).all(axis=2)
    middle = tuple(slice(size // 2 - 20, size // 2 + 20) for size in white.shape)
    assert white[middle].all(), "the hole shows the page"
    assert 0.02 < red.mean() < 0.15 and red[:, : red.shape[1] // 2].sum() > 0.9 * red.sum(), "heat lies on the left"
    assert 0.15 < 1 - white.mean() < 0.6
