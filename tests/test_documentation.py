"""What the documentation says is done here, page by page; what it names exists; the site is built without a warning."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
import yaml
from conftest import PROJECT
from doc_blocks import Block, blocks_of
from tiny import CHANGES, SIZE, das3d

from das3d import demo
from das3d.cli import app
from das3d.demo import CATEGORY, make_demo, render_part
from das3d.parts import HOLD_OUT
from das3d.settings import Settings
from das3d.threshold import parts_for, parts_to_be_sure

DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Results tell what was once run on other data for hours, README what the pages tell at length: their commands must exist.
STORIES = [page for page in PAGES if page.parent.name != "results"]
TOLD = [PROJECT / "README.md", *(page for page in PAGES if page.parent.name == "results")]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHORT = [word for change in (*CHANGES, "training.iterations=3") for word in ("--set", change)]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PROJECT)) for path in paths]


# ------------------------------------------------------------------------------------------- what is there to start with


def take_scan(number: int = 0, kind: str = "good") -> tuple[Any, Any]:
    """RGB and depth, in metres with NaN where missing, as a camera would give them."""
    part = render_part((3, "camera", kind, number), size=SIZE, defect={"good": None, "scratched": "scratch"}[kind])
    depth = part.points[..., 2]
    return part.rgb, np.where(depth > 0, depth, np.nan)


def points_of(depth: Any) -> Any:
    v, u = np.indices(depth.shape)
    return np.stack([(u - depth.shape[1] / 2) * depth / 80, (v - depth.shape[0] / 2) * depth / 80, depth], axis=-1)


def own_folder(folder: Path, kinds: dict[str, int], first: int = 0) -> None:
    """Parts as a user has them: RGB as PNG, depth as NPY in metres."""
    for kind, count in kinds.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            rgb, depth = take_scan(number, kind)
            cv2.imwrite(str(folder / kind / f"{number:04}_rgb.png"), rgb[..., ::-1])
            np.save(folder / kind / f"{number:04}_depth.npy", depth)
    (folder / "dataset.yaml").write_text("depth_unit: m\n")


class Story:
    """One page, told in one folder."""

    def __init__(self, folder: Path, makers: dict[str, Callable[[Path], object]], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.makers, self.patch = folder, makers, patch
        self.names: dict[str, Any] = {"np": np, "take_scan": take_scan, "points_of": points_of}
        self.service: subprocess.Popen[bytes] | None = None
        self.port = 0

    def tell(self, block: Block) -> None:
        for name in filter(None, block.marks.get("starts with", "").split(", ")):
            if name == "more parts":  # saved by the page's own function
                for number in range(8):
                    self.names["save_part"]("mydata/good", f"1{number:03}", *take_scan(number))
            elif not (self.folder / name).exists():
                self.makers[name](self.folder / name)
        if file := block.marks.get("file"):
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_text(block.text)
        if block.language == "bash" and "not run" not in block.marks:
            self.shell(block)
        elif block.language == "python" and "not run" not in block.marks:
            if stand_in := block.marks.get("stands for the camera"):
                exec(stand_in, self.names)
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), self.names)
        else:
            check(block)

    def shell(self, block: Block) -> None:
        if "curl" in block.text:
            self.as_it_stands(block.text)
            return
        for words in block.commands:
            match Path(words[0]).name, words[1:]:
                case "das3d", ["serve", *options]:
                    self.serve(options)
                case "das3d", arguments:
                    result = das3d(*self.shortened(arguments))
                    assert result.exit_code == 0, f"{block}: {' '.join(words)}\n{result.output}"
                case _:
                    check_command(words, block)

    def shortened(self, words: list[str]) -> list[str]:
        """The same command in seconds instead of hours."""
        if words[0] in ("train", "benchmark") and "--help" not in words:
            if "--budget" in words:
                at = words.index("--budget")
                words = words[:at] + words[at + 2 :]
            words = ["0" if before == "--seeds" else word for before, word in zip(["", *words], words, strict=False)]
            return [*words, *SHORT]
        return [*words, "--parts", "4"] if words[0] == "demo-data" else words

    def serve(self, options: list[str]) -> None:
        self.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "das3d", "serve", *options, "--port", str(self.port)]
        self.service = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                return
            except OSError:
                assert self.service.poll() is None, "the service ended by itself"
                time.sleep(0.05)
        pytest.fail("the service did not become ready")

    def stop(self) -> None:
        if self.service is not None:
            self.service.terminate()
            self.service.wait()

    def as_it_stands(self, text: str) -> None:
        """Run by the shell itself, at the service's real port; `das3d serve` among it starts the service."""
        lines = text.splitlines()
        for line in lines:
            words = line.split()
            if Path(words[0]).name == "das3d":
                self.serve(words[2:])
            else:
                line = line.replace("curl ", "curl --fail --silent --show-error --noproxy '*' ").replace(
                    ":8000", f":{self.port}"
                )
                assignments = "\n".join(other for other in lines if re.match(r"\w+=", other))
                done = subprocess.run(
                    ["bash", "-c", f"{assignments}\n{line}"], cwd=self.folder, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{line}\n{done.stderr}"


# ------------------------------------------------------------------------------------------- what is only looked at


def check(block: Block) -> None:
    """That a block which is not run could be."""
    match block.language:
        case "python":
            compile(block.text, str(block.page), "exec")
        case "yaml":
            yaml.safe_load(block.text)
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "bash" | "":
            for words in block.commands:
                check_command(words, block)
        case other:
            assert other in ("text", "{toctree}", "{eval-rst}"), f"{block}: nothing knows how to try {other!r}"


def check_command(words: list[str], block: Block) -> None:
    """That commands, options, extras, targets and files exist."""
    programs = [Path(word).name for word in words]
    if programs[0] in ("das3d", "torchrun"):
        name, *rest = words[programs.index("das3d") + 1 :]
        if name.startswith("--"):
            return
        assert name in COMMANDS, f"{block}: there is no das3d {name}"
        known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            option = word.split("=")[0]
            assert not option.startswith("--") or option in {*known, "--help"}, f"{block}: das3d {name} has no {option}"
        return
    match programs:
        case ["pip", "install", *_]:
            extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            asked = {extra for word in words for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
            assert asked <= extras.keys(), f"{block}: {words}"
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE), f"{block}: {words}"
        case ["python" | "python3", "-m", "venv", _]:
            pass
        case ["python", _, *options]:
            assert (PROJECT / words[1]).is_file(), f"{block}: {words}"
            check_options(PROJECT / words[1], [word for word in options if word != "&"], block)
        case ["export" | "docker" | "curl", *_]:
            pass
        case _:
            assert "not run" in block.marks, f"{block}: nothing knows how to try {words}"


def check_options(script: Path, words: list[str], block: Block) -> None:
    """That the script's own parser takes the words."""
    if "argparse" not in script.read_text(encoding="utf-8"):
        return

    main, parse, taken = importlib.import_module(script.stem).main, ArgumentParser.parse_args, []

    def parse_only(parser: ArgumentParser) -> None:
        taken.append(parse(parser, words))
        raise KeyboardInterrupt  # before any work begins

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_args", parse_only)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main()
    assert taken, f"{block}: {script.name} does not take {' '.join(words)}"


# ------------------------------------------------------------------------------------------- tests


@pytest.fixture
def story(
    tmp_path: Path, tiny_data: Path, tiny_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Story]:
    def pictures(folder: Path) -> None:
        folder.mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(
                str(folder / f"{number}.png"), np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
            )

    run = partial(shutil.copytree, tiny_run())
    makers: dict[str, Callable[[Path], object]] = {
        "mydata": partial(own_folder, kinds={"good": 10, "scratched": 1}),
        "newparts": partial(own_folder, kinds={"good": 4}, first=20),
        "runs/mine": run,
        "runs/gland": run,
        "DATA": lambda folder: shutil.copytree(tiny_data / CATEGORY, folder / "cable_gland"),  # in the place of MVTec's
        "dtd/images": pictures,
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAS3D_API_KEY", raising=False)
    small = partial(make_demo, size=SIZE, validation=2, good=2, defective=1)
    monkeypatch.setattr(demo, "make_demo", small)
    for name in ("benchmarks", "examples"):
        (tmp_path / name).symlink_to(PROJECT / name)
    teller = Story(tmp_path, makers, monkeypatch)
    yield teller
    teller.stop()


@pytest.mark.parametrize("page", STORIES, ids=names(STORIES))
def test_every_block_of_a_page_does_what_it_says(page: Path, story: Story) -> None:
    blocks = list(blocks_of(page))
    if any("curl" in block.text and "not run" not in block.marks for block in blocks) and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    for block in blocks:
        story.tell(block)


@pytest.mark.parametrize("page", TOLD, ids=names(TOLD))
def test_commands_of_a_page_exist(page: Path) -> None:
    for block in blocks_of(page):
        if block.language or block.text.startswith(("das3d ", "python ", "pip ", "make ")):
            check(block)


@pytest.mark.parametrize(
    "block",
    [
        "```bash\ndas3d trian mydata\n```",
        "```bash\ndas3d train mydata --outt runs/mine\n```",
        '```bash\npip install ".[everything]"\n```',
        "```bash\nmake coffee\n```",
        "```bash\npython examples/none.py\n```",
        "```bash\nOMP_NUM_THREADS=1 python benchmarks/none.py\n```",
        "```bash\npython benchmarks/parity.py RUN --data DATA --fast\n```",
        "```bash\nrm -rf mydata\n```",
        "```python\nassert 1 + 1 == 3\n```",
        "```toml\na = \n```",
        "```cobol\nSTOP RUN.\n```",
    ],
)
def test_a_block_that_cannot_work_is_noticed(block: str, tmp_path: Path, story: Story) -> None:
    page = tmp_path / "page.md"
    page.write_text(block)
    with pytest.raises((AssertionError, tomllib.TOMLDecodeError)):
        story.tell(next(blocks_of(page)))


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "README.md"], ids=names([*PAGES, PROJECT / "README.md"]))
def test_whatever_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:`|\(#)(das3d(?:\.\w+)+)(?:`|\))", text)):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"
    for name in set(re.findall(r"`((?:preparation|synthesis|network|training|score)\.(?!py`)\w+)`", text)):
        section, _, key = name.partition(".")
        known = hasattr(getattr(Settings(), section), key)
        assert known or f"(#das3d.{name})" in text, f"{page.name}: no setting {name}"
    for link in set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    for link in set(re.findall(r"`((?:examples|benchmarks)/[\w.]+)`", text)):
        assert (PROJECT / link).exists(), f"{page.name}: {link}"


