"""Code that Numba compiles: what is said while it does, and threads that share work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import get_ident

import pytest
import torch

from das3d._numba import side_by_side

pytest.importorskip("numba")

COMPILE = """
import torch
from das3d.losses import rgb_loss
good = torch.rand(1, 3, 16, 16)
print(float(rgb_loss(torch.rand(1, 3, 16, 16, requires_grad=True), good).detach()) > 0)
"""


def test_compiling_is_told_once_and_only_where_it_happens(tmp_path: Path) -> None:
    said = []
    for rank in ("0", "0", "1"):
        kept = tmp_path / rank
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(kept), "RANK": rank},
        )  # fmt: skip
        assert done.stdout == "True\n" and any(kept.rglob("*.nbi"))
        said.append(done.stderr)
    assert said[0].startswith("compiling for this processor") and said[0].count("\n") == 1
    assert said[1:] == ["", ""]  # read from disk; a worker, for which the first process speaks


def test_code_of_others_is_compiled_without_a_word() -> None:
    theirs = "import das3d.compiled_losses, numba; print(numba.njit(lambda x: x + 1)(1))"
    done = subprocess.run([sys.executable, "-c", theirs], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_threads_share_work(threads: int, count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        done: list[tuple[int, int]] = []
        side_by_side(lambda number: done.append((number, get_ident())), count)
    finally:
        torch.set_num_threads(before)
    assert sorted(number for number, _ in done) == list(range(count))
    assert threads > 1 or all(thread == get_ident() for _, thread in done)


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    def work(number: int) -> None:
        raise ValueError(f"at {number}")

    with pytest.raises(ValueError, match="at 0"):
        side_by_side(work, 5)
