"""A lock that one process holds at a time and that vanishes with it, however it ends."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Of the byte that is locked under Windows, where nobody may read what is locked: the holder's name stays free.
PLACE = 1 << 30


class HeldError(Exception):
    """Another process holds the lock; the text says which, such as ``process 4711 on line-pc``."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock that this file stands for. The file stays: one that came and went could be locked by two at once.

    Where the disk knows no locks, nobody is held up.

    Raises:
        HeldError: another has it.
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace")
            raise HeldError(holder or "another process") from None
        except OSError:
            pass  # there is no locking here
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        os.close(descriptor)  # which frees it


def _lock(descriptor: int) -> None:
    # Raises BlockingIOError, or under Windows PermissionError, where another has it.
    if sys.platform == "win32":
        os.lseek(descriptor, PLACE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