def test_the_map_of_the_code_has_every_module() -> None:
    told = set(re.findall(r"`([\w.*/]+)`", (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    there = {file.name for file in (PROJECT / "src/das3d").glob("*.py")}
    there |= {f"{file.parent.name}/" for file in (PROJECT / "src/das3d").glob("*/__init__.py")}
    assert not there - told - {"__main__.py"}, "modules that CONTRIBUTING.md does not name"


def test_the_version_of_pytorch_to_install_first_is_the_one_that_das3d_takes() -> None:
    # Any other is replaced, a CPU build by one of several GB.
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [taken] = [package for package in extras["train"] if package.startswith("torch==")]
    for page in (PROJECT / "README.md", DOCS / "first-model.md", DOCS / "deploy.md"):
        named = re.findall(r"\btorch==[\w.]+", page.read_text(encoding="utf-8"))
        assert named and set(named) == {taken}, f"{page.name}: {named}"


@pytest.mark.parametrize("page", [PROJECT / "README.md", DOCS / "first-model.md"], ids=["README", "first-model"])
def test_the_parts_that_a_rate_of_false_alarms_takes_are_those_that_training_would_name(page: Path) -> None:
    rows = re.findall(r"^\| (\d+) % \| (\d+) \| (\d+) \| (\d+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 3
    for percent, *told in rows:
        enough, sure = parts_for(int(percent) / 100), parts_to_be_sure(int(percent) / 100)
        assert told == [str(enough), str(sure), str(round(enough / HOLD_OUT))], percent
    assert "hold out 5, which" in page.read_text(encoding="utf-8") and f"{1 / (50 * HOLD_OUT + 1):.0%}" == "17%"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "site")]
    # No proxy answers there, so whatever is looked up elsewhere fails.
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **nowhere}, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)\"", text)
        assert not loaded, f"{page.name}: {loaded}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_reference_pages_hold_all_of_the_code(site: Path) -> None:
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    for section, field in Settings.model_fields.items():
        for key in getattr(type(field.default), "model_fields", {}):
            assert f"#{section}" in settings and f">{key}<" in settings
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        assert f'id="{name}"' in commands
        for parameter in command.params:
            assert all(option in commands for option in parameter.opts if option.startswith("--"))
    api = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in importlib.import_module("das3d").__all__:
        value = getattr(importlib.import_module("das3d"), name)
        assert f'id="{value.__module__}.{name}"' in api


def test_equations_are_mathml(site: Path) -> None:
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count('display="block"') >= 14
    assert "\\begin" not in method and "merror" not in method
