"""The package as others import it."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import inspect
from importlib import import_module
from pathlib import Path

import pytest
from helpers import python

import das3d

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "lightning", "cv2", "numpy", "scipy", "pydantic", "PIL", "tifffile")


@pytest.mark.parametrize("name", das3d.__all__)
def test_every_public_name_can_be_had_and_is_documented(name: str) -> None:
    thing = getattr(das3d, name)
    assert thing.__name__ == name and thing.__doc__ and thing.__module__.startswith("das3d.")


def test_public_names_are_listed_and_sorted() -> None:
    assert das3d.__all__ == sorted(set(das3d.__all__))
    assert set(das3d.__all__) == set(das3d._HOMES) <= set(dir(das3d))
    scope: dict[str, object] = {}
    exec("from das3d import *", scope)
    assert set(das3d.__all__) <= set(scope)


def test_all_that_reads_data_is_told_alike_how() -> None:
    things = [*(getattr(das3d, name) for name in das3d.__all__), das3d.SyntheticPairs.from_data, das3d.Detector.reading]
    told = [inspect.signature(thing).parameters for thing in things if not inspect.isclass(thing)]
    for name in ("category", "light", "depth_format"):
        found = [parameters[name] for parameters in told if name in parameters]
        assert len(found) >= 6 and {one.default for one in found} == {None}, name
        assert len({one.annotation for one in found}) == 1, name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'das3d' has no attribute 'nothing'"):
        das3d.nothing  # noqa: B018


def test_version_is_that_of_the_installed_package() -> None:
    assert importlib.metadata.version("das3d") == das3d.__version__


def test_types_are_there_for_others() -> None:
    assert importlib.resources.files("das3d").joinpath("py.typed").is_file()


def test_importing_the_package_is_light() -> None:
    assert python("-c", f"import sys, das3d; print([m for m in {HEAVY} if m in sys.modules])").stdout == "[]\n"


IMPORT_ALL = """
import pkgutil, random, socket, sys, warnings
import numpy, torch
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
def states():
    legacy = numpy.random.get_state()
    return random.getstate(), legacy[1].tobytes(), legacy[2], torch.get_rng_state().numpy().tobytes()
# What other packages do on their import is theirs.
import cv2, lightning.fabric, scipy.ndimage, tifffile, pydantic, typer, safetensors.torch
before = states(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
import das3d
names = [m.name for m in pkgutil.walk_packages(das3d.__path__, "das3d.") if m.name != "das3d.__main__"]
for name in names:
    __import__(name)
after = states(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
print(len(names), before == after, torch.cuda.is_initialized())
"""


def test_importing_everything_touches_no_generator_device_or_network() -> None:
    count, unchanged, device = python("-c", IMPORT_ALL).stdout.split()
    modules = [p for p in Path(das3d.__file__).parent.rglob("*.py") if p.stem != "__main__"]
    assert int(count) == len(modules) - 1  # das3d itself
    assert (unchanged, device) == ("True", "False")


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    assert import_module(name).__doc__
