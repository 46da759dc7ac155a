"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from das3d.atomic import write_atomically, write_pair


class HeldError(PermissionError):
    """What Windows raises where another program holds a file."""

    def __init__(self, winerror: int) -> None:
        super().__init__(errno.EACCES, "The process cannot access the file")
        self.winerror = winerror  # which elsewhere no error has


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out" / "model"
    write_atomically(file, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, lambda *_: full(0))
            with pytest.raises(OSError, match="No space left"):
                write_atomically(file, b"new")
        assert file.read_bytes() == b"old"
        assert [path.name for path in file.parent.iterdir()] == ["model"]

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert [path.name for path in file.parent.iterdir()] == ["model"] and file.read_bytes() == b"old"


@pytest.mark.parametrize("winerror", [5, 32, 33])
def test_a_file_that_another_program_holds_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    replace, tries, waited = os.replace, [HeldError(winerror)] * 3, list[float]()

    def held(source: Path, target: Path) -> None:
        if tries:
            raise tries.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", waited.append)
    write_atomically(tmp_path / "scores", b"new")
    assert (tmp_path / "scores").read_bytes() == b"new" and len(waited) == 3


@pytest.mark.parametrize(("winerror", "seconds"), [(32, 2.0), (80, 0.0)])
def test_a_file_that_stays_held_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winerror: int, seconds: float
) -> None:
    (tmp_path / "scores").write_bytes(b"old")
    waited: list[float] = []

    def held(source: Path, target: Path) -> None:
        raise HeldError(winerror)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(PermissionError) as caught:
        write_atomically(tmp_path / "scores", b"new")
    assert caught.value.filename == str(tmp_path / "scores") and sum(waited) == pytest.approx(seconds)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_of_a_pair_neither_is_replaced_before_both_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, graph = tmp_path / "model.bin", tmp_path / "model.xml"

    def pair() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    write_pair((weights, b"1"), (graph, b"1"))
    assert pair() == {"model.bin": b"1", "model.xml": b"1"}
    replace, sync = os.replace, os.fsync
    for failing in ("model.bin", "model.xml"):

        def held(source: Path, target: Path, name: str = failing) -> None:
            if Path(target).name == name and not source.read_bytes() == b"1":
                raise HeldError(5 if name == "model.bin" else 80)
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", held)
            patch.setattr(time, "sleep", lambda seconds: None)
            with pytest.raises(PermissionError) as caught:
                write_pair((weights, b"2"), (graph, b"2"))
        assert caught.value.filename == str(tmp_path / failing)
        # New weights without a graph load nowhere; with that of before they would judge wrongly.
        assert pair() == ({"model.bin": b"1", "model.xml": b"1"} if failing == "model.bin" else {"model.bin": b"2"})
    write_pair((weights, b"1"), (graph, b"1"))
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_pair((weights, b"2"), (graph, b"2"))
    assert pair() == {"model.bin": b"1", "model.xml": b"1"}


def test_readers_see_old_or_new_content_but_never_a_part(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = {bytes([letter]) * 300_000 for letter in b"abc"}
    write_atomically(file, b"a" * 300_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomically(file, content)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = {file.read_bytes() for _ in range(100)}
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= contents
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]


def test_a_name_may_be_as_long_as_the_file_system_holds_and_an_error_names_it(tmp_path: Path) -> None:
    file = tmp_path / ("\u4ef6" * 83 + ".tiff")  # 254 bytes
    write_atomically(file, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_bytes() == b"content"
    longer = file.with_name(f"{file.name}.gz")
    with pytest.raises(OSError, match=longer.name):
        write_atomically(longer, b"content")


def test_what_cannot_be_cleared_away_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", gone)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "model", b"new")
    assert caught.value.filename == str(tmp_path / "model")


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    # As after open(): a service reads models that somebody else has trained.
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "model", b"weights")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
