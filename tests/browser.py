"""Headless Chromium, for tests of what a person would see; they skip where there is none."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")


def browse(page: Path | str, *flags: str, profile: Path, seconds: int = 10) -> str:
    """Open a page, let up to `seconds` of its time pass, and return the document as it is then, or what `flags` ask for."""
    address = page.as_uri() if isinstance(page, Path) else page
    words = [*FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={1000 * seconds}", *(flags or ("--dump-dom",))]
    done = subprocess.run([str(CHROMIUM), *words, address], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def text_of(document: str, id: str) -> str:
    """The text inside the element with this id."""
    found = re.search(rf'id="{id}"[^>]*>(.*?)</', document, re.DOTALL)
    assert found, f"no element {id!r} in {document[-2000:]}"
    return html.unescape(found[1])
