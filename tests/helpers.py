"""What several test files do alike: reading tables, waiting, a fresh interpreter, holding a folder to what it was."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def scores_of(folder: Path) -> list[dict[str, str]]:
    return rows_of(folder / "scores.csv")


def metrics_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def wait_for(happened: Callable[[], object], seconds: float = 120) -> None:
    """Machines that test are busy, so it may take long; it is no test of speed."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def python(*words: object, succeeds: bool = True) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter does and prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 or not succeeds, done.stderr
    return done


@contextmanager
def unchanged(folder: Path) -> Iterator[Path]:
    """Fails at its end where a file in the folder has come, gone or been written meanwhile."""

    def listing() -> set[tuple[str, int, int]]:
        stats = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
        return {(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stats}

    before = listing()
    yield folder
    changed = sorted({name for name, *_ in before ^ listing()})
    assert not changed, f"a test has changed {', '.join(changed)} in {folder}, which others share"
