"""The demo data: layout on disk, determinism, truth of the ground truth, plausibility of the sensors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from das3d.background import fit_background, plane_depth
from das3d.demo import CATEGORY, KINDS, MARKER, DemoScan, make_demo, render_part
from das3d.demo.camera import TILT, camera_for
from das3d.errors import DataError
from das3d.scan import camera_from_points

SIZE = (128, 128)
TRIES = 3  # parts of each kind that are looked at


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo"), train=2, validation=1, good=2, defective=1, size=(96, 128))


@pytest.fixture(scope="module")
def pairs() -> dict[tuple[str, int], tuple[DemoScan, DemoScan]]:
    """Each defective part beside itself before it was harmed."""
    keys = [(kind, index) for kind in KINDS for index in range(TRIES)]
    return {
        (kind, index): (
            render_part((0, "test", kind, index), size=SIZE),
            render_part((0, "test", kind, index), size=SIZE, defect=kind),
        )
        for kind, index in keys
    }


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stands_out(scan: DemoScan) -> np.ndarray:
    """Height above the table in metres, by the plane that preparation fits; 0 where nothing was measured."""
    depth = scan.points[..., 2]
    fit = fit_background(depth, depth > 0)
    assert fit is not None
    return np.where(depth > 0, plane_depth(fit.plane, depth.shape) - depth, 0)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


# ------------------------------------------------------------------------------------------- on disk


def test_layout_is_that_of_mvtec_3d_ad(data: Path) -> None:
    parts = [("train/good", 2), ("validation/good", 1), ("test/good", 2)] + [(f"test/{kind}", 1) for kind in KINDS]
    expected = {MARKER}
    for folder, count in parts:
        members = ["rgb/{}.png", "xyz/{}.tiff"] + ["gt/{}.png"] * folder.startswith("test")
        expected |= {f"{CATEGORY}/{folder}/{m.format(f'{i:03d}')}" for m in members for i in range(count)}
    assert set(files(data)) == expected


def test_members_of_a_part_have_one_size_and_the_types_of_the_layout(data: Path) -> None:
    for path in (data / CATEGORY).rglob("*.png"):
        image = np.asarray(Image.open(path))
        assert image.dtype == np.uint8
        assert image.shape == ((96, 128) if path.parent.name == "gt" else (96, 128, 3))
        assert path.parent.name != "gt" or set(np.unique(image)) <= {0, 255}
    for path in (data / CATEGORY).rglob("*.tiff"):
        points = tifffile.imread(path)
        assert points.shape == (96, 128, 3) and points.dtype == np.float32
        assert not points[points[..., 2] == 0].any(), "a missing point must be (0, 0, 0)"


def test_ground_truth_is_empty_exactly_on_good_parts(data: Path) -> None:
    for path in (data / CATEGORY / "test").rglob("gt/*.png"):
        assert np.asarray(Image.open(path)).any() == (path.parts[-3] != "good"), path


def test_counts_and_order_change_no_part(data: Path, tmp_path: Path) -> None:
    fewer = files(make_demo(tmp_path, train=1, validation=0, good=1, defective=1, size=(96, 128)))
    more = files(data)
    assert all(more[name] == content for name, content in fewer.items() if name != MARKER)


def test_the_seed_alone_decides() -> None:
    np.random.seed(1)  # the global state must have no say
    first = render_part((3, "train", "good", 1), size=(64, 64))
    np.random.seed(2)
    again = render_part((3, "train", "good", 1), size=(64, 64))
    other = render_part((4, "train", "good", 1), size=(64, 64))
    assert np.array_equal(first.rgb, again.rgb) and np.array_equal(first.points, again.points)
    assert not np.array_equal(first.rgb, other.rgb)
    keys = ("train", "good", 2), ("test", "good", 1), ("validation", "good", 1)
    neighbours = [render_part((3, *key), size=(64, 64)) for key in keys]
    assert all(not np.array_equal(first.rgb, one.rgb) for one in neighbours)


def test_earlier_output_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    make_demo(tmp_path, train=2, validation=0, good=0, defective=0, size=(64, 64))
    note = tmp_path / CATEGORY / "train" / "good" / "rgb" / "note.txt"
    note.write_text("mine")
    make_demo(tmp_path, train=1, validation=0, good=0, defective=0, size=(64, 64), seed=1)
    left = {name for name in files(tmp_path) if name != MARKER}
    good = f"{CATEGORY}/train/good"
    assert left == {f"{good}/rgb/000.png", f"{good}/xyz/000.tiff", f"{good}/rgb/note.txt"}


def test_scans_that_a_user_has_added_stay(tmp_path: Path) -> None:
    few = {"validation": 0, "good": 1, "defective": 0, "size": (64, 64)}
    make_demo(tmp_path, train=2, **few)  # type: ignore[arg-type]
    own = [tmp_path / CATEGORY / place for place in ("test/burn/rgb/000.png", "train/good/rgb/100.png")]
    for file in own:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mine")
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"rgb/100\.png: expected a free place for a demo part, found a file that is none"):
        make_demo(tmp_path, train=101, **few)  # type: ignore[arg-type]
    assert files(tmp_path) == before
    make_demo(tmp_path, train=1, seed=1, **few)  # type: ignore[arg-type]
    assert [file.read_bytes() for file in own] == [b"mine", b"mine"]
    assert not (tmp_path / CATEGORY / "train" / "good" / "rgb" / "001.png").exists()


def test_a_marker_that_says_nothing_lets_nothing_be_replaced(tmp_path: Path) -> None:
    make_demo(tmp_path, train=1, validation=0, good=0, defective=0, size=(64, 64))
    for content in ("{", "[]", '{"train": 1}', '{"train": null}'):
        (tmp_path / MARKER).write_text(content)
        before = files(tmp_path)
        with pytest.raises(DataError, match=rf"{MARKER}: expected what earlier demo data consist of, found .*new folder"):
            make_demo(tmp_path)
        assert files(tmp_path) == before


def test_a_part_that_cannot_be_rendered_is_refused() -> None:
    key = (0, "test", "good", 0)
    with pytest.raises(DataError, match=r"defect: expected one of .*scratch.*, found 'scrach'"):
        render_part(key, defect="scrach")
    with pytest.raises(DataError, match="size: expected at least 64 x 64 pixels, found 64 x 32"):
        render_part(key, size=(32, 64))
    with pytest.raises(DataError, match="4 : 3"):
        render_part(key, size=(128, 400))


def test_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="expected a new or empty folder") as caught:
        make_demo(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert set(files(tmp_path)) == {"holiday.jpg"}
    with pytest.raises(DataError, match="found a file"):
        make_demo(tmp_path / "holiday.jpg")


def test_all_wrong_numbers_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        make_demo(tmp_path / "new", train=-1, good=-2, size=(32, 64), seed=-3)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["train", "good", "size", "seed"]
    with pytest.raises(DataError, match="4 : 3"):
        make_demo(tmp_path / "new", size=(128, 400))
    assert not (tmp_path / "new").exists()


def test_progress_counts_every_part(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_demo(tmp_path, train=2, validation=0, good=1, defective=0, size=(64, 64), progress=lambda *at: seen.append(at))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


# ------------------------------------------------------------------------------------------- sensors


@pytest.mark.parametrize("size", [(128, 128), (96, 128), (128, 96)])
def test_points_fit_the_pinhole_camera(size: tuple[int, int]) -> None:
    found, expected = camera_from_points(render_part((0, "train", "good", 0), size=size).points), camera_for(size)
    assert found is not None
    assert [found.fx, found.fy, found.cx, found.cy] == pytest.approx(
        [expected.fx, expected.fy, expected.cx, expected.cy], rel=1e-3
    )


def test_table_and_part_are_where_they_should_be() -> None:
    for index in range(3):
        scan = render_part((0, "train", "good", index), size=SIZE)
        depth = scan.points[..., 2]
        valid = depth > 0
        assert 0.88 < valid.mean() < 0.995
        assert 0.35 < depth[valid].min() < depth.max() < 0.55
        height = stands_out(scan)
        assert 0.24 < (height > 0.005).mean() < 0.5, "the part covers a good share of the picture"
        assert 0.022 < np.quantile(height, 0.999) < 0.030, "the boss is 26 mm high"
        table = np.abs(height[:12, :][valid[:12, :]])
        assert 2e-5 < np.median(table) < 5e-4, "the table is flat but not noiseless"
        assert not (height > 0.005)[[0, -1], :].any() and not (height > 0.005)[:, [0, -1]].any()


def test_table_is_tilted_as_stated() -> None:
    scan = render_part((0, "train", "good", 0), size=SIZE)
    points = scan.points[(scan.points[..., 2] > 0) & (stands_out(scan) < 0.001)].astype(np.float64)
    normal = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][2]
    assert np.arccos(abs(normal[2])) == pytest.approx(TILT, abs=0.01)


def test_good_parts_vary() -> None:
    scans = [render_part((0, "train", "good", index), size=SIZE) for index in range(4)]
    outlines = [stands_out(scan) > 0.005 for scan in scans]
    tints = [scan.rgb[outline].mean(axis=0) for scan, outline in zip(scans, outlines, strict=True)]
    for i in range(4):
        for j in range(i):
            assert (outlines[i] ^ outlines[j]).mean() > 0.01, "position or turn"
            assert np.abs(tints[i] - tints[j]).max() > 0.2, "light or tint, grey levels"


# ------------------------------------------------------------------------------------------- defects


def test_defects_have_a_fair_size_and_lie_on_the_part(pairs: dict[tuple[str, int], tuple[DemoScan, DemoScan]]) -> None:
    for key, (good, harmed) in pairs.items():
        assert 5 <= harmed.mask.sum() < 0.05 * harmed.mask.size, key
        part = grown((stands_out(good) > 0.003) | (stands_out(harmed) > 0.003), 3)
        assert part[harmed.mask].all(), key
        assert not good.mask.any(), key


def test_a_defect_changes_only_what_is_near_it(pairs: dict[tuple[str, int], tuple[DemoScan, DemoScan]]) -> None:
    # Its cast shadow and what the projector cannot light behind it belong to it; 26 mm of boss cast 20 mm of shadow.
    for key, (good, harmed) in pairs.items():
        far = ~grown(harmed.mask, 22)
        assert np.array_equal(good.rgb[far], harmed.rgb[far]), key
        assert np.array_equal(good.points[far], harmed.points[far]), key


def test_what_changed_most_is_in_the_ground_truth(pairs: dict[tuple[str, int], tuple[DemoScan, DemoScan]]) -> None:
    # The noise of both scans is the same, so their difference is the defect with its shadow.
    for key, (good, harmed) in pairs.items():
        both = (good.points[..., 2] > 0) & (harmed.points[..., 2] > 0)
        moved = both & (np.abs(good.points[..., 2] - harmed.points[..., 2]) > 0.001)
        assert grown(harmed.mask, 1)[moved].all(), key
        difference = np.abs(good.rgb.astype(int) - harmed.rgb).max(axis=2)
        assert difference[harmed.mask].mean() > 5 * difference[~harmed.mask].mean(), key
        assert (difference[grown(harmed.mask, 1)] > 8).any(), key


def test_depth_moves_the_way_the_defect_does(pairs: dict[tuple[str, int], tuple[DemoScan, DemoScan]]) -> None:
    expected = {"chip": 1, "dent": 1, "foreign": -1, "missing_rib": 1, "stain": 0}  # +1: away from the camera
    for (kind, index), (good, harmed) in pairs.items():
        before, after = good.points[..., 2], harmed.points[..., 2]
        change = (after - before)[harmed.mask & (before > 0) & (after > 0)]
        if kind == "stain":
            assert not change.any(), index
        elif kind in expected and change.size > 3:
            assert np.sign(change.mean()) == expected[kind], (kind, index)
