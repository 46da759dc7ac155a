"""Locks: one process at a time, told by its number, and free when it ends in whatever way."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from das3d.locks import HeldError, locked

HOLD = """
import sys, time
from pathlib import Path
from das3d.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_killed_leaves_nothing_stale(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        for _ in range(2):  # who is refused leaves it as it is
            with pytest.raises(HeldError) as caught, locked(file):
                pass
            assert str(caught.value) == f"process {process.pid} on {platform.node()}"
    finally:
        process.kill()
        process.communicate()
    with locked(file), pytest.raises(HeldError, match=f"process {os.getpid()} on "), locked(file):
        pass


def test_where_the_disk_knows_no_locks_nobody_is_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("das3d.locks._lock", refused)
    with locked(tmp_path / "lock"), locked(tmp_path / "lock"):
        pass


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "lock"):
        pass
