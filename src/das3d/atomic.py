"""Files that are there whole or not at all, whenever a reader looks and whatever moment the power fails."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, content: bytes | memoryview, *, lasting: bool = True) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part.

    Args:
        path: the file.
        content: what it shall hold.
        lasting: wait until the disk has it, so that not even a power failure leaves an empty file. Without it a file is
            written many times as fast; for files that are checked when read, or made again.
    """
    temporary = _written_beside(path, content, lasting)
    try:
        replace(temporary, path)
    except BaseException as error:
        _give_up(error, path, temporary)
        raise


def write_pair(data: tuple[Path, bytes], head: tuple[Path, bytes]) -> None:
    """Write two files of which the head means nothing without the data, as `write_atomically` does.

    Neither is replaced before both are written. A head of before is never seen beside new data: for the moment between
    there is none, and if the data cannot be replaced, the head of before comes back.
    """
    (path, content), (head_path, head_content) = data, head
    temporary = _written_beside(path, content, lasting=True)
    try:
        new_head = _written_beside(head_path, head_content, lasting=True)
    except BaseException:
        _discard(temporary)
        raise
    old_head = _temporary_for(head_path)
    try:
        if head_path.is_file():
            replace(head_path, old_head)
        replace(temporary, path)
    except BaseException as error:
        if old_head.is_file():
            replace(old_head, head_path)
        _give_up(error, path, temporary, new_head)
        raise
    try:
        replace(new_head, head_path)
    except BaseException as error:
        _give_up(error, head_path, new_head)
        raise
    finally:
        old_head.unlink(missing_ok=True)


BEGIN = 20  # letters of a file's name that stand in that of its temporary file


def _temporary_for(path: Path) -> Path:
    # Not tempfile's, which nobody but the user may read: a service often runs as somebody else than who trains.
    # Short whatever the file is called, as most file systems hold 255 bytes.
    return path.with_name(f".{path.name[:BEGIN]}.{uuid4().hex}")


def _written_beside(path: Path, content: bytes | memoryview, lasting: bool) -> Path:
    # The file under another name, or nothing where that fails.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_for(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
    except BaseException as error:
        _give_up(error, path, temporary)
        raise
    return temporary


def _give_up(error: BaseException, path: Path, *temporaries: Path) -> None:
    _discard(*temporaries)
    if isinstance(error, OSError):
        error.filename = str(path)  # what the user knows, not the temporary file


def _discard(*temporaries: Path) -> None:
    for temporary in temporaries:
        with suppress(OSError):  # of a disk that is gone; why it was given up says more
            temporary.unlink(missing_ok=True)


HELD = (5, 32, 33)  # Windows' errors where another program holds a file: access denied, sharing violation, lock violation
WAITS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8)  # seconds, two in all: as long as a virus scanner looks at a new file


def replace(source: Path, target: Path) -> None:
    """Move a file or folder to its place, for readers at once; on Windows with some patience while a program holds it."""
    for wait in WAITS:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if getattr(error, "winerror", None) not in HELD:
                raise
        time.sleep(wait)
    os.replace(source, target)
