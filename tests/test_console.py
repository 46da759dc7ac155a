"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3d import console
from das3d.console import duration, progress, say, warn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 120 columns, to stand in for standard error."""
    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_bar_on_a_terminal_shows_count_and_note(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stderr(terminal), progress("training", 5) as step:
        step()
        step(note="loss 0.5")
        step(4, 8, note="loss 0.25")
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    last = shown.rsplit("training", 1)[1]
    assert "4/8" in last and "left" in last and "loss 0.25" in last
    assert capsys.readouterr() == ("", ""), "progress is not the result"


def test_bar_without_a_known_total_counts(terminal: Terminal) -> None:
    with redirect_stderr(terminal), progress("training") as step:
        step(3)
        step()
    assert "4/?" in terminal.getvalue().rsplit("training", 1)[1]


def test_a_single_step_shows_no_bar(terminal: Terminal) -> None:
    with redirect_stderr(terminal), progress("inspecting", 1) as step:
        step()
    assert terminal.getvalue() == ""


def test_bar_leaves_the_terminal_as_it_was_when_interrupted(terminal: Terminal) -> None:
    def interrupted() -> None:
        with redirect_stderr(terminal), progress("training", 2) as step:
            step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    hidden, shown = terminal.getvalue().rfind("\x1b[?25l"), terminal.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown, "the cursor is hidden while the bar moves, and then shown again"


def test_quick_work_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("preparing", 100) as step:
        for _ in range(100):
            step()
    assert capsys.readouterr() == ("", "")


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress("training", 200) as step:
        for done in range(1, 36):
            now[0] += 1.0
            step(done, note="loss 0.5")
    captured = capsys.readouterr()
    # One line in ten seconds, and the time left at the pace of one a second.
    assert captured.err.splitlines() == [
        "training: 10 of 200, 10 s so far, 3 min 31 s left, loss 0.5",
        "training: 20 of 200, 20 s so far, 3 min 00 s left, loss 0.5",
        "training: 30 of 200, 30 s so far, 2 min 50 s left, loss 0.5",
    ]
    assert captured.out == ""


def test_time_left_follows_a_pace_that_changes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress("calibrating", 40) as step:
        for done in range(1, 25):
            now[0] += 0.1 if done <= 20 else 5.0  # scores first, which take no time, then synthetic defects
            step()
    assert capsys.readouterr().err.splitlines()[-1] == "calibrating: 24 of 40, 22 s so far, 1 min 20 s left"


def test_plain_lines_of_a_resumed_run_count_only_what_is_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress("training", 1000) as step:
        step(900)
        now[0] = 10.0
        step(910)
    assert capsys.readouterr().err == "training: 910 of 1000, 10 s so far, 1 min 30 s left\n"


def test_plain_lines_without_a_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with progress("training") as step:
        step()
        step(note="loss 0.5")
    assert capsys.readouterr().err == "training: 1\ntraining: 2, loss 0.5\n"


def test_results_and_warnings_go_different_ways(capsys: pytest.CaptureFixture[str]) -> None:
    say("a result")
    warn("take care")
    assert capsys.readouterr() == ("a result\n", "warning: take care\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (60, "1 min 00 s"), (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (3900, "1 h 05 min"), (90_000, "25 h 00 min"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
def test_durations_are_right_to_the_last_shown_unit(seconds: float) -> None:
    words = duration(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600}
    shown = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    # Hours are shown to the minute, cut; all else is rounded to the second.
    assert -0.5 <= seconds - shown <= (60.5 if "h" in words else 0.5)


@pytest.mark.parametrize(
    ("rank", "worker"), [(None, False), ("0", False), ("2", True), ("", False), ("-1", False), ("first", False)]
)
def test_a_worker_is_told_by_its_rank(rank: str | None, worker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert console.is_worker() is worker
