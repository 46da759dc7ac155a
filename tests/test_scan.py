"""One part in memory: what a scan accepts, units, missing depth, and intrinsics read off points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from builders import write_member
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scenes import see

from das3d.errors import DataError
from das3d.files import DepthFormat, read_depth, read_rgb
from das3d.scan import UNITS, Camera, Scan, camera_from_points, scan_from_arrays

RGB = np.zeros((4, 6, 3), np.uint8)
DEPTH = np.full((4, 6), 0.5, np.float32)
VALID = np.ones((4, 6), dtype=bool)

# ------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "expected RGB, depth or both, found neither"),
        ({"mask": VALID}, "expected RGB, depth or both, found neither"),
        ({"depth": DEPTH}, "depth and its validity belong together"),
        ({"rgb": RGB, "valid": VALID}, "depth and its validity belong together"),
        ({"rgb": RGB[..., 0]}, r"expected RGB as \(H, W, 3\) uint8, found \(4, 6\) uint8"),
        ({"rgb": np.zeros((4, 6, 4), np.uint8)}, r"found \(4, 6, 4\) uint8"),
        ({"rgb": RGB / 255}, r"found \(4, 6, 3\) float64"),
        ({"depth": DEPTH.astype(np.float64), "valid": VALID}, r"expected depth as \(H, W\) float32, found .* float64"),
        ({"depth": DEPTH[..., None], "valid": VALID}, r"expected depth as \(H, W\) float32, found \(4, 6, 1\)"),
        ({"depth": DEPTH, "valid": VALID.astype(np.uint8)}, r"expected validity as \(H, W\) bool, found .* uint8"),
        ({"rgb": RGB, "mask": RGB > 0}, r"expected mask as \(H, W\) bool, found \(4, 6, 3\)"),
        ({"rgb": RGB[:0]}, "expected at least one pixel, found 6 x 0"),
        *(
            ({"depth": np.where(np.eye(4, 6) > 0, np.float32(no), DEPTH), "valid": VALID}, f"found {no} on 4 such pixels")
            for no in ("0", "nan", "inf", "-1")
        ),
    ],
)
def test_wrong_members_are_refused(members: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Scan("part 7", **members)
    assert str(caught.value).startswith("part 7: ")


@pytest.mark.parametrize("short", ["rgb", "depth", "valid", "mask"])
def test_no_member_can_differ_in_size(short: str) -> None:
    members: dict[str, Any] = {"rgb": RGB, "depth": DEPTH, "valid": VALID, "mask": VALID}
    assert Scan("part", **members).size == (4, 6)
    with pytest.raises(DataError, match=r"part: all members must have one size, found .*6 x 3.* \(width x height\)"):
        Scan("part", **{**members, short: members[short][:-1]})
    with pytest.raises(DataError, match="all members must have one size"):
        Scan("part", **{**members, short: np.swapaxes(members[short], 0, 1)})


def test_without_a_member_the_others_stay() -> None:
    scan = Scan("part", RGB, DEPTH, VALID, VALID, Camera(1, 1, 0, 0))
    flat, bare = scan.without(depth=True), scan.without(rgb=True)
    assert flat.depth is None and flat.valid is None and flat.rgb is RGB and flat.mask is VALID
    assert bare.rgb is None and bare.depth is DEPTH and bare.valid is VALID and bare.camera == scan.camera
    with pytest.raises(DataError, match="found neither"):
        scan.without(rgb=True, depth=True)


# ------------------------------------------------------------------------------------------- from arrays


@pytest.mark.parametrize(("unit", "scale"), [("m", 1.0), ("cm", 1e-2), ("mm", 1e-3), ("um", 1e-6)])
def test_every_unit_becomes_metres(unit: str, scale: float) -> None:
    scan = scan_from_arrays(depth=np.array([[30.0, 0.0]]), unit=unit)
    assert scan.depth is not None and scan.valid is not None
    assert scan.depth.dtype == np.float32
    assert scan.depth[0] == pytest.approx([30 * scale, 0])
    assert scan.valid.tolist() == [[True, False]]
    assert set(UNITS) == {"m", "cm", "mm", "um"}


def test_arrays_in_a_wrong_unit_are_refused() -> None:
    with pytest.raises(DataError, match="gland: expected depths of at most 100 m, found 445 m in the middle; is it m"):
        scan_from_arrays(depth=np.full((4, 4), 445, np.uint16), name="gland")


@given(counts=hnp.arrays(np.uint16, (5, 7)), kind=st.sampled_from([np.uint16, np.int32, ">u2", np.float32, np.float64]))
@settings(max_examples=25, deadline=None)
def test_millimetres_in_any_type_are_the_same_as_metres(counts: np.ndarray, kind: Any) -> None:
    assume(counts.any())
    millimetres = scan_from_arrays(depth=counts.astype(kind), unit="mm")
    metres = scan_from_arrays(depth=counts * 0.001)
    assert millimetres.depth is not None and millimetres.valid is not None
    assert np.array_equal(millimetres.depth, metres.depth)  # type: ignore[arg-type]
    assert np.array_equal(millimetres.valid, counts > 0)


@given(
    values=hnp.arrays(np.float64, (3, 5), elements=st.floats() | st.sampled_from([0.0, -0.0, 1e-60, 1e60])),
    unit=st.sampled_from(sorted(UNITS)),
)
@settings(max_examples=100, deadline=None)
def test_depth_is_positive_and_finite_exactly_where_valid(values: np.ndarray, unit: str) -> None:
    values = np.vstack([values, np.full((9, 5), 1 / UNITS[unit])])  # most of it is a metre away, whatever the rest says
    scan = scan_from_arrays(depth=values, unit=unit)
    assert scan.depth is not None and scan.valid is not None
    assert np.array_equal(scan.valid, scan.depth > 0)
    assert np.isfinite(scan.depth).all()
    assert not (scan.valid & ~(np.isfinite(values) & (values > 0))).any()


@pytest.mark.parametrize("depth", [np.zeros((2, 4)), np.full((2, 4), np.nan), np.zeros((2, 4, 3))])
def test_depth_of_which_nothing_was_measured_is_refused(depth: np.ndarray) -> None:
    with pytest.raises(DataError, match="cap7: expected a measured depth somewhere, found all 8 pixels missing"):
        scan_from_arrays(depth=depth, name="cap7")


def test_missing_values_are_found_in_points_by_z_alone() -> None:
    points = np.ones((2, 3, 3), np.float32)
    points[0, 0], points[0, 1], points[0, 2] = 0, np.nan, (0.5, 0.5, -1)
    points[1, 0, :2] = 0  # on the optical axis
    scan = scan_from_arrays(depth=points)
    assert scan.valid is not None
    assert scan.valid.tolist() == [[False] * 3, [True] * 3]


def test_points_and_depth_image_give_the_same_depth() -> None:
    scene = see()
    from_points, from_depth = scan_from_arrays(depth=scene.points), scan_from_arrays(depth=scene.depth)
    assert np.array_equal(from_points.depth, from_depth.depth)  # type: ignore[arg-type]
    assert from_depth.camera is None
    assert from_points.camera is not None
    given_camera = Camera(1, 2, 3, 4)
    assert scan_from_arrays(depth=scene.points, camera=given_camera).camera == given_camera


def test_mask_is_true_wherever_it_is_not_zero() -> None:
    scan = scan_from_arrays(RGB[:1, :3], mask=np.array([[0, 1, 255]], np.uint8))
    assert scan.mask is not None
    assert scan.mask.tolist() == [[False, True, True]]


def test_arrays_of_the_caller_are_not_written_to() -> None:
    depth = np.array([[np.nan, 0.5, -1.0, 0.0]], np.float32)
    before = depth.copy()
    scan = scan_from_arrays(depth=depth)
    assert np.array_equal(depth, before, equal_nan=True)
    assert scan.depth is not None and not np.shares_memory(scan.depth, depth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected RGB, depth or both"),
        (
            {"depth": np.zeros((4, 6, 1))},
            r"expected depth of shape \(H, W\) or points .* \(H, W, 3\), found shape \(4, 6, 1\)$",
        ),
        ({"depth": np.zeros(24)}, r"found shape \(24,\)$"),
        ({"depth": np.ones((24, 3))}, r"found shape \(24, 3\)$"),  # points without a grid
        ({"depth": 0.5}, "expected depth as an array, found 0.5$"),
        ({"depth": [[0.5, 0.6], [0.7]]}, r"expected depth as an array, found a list that is none \(.*inhomogeneous.*\)$"),
        ({"rgb": [[1, 2], [3]]}, "expected RGB as an array, found a list that is none"),
        ({"rgb": RGB.tolist()}, r"expected RGB as .* found \(4, 6, 3\) int64$"),
        ({"rgb": RGB, "mask": [[1, 2], [3]]}, "expected the mask as an array, found a list that is none"),
        ({"rgb": RGB, "mask": np.full((4, 6), None)}, "expected the mask as numbers, found object$"),
        ({"rgb": RGB, "mask": np.full((4, 6), "no")}, "expected the mask as numbers, found <U2$"),
        (
            {"depth": np.ma.array(DEPTH, mask=DEPTH > 0)},
            "as a plain array, found a masked one; write 0 where depth is masked$",
        ),
        ({"depth": np.zeros((4, 6), complex)}, "expected depth as integers or floats, found complex128$"),
        ({"depth": VALID}, "expected depth as integers or floats, found bool$"),
        ({"depth": np.full((4, 6), "far")}, "expected depth as integers or floats, found <U3$"),
        ({"depth": DEPTH.astype(object)}, "expected depth as integers or floats, found object$"),
        ({"depth": np.full((4, 6), 5, "m8[s]")}, r"expected depth as integers or floats, found timedelta64\[s\]$"),
        (
            {"depth": np.full((4, 6), 100, np.uint8), "unit": "mm"},
            "expected depth with 16 or more bits, found 8 bits, which are too coarse to show defects$",
        ),
        ({"depth": np.full((4, 6, 3), 100, np.uint16), "unit": "mm"}, r"found a colour picture \(uint16, 3 channels\)$"),
        ({"rgb": RGB, "depth": DEPTH[:, :5]}, "all members must have one size, found RGB 6 x 4, depth 5 x 4"),
        ({"rgb": RGB, "depth": np.ones((3, 6, 3))}, "found RGB 6 x 4, depth 6 x 3"),
        ({"rgb": RGB, "mask": VALID[:2]}, "found RGB 6 x 4, mask 6 x 2"),
        ({"rgb": RGB.astype(np.float32)}, "expected RGB as .* found .* float32"),
    ],
)
def test_wrong_arrays_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scan_from_arrays(**arguments, name="part 7")
    assert str(caught.value).startswith("part 7: ")


def test_arrays_are_read_as_files_are(tmp_path: Path) -> None:
    counts = np.array([[0, 500, 2000, 1], [2500, 7, 65535, 2]], np.uint16)
    form = DepthFormat(0.0002, offset=0.1, missing=7, focal_length=600)
    write_member(tmp_path / "depth.png", counts)
    depth, valid, camera = read_depth(tmp_path / "depth.png", form)
    scan = scan_from_arrays(depth=counts, unit=form)
    assert scan.depth is not None and scan.valid is not None
    assert np.array_equal(scan.depth, depth) and np.array_equal(scan.valid, valid) and scan.camera == camera is not None
    told = Camera(1, 2, 3, 4)
    assert scan_from_arrays(depth=counts, unit=form, camera=told).camera == told
    for unit in (0.001, np.float64(0.001), DepthFormat.from_unit("mm")):
        millimetres = scan_from_arrays(depth=counts[:1], unit=unit).depth
        assert millimetres is not None and np.array_equal(millimetres, np.float32([[0, 0.5, 2, 0.001]]))
    with pytest.raises(DataError, match="scan: expected a declared unit for depth in uint16 counts, found none"):
        scan_from_arrays(depth=counts, unit=None)
    metres = scan_from_arrays(depth=DEPTH, unit=None).depth
    assert metres is not None and np.array_equal(metres, DEPTH)
    with pytest.raises(DataError, match=r"found 500 m in the middle; is it 1 metres per count\?"):
        scan_from_arrays(depth=DEPTH * 1000, unit=1.0)


def test_depth_may_be_a_list() -> None:
    depth = scan_from_arrays(depth=[[500, 600], [700, 0]], unit="mm").depth
    assert depth is not None and np.array_equal(depth, np.float32([[0.5, 0.6], [0.7, 0]]))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_colours_are_taken_as_files_have_them(tmp_path: Path, kind: Any, channels: int) -> None:
    rng = np.random.default_rng(channels)
    pixels = rng.integers(0, np.iinfo(kind).max, (4, 6, max(channels, 1)), dtype=kind, endpoint=True)
    pixels = pixels if channels else pixels[..., 0]
    found = scan_from_arrays(pixels).rgb
    assert found is not None and found.dtype == np.uint8 and found.flags.c_contiguous
    tifffile.imwrite(tmp_path / "rgb.tiff", pixels, photometric="rgb" if channels > 2 else "minisblack")
    if channels not in (1, 2):  # which this writer takes for pages
        assert np.array_equal(found, read_rgb(tmp_path / "rgb.tiff"))
    else:
        grey = scan_from_arrays(np.ascontiguousarray(pixels[..., 0])).rgb
        assert grey is not None and np.array_equal(found, grey)


def test_a_scan_does_not_change_with_the_buffers_of_a_camera() -> None:
    rgb, depth, mask = RGB.copy(), DEPTH.copy(), VALID.copy()
    scan = scan_from_arrays(rgb, depth, mask=mask)
    rgb[:], depth[:], mask[:] = 9, 9, False
    assert scan.rgb is not None and scan.depth is not None and scan.mask is not None
    assert (scan.rgb == RGB).all() and (scan.depth == DEPTH).all() and scan.mask.all()


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("inch", "depth unit: expected one of m, cm, mm, um, found 'inch'"),
        (-1, r"depth scale: expected metres per count above 0, found -1\.0"),
        (0, r"depth scale: expected metres per count above 0, found 0\.0"),
        (np.nan, "depth scale: expected metres per count above 0, found nan"),
        (np.inf, "depth scale: expected metres per count above 0, found inf"),
        ([0.001], r"depth unit: expected one of m, cm, mm, um, metres per count or a DepthFormat, found \[0\.001\]"),
        (b"mm", "depth unit: expected one of .*, found b'mm'"),
    ],
)
def test_unknown_units_are_refused(unit: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}$"):
        scan_from_arrays(depth=DEPTH, unit=unit)


# ------------------------------------------------------------------------------------------- intrinsics


@given(
    focal=st.floats(80, 2000),
    centre=st.tuples(st.floats(-20, 80), st.floats(-20, 80)),
    scale=st.sampled_from([1.0, 1000.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_camera_is_read_off_the_points(focal: float, centre: tuple[float, float], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    v, u = np.indices((40, 60))
    z = rng.uniform(0.4, 0.8, u.shape)
    points = np.stack([(u - centre[0]) / focal * z, (v - centre[1]) / (focal * 1.1) * z, z], axis=-1) * scale
    points[rng.random(u.shape) < 0.3] = rng.choice([0, np.nan])
    camera = camera_from_points(points.astype(np.float32))
    assert camera is not None
    assert [camera.fx, camera.fy] == pytest.approx([focal, focal * 1.1], rel=1e-3)
    assert [camera.cx, camera.cy] == pytest.approx(centre, abs=0.05)


def test_a_few_stray_points_do_not_hide_the_camera() -> None:
    v, u = np.indices((60, 80)).astype(np.float64)
    z = 0.5 + 0.001 * u + 0.002 * v
    points = np.dstack([(u - 39.5) / 100 * z, (v - 29.5) / 100 * z, z])
    points[10, 10:14, 0] += 0.1  # 20 pixels aside
    camera = camera_from_points(points)
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((100, 100, 39.5, 29.5), rel=1e-6)


def test_points_of_no_pinhole_camera_give_no_intrinsics() -> None:
    v, u = np.indices((40, 60))
    z = 0.5 + 0.01 * u  # orthographic: x and y do not grow with z
    assert camera_from_points(np.stack([u * 0.001, v * 0.001, z], axis=-1)) is None
    assert camera_from_points(np.ones((40, 60, 3))) is None
    assert camera_from_points(see(size=(9, 11)).points) is None, "99 points are too few"
    assert camera_from_points(np.zeros((40, 60, 3))) is None


@pytest.mark.parametrize("numbers", [(float("nan"), 500, 1, 1), (500, float("inf"), 1, 1), (0, 500, 1, 1)])
def test_a_camera_that_no_lens_has_is_refused(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(DataError, match="camera: expected finite numbers of pixels and focal lengths other than 0, found"):
        Camera(*numbers)
