"""The detector: one file in, the same verdicts out; scores, maps and verdicts on parts of every kind."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scenes import Scene, see
from scipy import ndimage

from das3d.batches import GoodParts
from das3d.detector import CHECKPOINT_FILE, FORMAT, MODEL_FILE, Detector, load
from das3d.engines import EngineOutput, batch_of, side_by_side
from das3d.engines.torch_engine import TorchEngine, choose_device, fused, part_scores, turned
from das3d.errors import DataError, ModelError, SettingsError
from das3d.measurement import measure
from das3d.network import DAS3DNet
from das3d.preparation import prepare
from das3d.regions import ENOUGH, FEATURES, Moments, RegionNorms
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import ScoreSettings, make_settings
from das3d.threshold import SAME, threshold_from
from das3d.window import Window

MODALITIES = ["rgb+depth", "rgb", "depth"]
TINY = [
    "preparation.size=64",
    "network.stem=2",
    "network.repair_widths=[8, 8, 8]",
    "network.discriminator_widths=[8, 8, 8]",
    "network.fuse_width=8",
    "score.window=5",
    "score.turn=0",
]


def detector(modality: str = "rgb+depth", *changes: str, scenes: list[Scene] | None = None) -> Detector:
    """A detector with random weights whose maps span most of 0 to 1."""
    chosen = make_settings("demo", modality=modality, changes=[*TINY, *changes])  # type: ignore[arg-type]
    scans = [scene.scan().without(rgb=modality == "depth") for scene in scenes or [see(seed=1), see(seed=2)]]
    statistics = measure(scans, chosen.preparation)
    parts = GoodParts.from_scans([prepare(scan, statistics, chosen.preparation) for scan in scans])
    torch.manual_seed(5)  # layers draw from the global generator
    network = DAS3DNet.from_settings(chosen)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
        for _ in range(20):  # for the statistics of batch norm
            logits = network(parts.rgb.float() / 255, parts.depth).logits
        network.discriminator.head.weight /= logits.std()
    # As training leaves it: weights in channels-last order.
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = Detector(chosen, statistics, TorchEngine(network, chosen.score))
    found.threshold = threshold_from([0.2, 0.5, 0.4], 0.3, {"spots": [0.3, 0.9]}, ["b", "a", "c"])
    found.fingerprints = {"train": ["00ff"], "held_out": ["01", "02", "03"]}
    found.training = {"category": "cover", "parts": 2, "minutes": 0.5}
    found.calibrations = [{"at": "2026-01-02T03:04:05+00:00", "data": "/parts", "parts": 3, "value": 0.5}]
    return found


@pytest.fixture(scope="module")
def both() -> Detector:
    return detector()


@pytest.mark.parametrize("member", ["score", "map"])
def test_what_is_no_number_is_no_verdict(member: str, both: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    run = both.engine.run

    def damaged(**members: Any) -> EngineOutput:
        output = run(**members)
        values = getattr(output, member).copy()
        values[1] = np.nan
        return replace(output, **{member: values})

    monkeypatch.setattr(both.engine, "run", damaged)
    with pytest.raises(ModelError, match="second: expected a finite score and map, found score"):
        list(both.predict_scans([see(seed=3).scan("first"), see(seed=4).scan("second")]))


# ------------------------------------------------------------------------------------------- live cameras


def test_scans_before_a_bad_one_are_judged_before_it_raises(both: Detector) -> None:
    blind = np.zeros_like(see().depth)

    def camera() -> Iterator[Scan]:
        yield see(seed=3).scan()
        yield see(seed=4).scan()
        yield scan_from_arrays(see().rgb, blind, name="third")

    small = see().scan("third")
    small = replace(small, rgb=small.rgb[:-4], depth=small.depth[:-4], valid=small.valid[:-4], mask=None)  # type: ignore[index]
    expected = [prediction.score for prediction in both.predict_scans([see(seed=3).scan(), see(seed=4).scan()])]
    for scans in (camera(), [see(seed=3).scan(), see(seed=4).scan(), small, see(seed=5).scan()]):
        predictions = both.predict_scans(scans)
        assert [next(predictions).score, next(predictions).score] == expected
        with pytest.raises(DataError, match="third: expected"):
            next(predictions)


def test_a_camera_that_uses_its_buffers_again_gives_what_it_saw(both: Detector) -> None:
    rgb, depth = np.empty_like(see().rgb), np.empty_like(see().depth)

    def camera() -> Iterator[Scan]:
        for seed in (3, 4, 5):
            seen = see(seed=seed)
            rgb[:], depth[:] = seen.rgb, seen.depth
            yield scan_from_arrays(rgb, depth)

    expected = [both.predict(see(seed=seed).rgb, see(seed=seed).depth).score for seed in (3, 4, 5)]
    assert [one.score for one in both.predict_scans(camera())] == pytest.approx(expected, rel=1e-5)
    taken = []

    def watched() -> Iterator[Scan]:
        for scan in camera():
            taken.append(scan)
            yield scan

    for number, _ in enumerate(both.predict_scans(watched(), batch=1), start=1):
        assert len(taken) == number, "no part waits for those behind it"


def test_arrays_are_read_by_the_format_of_the_training_files(both: Detector) -> None:
    seen = see(seed=3)
    told = replace(both, training={"depth_format": {"scale": 0.00005, "offset": 0.2, "missing": 3.0}})
    counts = np.where(seen.depth > 0, np.rint((seen.depth - 0.2) / 0.00005), 3).astype(np.uint16)
    metres = np.where(counts == 3, 0, counts * 0.00005 + 0.2)
    found = told.predict(np.dstack([seen.rgb, seen.rgb[..., 0]]), counts, unit=told.depth_format)
    assert found.score == told.predict(seen.rgb.astype(np.uint16) * 257, metres).score


def test_threads_may_share_a_detector(both: Detector) -> None:
    scenes = [see(seed=seed) for seed in range(3, 9)]
    expected = [both.predict(scene.rgb, scene.depth).score for scene in scenes]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda scene: both.predict(scene.rgb, scene.depth).score, scenes * 3))
    assert found == expected * 3


# ------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_loaded_model_predicts_bit_for_bit_the_same(modality: str, tmp_path: Path) -> None:
    first = detector(modality)
    first.save(tmp_path / MODEL_FILE)
    scans = [see(seed=seed).scan() for seed in (3, 4, 5)]
    for path in (tmp_path, tmp_path / MODEL_FILE, str(tmp_path)):
        again = load(path, "cpu")
        assert not again.network.training
        for one, other in zip(first.predict_scans(scans), again.predict_scans(scans), strict=True):
            assert (one.name, one.score, one.defective) == (other.name, other.score, other.defective)
            assert np.array_equal(one.map, other.map)


def test_everything_beside_the_weights_comes_back(both: Detector, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).random((ENOUGH, FEATURES))
    told = replace(both, norms=RegionNorms((3, 2, 1), (0.1, 0.2), Moments.of(samples), Moments.of(samples + 1)))
    told.save(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    for name in ("settings", "statistics", "threshold", "training", "fingerprints", "calibrations", "norms"):
        assert getattr(again, name) == getattr(told, name) and getattr(again, name), name
    assert isinstance(again.statistics.plane, tuple) and isinstance(again.statistics.frame, tuple)
    again.save(str(tmp_path / "b.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_model_without_threshold_gives_no_verdict(tmp_path: Path) -> None:
    first = detector()
    first.threshold = None
    first.save(tmp_path / MODEL_FILE)
    again = load(tmp_path)
    assert again.threshold is None
    assert again.predict(see().rgb, see().depth).defective is None


def test_a_failed_save_keeps_the_old_model(both: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both.save(tmp_path / MODEL_FILE)
    content = (tmp_path / MODEL_FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            both.save(tmp_path / MODEL_FILE)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]
    assert (tmp_path / MODEL_FILE).read_bytes() == content


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("kind", ["pickle", "torch", "empty", "text", "half", "shifted"])
def test_what_is_no_model_is_refused_and_never_unpickled(kind: str, both: Detector, tmp_path: Path) -> None:
    file, trap = tmp_path / MODEL_FILE, tmp_path / "sprung"
    both.save(file)
    content = file.read_bytes()
    if kind == "torch":
        torch.save({"weights": Trap(trap)}, file)
    else:
        half = content[: len(content) // 2]
        contents = {
            "pickle": pickle.dumps(Trap(trap)),
            "empty": b"",
            "text": b"hello\n",
            "half": half,
            "shifted": b"0" + content,
        }
        file.write_bytes(contents[kind])
    for path in (file, tmp_path):
        with pytest.raises(ModelError) as caught:
            load(path)
        assert str(caught.value).startswith(
            f"{file}: expected a das3d model as .safetensors, .onnx or .xml (OpenVINO), found "
        )
    assert not trap.exists()


def test_a_copy_that_was_cut_short_is_refused(both: Detector, tmp_path: Path) -> None:
    # As under Windows, where a copy has its full length from the start. Its scores would be those of no defect at all.
    file = tmp_path / MODEL_FILE
    both.save(file)
    content = file.read_bytes()
    load(file)
    file.write_bytes(content[: -len(content) // 4].ljust(len(content), b"\0"))
    with pytest.raises(ModelError, match=r"model\.safetensors: expected the weights that were saved there, found damaged"):
        load(file)


def test_nothing_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a run folder with model\.safetensors, .* it has no finished training"):
        load(tmp_path)
    (tmp_path / CHECKPOINT_FILE).touch()
    with pytest.raises(ModelError, match=r"no finished training, das3d train with --resume goes on"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"absent: expected a run folder with model\.safetensors, or a .*, found none$"):
        load(tmp_path / "absent")


def rewritten(file: Path, **changes: Any) -> Path:
    """The model file with other facts beside the weights; None leaves one out."""
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["das3d"])
    about = {key: value for key, value in {**about, **changes}.items() if value != "leave out"}
    save_file(load_file(file), file, metadata={"das3d": json.dumps(about)})
    return file


def test_models_of_something_else_are_refused(both: Detector, tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"das3d": "[1, 2]"}, {"das3d": "{}"}):
        file = tmp_path / "other.safetensors"
        save_file({"weight": torch.zeros(3)}, file, metadata=metadata)
        with pytest.raises(ModelError, match=r"other\.safetensors: expected a das3d model, found a safetensors"):
            load(file)
    save_file({"weight": torch.zeros(3)}, file, metadata={"das3d": "no JSON"})
    with pytest.raises(ModelError, match=r"other\.safetensors: expected a das3d model"):
        load(file)


@pytest.mark.parametrize(("form", "version"), [(FORMAT - 1, "0.1.0"), (FORMAT + 1, "9.9")])
def test_models_of_another_format_are_refused(form: int, version: str, both: Detector, tmp_path: Path) -> None:
    both.save(tmp_path / MODEL_FILE)
    file = rewritten(tmp_path / MODEL_FILE, format=form, version=version)
    with pytest.raises(ModelError) as caught:
        load(file)
    assert str(caught.value) == (
        f"{file}: expected model format {FORMAT}, found {form} (written by das3d {version}); train it again, or use it "
        "with the version that trained it"
    )


def test_models_that_lack_a_setting_are_refused_and_judge_by_no_default(both: Detector, tmp_path: Path) -> None:
    both.save(tmp_path / MODEL_FILE)
    kept = both.settings.model_dump(mode="json")
    del kept["score"]["turn"], kept["network"]["direct"]
    with pytest.raises(ModelError, match=r"found a problem: no settings network\.direct, score\.turn; train it again"):
        load(rewritten(tmp_path / MODEL_FILE, settings=kept))


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": "leave out"},
        {"settings": 3},
        {"settings": {"preset": "fast", "novelty": {"on": True}}},
        {"statistics": "leave out"},
        {"statistics": {"near": 0.0}},
        {"statistics": None},
        {"threshold": "leave out"},
        {"threshold": {"value": 1.0}},
        {"fingerprints": "leave out"},
        {"calibrations": "leave out"},
        {"norms": "leave out"},
        {"training": "leave out"},
        {"training": 3},
    ],
)
def test_damage_beside_the_weights_is_refused(changes: dict[str, Any], both: Detector, tmp_path: Path) -> None:
    both.save(tmp_path / MODEL_FILE)
    file = rewritten(tmp_path / MODEL_FILE, **changes)
    with pytest.raises(ModelError, match=r"model\.safetensors: expected what this version writes beside the weights"):
        load(file)


def test_weights_of_other_settings_are_refused(both: Detector, tmp_path: Path) -> None:
    both.save(tmp_path / MODEL_FILE)
    other = detector("rgb").settings.model_dump(mode="json")
    with pytest.raises(
        ModelError, match=r"model\.safetensors: expected weights of the networks .* \([0-9]+ unknown, such as "
    ):
        load(rewritten(tmp_path / MODEL_FILE, settings=other))


def test_a_model_of_networks_before_they_changed_says_what_differs_and_to_train_again(tmp_path: Path) -> None:
    old = detector("rgb+depth", "network.direct=false")
    old.save(tmp_path / MODEL_FILE)
    about = old.settings.model_dump(mode="json")
    about["network"]["direct"] = True  # whose networks are of another make
    with pytest.raises(ModelError) as caught:
        load(rewritten(tmp_path / MODEL_FILE, settings=about))
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / MODEL_FILE) in message and "train it again" in message
    assert "of another size, such as discriminator.encoder.0.0.weight: expected 8x" in message


# ------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("size", [(150, 180), (200, 133)])
def test_arrays_of_every_kind_give_a_map_on_their_own_grid(modality: str, size: tuple[int, int]) -> None:
    scene = see(seed=3, size=size)
    trained = detector(modality, scenes=[see(seed=1, size=size), see(seed=2, size=size)])
    rgb = None if modality == "depth" else scene.rgb
    prediction = trained.predict(rgb, scene.depth, name="part 7")
    assert prediction.name == "part 7"
    assert prediction.map.shape == size and prediction.map.dtype == np.float32
    assert 0 <= prediction.map.min() < prediction.map.max() <= 1
    assert 0 < prediction.score < 1
    assert prediction.defective is (prediction.score > 0.5)
    points = trained.predict(rgb, scene.points, name="part 7")
    assert points.score == prediction.score and np.array_equal(points.map, prediction.map)


def test_networks_that_see_rgb_only_take_depth_where_training_had_it_and_else_do_without() -> None:
    with_depth, scene = detector("rgb"), see(seed=3)
    with pytest.raises(DataError, match="part 7: expected depth, as the training scans have it, found none"):
        with_depth.predict(scene.rgb, name="part 7")
    chosen = with_depth.settings
    scans = [see(seed=seed).scan().without(depth=True) for seed in (1, 2)]
    without = Detector(chosen, measure(scans, chosen.preparation), with_depth.engine)
    prediction = without.predict(scene.rgb)
    assert prediction.map.shape == (150, 180) and prediction.map.any()
    assert without.predict(scene.rgb, scene.depth).score == prediction.score


def test_networks_that_see_depth_only_need_no_rgb_and_are_not_swayed_by_it() -> None:
    trained, scene = detector("depth"), see(seed=3)
    alone, beside = trained.predict(depth=scene.depth), trained.predict(255 - scene.rgb, scene.depth)
    assert alone.score == beside.score and np.array_equal(alone.map, beside.map)
    seen = measure([see(seed=seed).scan().without(rgb=True) for seed in (1, 2)], trained.settings.preparation)
    without = Detector(trained.settings, seen, trained.engine)  # as training measures for such networks
    assert without.predict(scene.rgb[::2], scene.depth).score == without.predict(depth=scene.depth).score


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "p7: expected RGB, depth or both, found neither"),
        ({"rgb": see().rgb}, "p7: expected depth, as the training scans have it, found none"),
        ({"depth": see().depth}, "p7: expected RGB, as the training scans have it, found none"),
        ({"rgb": see().rgb, "depth": see().depth[:-1]}, "p7: all members must have one size"),
        (
            {"rgb": see().rgb[:-1], "depth": see().depth[:-1]},
            "p7: expected 180 x 150 pixels .* found 180 x 149",
        ),
        (
            {"rgb": see().rgb, "depth": see().depth * 0},
            "p7: expected a measured depth somewhere",
        ),
        ({"rgb": see().rgb, "depth": see(solids=()).depth}, "p7: expected a part more than"),
        ({"rgb": see().rgb, "depth": see().depth, "unit": "ft"}, "depth unit: expected one of m, cm, mm, um, found 'ft'"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(members: dict[str, Any], message: str, both: Detector) -> None:
    with pytest.raises(DataError, match=message):
        both.predict(**members, name="p7")


def test_the_unit_of_the_depth_does_not_matter(both: Detector) -> None:
    scene = see(seed=6)
    counts = np.round(scene.depth * 1e4).astype(np.uint16)
    expected = both.predict(scene.rgb, counts / 10_000)
    for depth, unit in ((counts / 10, "mm"), (counts / 100, "cm"), (counts.astype(np.uint32) * 100, "um")):
        found = both.predict(scene.rgb, depth, unit=unit)
        assert found.score == expected.score and np.array_equal(found.map, expected.map)


def test_missing_depth_is_the_same_in_every_notation(both: Detector) -> None:
    scene = see(seed=6)
    holes = np.random.default_rng(0).random(scene.part.shape) < 0.1
    scores = {
        both.predict(scene.rgb, np.where(holes, value, scene.depth)).score for value in (0, -1, np.nan, np.inf, -np.inf)
    }
    assert len(scores) == 1


def test_a_defect_shows_on_the_map_where_it_is(both: Detector) -> None:
    scene = see(seed=6)
    rgb = scene.rgb.copy()
    rgb[70:80, 85:95] = (255, 0, 0)
    changed = np.abs(both.predict(rgb, scene.depth).map - both.predict(scene.rgb, scene.depth).map)
    v, u = np.indices(changed.shape)
    weight = np.where(changed > 0.5 * changed.max(), changed, 0)
    centre = (v * weight).sum() / weight.sum(), (u * weight).sum() / weight.sum()
    assert centre == pytest.approx((74.5, 89.5), abs=12), "within the reach of the network"


@pytest.mark.parametrize("modality", MODALITIES)
def test_neither_the_batch_nor_its_other_parts_change_a_score(modality: str) -> None:
    trained = detector(modality)
    scans = [see(seed=seed, noise=0.0002 * seed).scan(str(seed)) for seed in range(7)]
    alone = list(trained.predict_scans(scans, batch=1))
    for batch in (2, 3, 8):
        together = list(trained.predict_scans(iter(scans), batch=batch))
        assert [one.name for one in together] == [str(seed) for seed in range(7)]
        assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-5)
        for one, other in zip(together, alone, strict=True):
            assert np.abs(one.map - other.map).max() < 1e-5
    assert len({one.score for one in alone}) == 7
    assert list(trained.predict_scans([])) == []
    with pytest.raises(SettingsError, match="batch: expected 1 or more scans at a time, found 0"):
        list(trained.predict_scans(scans, batch=0))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_parts_of_a_batch_are_computed_side_by_side_and_all_else_keeps_its_threads(
    both: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [prepare(see(seed=seed).scan(), both.statistics, both.settings.preparation) for seed in range(4)]
    alone, compute, meet = [both.run([scan]) for scan in scans], TorchEngine._compute, Barrier(2, timeout=60)
    threads = []

    def met(engine: TorchEngine, members: Any) -> Any:
        meet.wait()  # so nothing is computed unless two compute at once
        threads.append(torch.get_num_threads())
        return compute(engine, members)

    monkeypatch.setattr(TorchEngine, "_compute", met)
    together = both.run(scans)
    for member in ("map", "score", "rgb", "depth"):
        np.testing.assert_allclose(
            getattr(together, member), np.concatenate([getattr(one, member) for one in alone]), atol=1e-6
        )
    assert threads == [1] * 4
    with ThreadPoolExecutor(max_workers=1) as later:
        assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 2


def test_parts_are_computed_all_the_same_once_the_program_has_ended_but_for_one_thread(both: Detector) -> None:
    scans = [prepare(see(seed=seed).scan(), both.statistics, both.settings.preparation) for seed in range(2)]
    members, expected = batch_of(scans, rgb=True, depth=True), both.run(scans)
    pool = ThreadPoolExecutor(max_workers=2)
    pool.shutdown()
    found = side_by_side(pool, lambda some: both.engine.run(**some), members)
    np.testing.assert_allclose(found.score, expected.score, atol=1e-6)


def test_scans_are_taken_one_batch_at_a_time(both: Detector) -> None:
    taken = []

    def stream() -> Any:
        for seed in range(5):
            taken.append(seed)
            yield see(seed=seed).scan()

    predictions = both.predict_scans(stream(), batch=2)
    next(predictions)
    assert taken == [0, 1]
    assert len(list(predictions)) == 4


def test_the_map_is_that_of_the_network_put_back(both: Detector) -> None:
    scan = see(seed=6).scan()
    prepared = prepare(scan, both.statistics, both.settings.preparation)
    rgb = torch.from_numpy(prepared.rgb).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        logits = both.network(rgb, torch.from_numpy(prepared.depth)[None, None]).logits
    image = 1 / (1 + np.exp(-logits[0, 0].numpy()))
    prediction = next(both.predict_scans([scan]))
    assert np.abs(prediction.map - prepared.window.put_back(image)).max() < 1e-5
    window = prepared.window
    outside = np.ones(scan.size, dtype=bool)
    outside[window.top : window.top + window.side, window.left : window.left + window.side] = False
    assert outside.any() and (prediction.map[outside] == 0).all()


def test_a_map_takes_the_memory_of_its_frame_only_once_it_is_asked_for(
    both: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(see(seed=6).scan(), both.statistics, both.settings.preparation)
    with monkeypatch.context() as patch:
        patch.setattr(Window, "put_back", lambda *_: pytest.fail("nobody has asked for the map"))
        (prediction,) = both.predict_prepared([prepared], regions=False)
    assert prediction.map.shape == prepared.window.frame and prediction.map is prediction.map


def test_flips_average_the_maps_of_mirrored_parts() -> None:
    plain, flipping = detector(), detector("rgb+depth", "score.flips=true")
    scans = [prepare(see(seed=seed).scan(), plain.statistics, plain.settings.preparation) for seed in (3, 4)]
    members = batch_of(scans, rgb=True, depth=True)

    def maps(by: Detector, *axes: int) -> np.ndarray:
        # Of parts mirrored along rows (2) or columns (3), turned back.
        turned = by.engine.run(**{name: np.flip(member, axes).copy() for name, member in members.items()}).map
        return np.flip(turned, [axis - 1 for axis in axes])

    expected = np.mean([maps(plain), maps(plain, 2), maps(plain, 3), maps(plain, 2, 3)], axis=0)
    assert np.allclose(maps(flipping), expected, atol=1e-6)
    assert not np.allclose(maps(plain), expected, atol=1e-4)
    assert np.allclose(maps(flipping, 3), maps(flipping), atol=1e-6), "mirrored parts score the same"


@pytest.mark.parametrize("modality", MODALITIES)
def test_turns_average_the_maps_of_turned_parts(modality: str) -> None:
    plain, turning = detector(modality), detector(modality, "score.turn=15")
    scans = [prepare(see(seed=seed).scan(), plain.statistics, plain.settings.preparation) for seed in (3, 4)]
    members = batch_of(scans, rgb=modality != "depth", depth=modality != "rgb")
    tensors = {name: torch.from_numpy(member.astype(np.float32)) for name, member in members.items()}
    if "rgb" in tensors:
        tensors["rgb"] /= 255
    views = []
    for degrees in (0.0, 15.0, -15.0):
        moved = turned(tensors.get("rgb"), tensors.get("depth"), degrees)
        with torch.inference_mode():
            image = plain.engine.network(*moved).logits.sigmoid()[:, 0].numpy()  # type: ignore[attr-defined]
        # SciPy turns the other way when it is told the same angle, and 9 where the view showed nothing.
        views.append(ndimage.rotate(image, -degrees, axes=(1, 2), reshape=False, order=1, cval=9))
    seen = np.stack(views)
    middle = (seen <= 1).all(axis=0)
    found = turning.engine.run(**members).map
    assert middle.mean() > 0.5
    assert np.abs(found - seen.mean(axis=0))[middle].max() < 1e-3
    corner = np.s_[:, 0, 0]
    assert np.allclose(found[corner], views[0][corner], atol=1e-5), "what only the part as it lies shows"
    assert not np.allclose(found, plain.engine.run(**members).map, atol=1e-2)
    assert np.array_equal(detector(modality, "score.turn=0").engine.run(**members).map, plain.engine.run(**members).map)


@given(degrees=st.floats(-45, 45))
@settings(max_examples=20, deadline=None)
def test_members_turn_together_and_outlines_take_nothing_from_beyond(degrees: float) -> None:
    foreground = torch.zeros(1, 1, 48, 48, dtype=torch.bool)
    foreground[:, :, 10:40, 15:31] = True
    depth = torch.where(foreground, 0.25, 1.0)
    rgb = (0.5 * foreground).expand(-1, 3, -1, -1)
    both, colours, shape = turned(rgb, depth, degrees), turned(rgb, None, degrees)[0], turned(None, depth, degrees)[1]
    assert both[0] is not None and both[1] is not None and colours is not None and shape is not None
    torch.testing.assert_close(both[0], colours)
    torch.testing.assert_close(both[1], shape)
    there = both[1] < 0.99
    torch.testing.assert_close(both[1], torch.where(there, 0.25, 1.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[0], (0.5 * there).expand_as(rgb), atol=1e-5, rtol=0)
    assert abs(int(there.sum()) - int(foreground.sum())) < 0.1 * int(foreground.sum())


# ------------------------------------------------------------------------------------------- score


@given(side=st.integers(4, 24), window=st.integers(0, 15).map(lambda n: 2 * n + 1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_score_is_the_highest_mean_of_a_window(side: int, window: int, seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, side, side)).astype(np.float32)
    reach = window // 2
    expected = [
        max(
            image[
                max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1
            ].mean()  # what lies beyond counts not
            for v in range(side)
            for u in range(side)
        )
        for image in maps
    ]
    found = part_scores(torch.from_numpy(maps), ScoreSettings(window=window)).tolist()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_score_of_a_part_is_that_of_its_prepared_map(both: Detector) -> None:
    scan = see(seed=6).scan()
    prepared = prepare(scan, both.statistics, both.settings.preparation)
    image = both.run([prepared]).map[0]
    means = np.lib.stride_tricks.sliding_window_view(image, (5, 5)).mean(axis=(2, 3))
    score = next(both.predict_scans([scan])).score
    assert score >= means.max() - 1e-6
    padded = np.pad(image, 2, constant_values=np.nan)
    assert score == pytest.approx(
        np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, (5, 5)), axis=(2, 3)).max(), rel=1e-5
    )


def test_the_verdict_is_that_of_the_threshold(both: Detector) -> None:
    assert both.threshold is not None
    assert both.verdict(both.threshold.value) is False
    assert both.verdict(both.threshold.value + 2 * SAME) is True


# ------------------------------------------------------------------------------------------- device


def test_devices_of_this_machine_are_found() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cpu:x"])
def test_words_that_mean_no_device_are_answered_with_those_that_do(device: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_device(device)
    assert str(caught.value) == f"device: expected auto, cpu, cuda, cuda:1 or mps, found {device!r}"


@pytest.mark.parametrize("device", ["cuda:99", "meta", "hpu", "xla"])
def test_devices_that_are_not_there_are_refused_in_one_line(device: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_device(device)
    text = str(caught.value)
    assert text.startswith(f"device: expected auto, cpu or a device of this machine, found {device!r} (")
    assert "\n" not in text


def test_a_model_is_not_loaded_onto_a_device_that_is_not_there(both: Detector, tmp_path: Path) -> None:
    both.save(tmp_path / MODEL_FILE)
    with pytest.raises(ModelError, match="device: expected auto, cpu or a device of this machine, found 'cuda:99'"):
        load(tmp_path, "cuda:99")
    assert load(tmp_path, "cpu").engine.describe() == "PyTorch, fp32, CPU"


@pytest.mark.parametrize("changes", [[], ["network.coarse_first=false"], ["network.skips=true"]])
def test_fused_networks_give_the_same_and_leave_the_trained_ones_alone(changes: list[str]) -> None:
    chosen = make_settings("demo", changes=[*TINY, *changes])
    torch.manual_seed(3)
    network = DAS3DNet.from_settings(chosen).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, -1, 1)
            torch.nn.init.uniform_(module.bias, -1, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rgb, depth = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        found, wanted = fused(network)(rgb, depth), network(rgb, depth)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused(network).modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
