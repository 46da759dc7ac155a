"""Headless Chromium, for tests of what a person would see; they skip where there is none. conftest has the fixture."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
)  # fmt: skip
PATIENCE = 90_000  # milliseconds; machines that test are busy

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")
