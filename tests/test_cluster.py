"""Work shared through Ray: results of one machine, in the same order, whoever dies on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deadly import dying, square
from helpers import scores_of
from safetensors.torch import load_file
from tiny import CHANGES, das3d

from das3d.benchmark import Variant, benchmark, make_plan
from das3d.cluster import Cluster, connect
from das3d.demo import CATEGORY
from das3d.detector import load
from das3d.metrics import FIGURES
from das3d.prediction import predict_folder
from das3d.settings import make_settings
from das3d.streaming import inspect_on, read_map

pytest.importorskip("ray", reason="Ray is not installed: pip install das3d[ray]")
Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Workers have to find the functions of this file.
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("OMP_NUM_THREADS", "1")  # sums in the same order as here
        with connect("local", num_cpus=2) as connected:
            yield connected


def test_a_dead_worker_repeats_its_own_task_and_no_other(cluster: Cluster, tmp_path: Path) -> None:
    found = {index: (result, error) for index, result, error in cluster.map(partial(dying, tmp_path, 1, square), range(7))}
    assert found[4][0] is None and "four is refused" in found[4][1]  # its own fault, reported and not repeated
    assert {index: result for index, (result, _) in found.items() if index != 4} == {i: i * i for i in (0, 1, 2, 3, 5, 6)}
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == {
        "0": 1,
        "1": 1,
        "2": 2,
        "3": 1,
        "5": 1,
        "6": 1,
    }


def test_a_task_that_kills_every_worker_is_reported(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("das3d.cluster.REPEATS", 1)
    found = {index: error for index, _, error in cluster.map(partial(dying, tmp_path, 99, square), [1, 2, 3])}
    assert found[0] == found[2] == "" and "its worker died 2 times" in found[1]


class Deadly:
    """A cluster that kills the worker of one chunk after it has worked."""

    def __init__(self, cluster: Cluster, notes: Path) -> None:
        self.cluster, self.notes = cluster, notes

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        (self.notes / "0").write_text("")
        (self.notes / "1").write_text("")
        return self.cluster.map(partial(dying, self.notes, 1, work), items)


def test_many_parts_score_as_they_do_on_one_machine_though_a_worker_dies(
    cluster: Cluster, tiny_run: Runs, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("das3d.streaming.CHUNK", 8)
    parts = Path(shutil.copytree(tiny_data / CATEGORY, tmp_path / "parts"))
    (parts / "test" / "good" / "rgb" / "000.png").write_bytes(b"no picture")
    detector, notes = load(tiny_run(), "cpu"), tmp_path / "notes"
    notes.mkdir()
    local = predict_folder(detector, parts, tmp_path / "local")
    inspect = partial(inspect_on, Deadly(cluster, notes), (tiny_run(), "cpu"))  # type: ignore[arg-type]
    shared = predict_folder(detector, parts, tmp_path / "shared", inspect=inspect)
    assert (notes / "2").stat().st_size == 2, "no worker was killed"
    assert scores_of(tmp_path / "shared") == scores_of(tmp_path / "local")
    assert [result.part.id for result in shared] == [result.part.id for result in local]
    assert sum(bool(result.error) for result in shared) == 1
    maps = sorted(path.name for path in (tmp_path / "local").glob("*.tiff"))
    assert maps == sorted(path.name for path in (tmp_path / "shared").glob("*.tiff")) and len(maps) == len(local) - 1
    for name in maps:
        np.testing.assert_array_equal(read_map(tmp_path / "shared" / name), read_map(tmp_path / "local" / name))


def test_a_run_on_the_cluster_gives_the_figures_of_one_here(cluster: Cluster, tiny_data: Path, tmp_path: Path) -> None:
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=2"])
    weights, metrics = [], []
    for name, where in (("here", None), ("there", cluster)):
        plan = make_plan(tiny_data, tmp_path / name, variants=(Variant("", settings),), device="cpu")
        (outcome,) = benchmark(plan, cluster=where)
        assert outcome.metrics is not None, outcome.error
        weights.append(load_file(outcome.run.folder / "model.safetensors"))
        metrics.append({figure: outcome.metrics[figure] for figure in FIGURES})
    assert metrics[0] == metrics[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_address_without_a_cluster_is_one_error(tiny_run: Runs, tmp_path: Path) -> None:
    result = das3d("predict", tiny_run(), "--data", tmp_path, "--out", tmp_path / "out", "--ray", "nonsense")
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert "error: --ray: expected a Ray cluster at nonsense, found" in result.stderr


def test_ray_is_for_many_parts(tiny_run: Runs, tmp_path: Path) -> None:
    result = das3d("predict", tiny_run(), "--rgb", "a.png", "--out", tmp_path, "--ray", "local")
    assert result.exit_code == 2 and "--data FOLDER" in result.output


def test_a_training_takes_a_whole_machine_beside_a_head_without_processors() -> None:
    nodes = [{"Alive": True, "Resources": {}}, *({"Alive": True, "Resources": {"CPU": count}} for count in (16.0, 8.0))]
    ray = SimpleNamespace(nodes=lambda: nodes, cluster_resources=dict)
    assert Cluster(ray)._share(whole_machine=True) == {"num_cpus": 8.0}
