"""What the command line shows: progress with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0


class Step(Protocol):
    """Advance a progress display."""

    def __call__(self, done: int | None = None, total: int | None = None, note: str = "") -> None:
        """One further step, or `done` of `total` steps; `note` is shown behind."""


def is_worker() -> bool:
    """Whether this is one of several training processes and not the first, which speaks and writes for all."""
    ranks = (os.environ.get(name, "") for name in ("RANK", "NODE_RANK", "LOCAL_RANK"))
    return any(rank.isdecimal() and int(rank) > 0 for rank in ranks)


def say(text: str = "") -> None:
    """A line for the user, on standard output."""
    print(text, flush=True)


def tell(text: str) -> None:
    """A line on what is being done, on standard error."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line that is not part of the result, on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def percent(share: float | None) -> str:
    """A measured share; "-" where there is none."""
    return "-" if share is None else f"{share:.1%}"


def figure(value: float | None, digits: int = 3) -> str:
    """A score or a figure; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def counted(number: int, what: str) -> str:
    """1 part, 2 parts."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def sizes_text(sizes: Iterable[Sequence[int]]) -> str:
    """Heights and widths of pictures, as people say them: width first."""
    return ", ".join(f"{width} x {height}" for height, width in sizes)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Step]:
    """Progress of one piece of work, on standard error so that standard output stays a result.

    Example:
        with progress("preparing", len(parts)) as step:
            for part in parts:
                step()
    """
    if is_worker() or total == 1:  # of a single step there is nothing to see before it is over
        yield _silent
    elif sys.stderr.isatty():
        with _bar(what, total) as step:
            yield step
    else:
        yield _Lines(what, total)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, note="")

        def step(done: int | None = None, total: int | None = None, note: str = "") -> None:
            if total is not None:
                bar.update(task, total=total)
            if done is None:
                bar.update(task, advance=1, note=note)
            else:
                bar.update(task, completed=done, note=note)

        yield step


def _silent(done: int | None = None, total: int | None = None, note: str = "") -> None:
    pass


class _Lines:
    """A line now and then; none at all for work that is over quickly."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.start = time.monotonic()
        self.last = self.start
        self.last_done: int | None = None

    def __call__(self, done: int | None = None, total: int | None = None, note: str = "") -> None:
        self.done = self.done + 1 if done is None else done
        self.total = total if total is not None else self.total
        self.last_done = self.done if self.last_done is None else self.last_done
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        text = f"{self.what}: {self.done}"
        if self.total:
            # At the pace since the line before: steps that follow may take longer than those at the beginning.
            pace = (now - self.last) / max(self.done - self.last_done, 1)
            left = pace * max(self.total - self.done, 0)
            text += f" of {self.total}, {duration(now - self.start)} so far, {duration(left)} left"
        self.last, self.last_done = now, self.done
        print(text + (f", {note}" if note else ""), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
