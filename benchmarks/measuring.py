"""Timing side by side, peak memory, and what the machine is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: what was measured.
        against: what it is compared with.
        goal: in words.
        figure: what came out.
        met: whether the figure meets the goal; None where it was not measured.
        ours, reference: medians with their spread.
        memory: peak of memory that ours took beyond its input.
    """

    stage: str
    against: str
    goal: str
    figure: str
    met: bool | None
    ours: str = ""
    reference: str = ""
    memory: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def not_measured(stage: str, against: str, goal: str, why: str) -> Row:
    return Row(stage, against, goal, f"not measured: {why}", None)


@dataclass(frozen=True)
class Timing:
    """Seconds of several rounds of the same work."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, count: float) -> Timing:
        """The same for one of `count` things."""
        return Timing([s / count for s in self.seconds])

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        factor, unit = (1, "s") if self.median >= 1 else (1e3, "ms") if self.median >= 1e-3 else (1e6, "us")
        digits = [f"{value * factor:.3g}" for value in (self.median, low, high)]
        return f"{digits[0]} {unit} ({digits[1]} to {digits[2]})"


def side_by_side(works: dict[str, Callable[[], Any]], rounds: int = 5, *, warm: int = 1) -> dict[str, Timing]:
    """Time several pieces of work in turns, so that what the machine does beside them falls on all alike."""
    for _ in range(warm):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(values) for name, values in seconds.items()}


def timed(work: Callable[[], Any], rounds: int = 5, *, warm: int = 1) -> Timing:
    return side_by_side({"": work}, rounds, warm=warm)[""]


def peak_memory(work: Callable[[], Any]) -> float | None:
    """MiB of resident memory that the work takes at its peak beyond what is held before; None where no one can tell."""
    reset = Path("/proc/self/clear_refs")
    if not STATUS.is_file():
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier rounds left would hide what this one takes
    try:
        reset.write_text("5")  # sets the high-water mark to what is resident now
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return max(_resident("VmHWM") - before, 0.0)


def peak_so_far() -> float | None:
    """The most MiB of resident memory that this process has held; None where no one can tell."""
    return _resident("VmHWM") if STATUS.is_file() else None


def _resident(name: str) -> float:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MiB"


def machine() -> list[str]:
    """What the figures were measured on, a line each."""
    import torch

    from das3d.console import counted
    from das3d.engines import processors
    from das3d.versions import version_of

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            cpu = value.strip() if name.strip() == "model name" else cpu
            flags = set(value.split()) if name.strip() == "flags" else flags
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    numbers = f"{counted(processors(), 'core')}, {counted(torch.get_num_threads(), 'thread')}"
    lines = [f"{cpu} ({', '.join(known) or platform.machine()}), {numbers}"]
    if hasattr(os, "sysconf"):
        lines.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory")
    lines.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    names = ("torch", "numpy", "scipy", "opencv-python-headless", "scikit-learn", "onnxruntime", "openvino")
    found = [f"{name} {number}" for name in names if (number := version_of(name))]
    lines.append(f"{platform.system()}, Python {platform.python_version()}, {', '.join(found)}")
    if hasattr(os, "getloadavg"):
        lines.append(f"load when begun: {os.getloadavg()[0]:.1f}")
    return lines
