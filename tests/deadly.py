"""Work whose worker dies. Light to import, as every new worker has to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def note(folder: Path, what: object) -> int:
    """Leave a note that this was worked on; the number of notes on it, this one included."""
    with (folder / str(what)).open("a") as file:
        file.write("x")
    return (folder / str(what)).stat().st_size


def dying(folder: Path, deaths: int, work: Callable[[Any], Any], item: Any) -> Any:
    """Does the work, but on the item noted as 2 the worker is killed before it can tell, so many times."""
    index = item if isinstance(item, int) else len(list(folder.iterdir()))
    result = work(item)
    if note(folder, index) <= deaths and index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def square(item: int) -> int:
    if item == 4:
        raise ValueError("four is refused")
    return item * item
