"""Errors that a user can mend.

Everything the package raises on purpose is a `Das3dError`. The command line prints its text on one line (or one line a
problem) and no traceback, so the text itself must name the file, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Packages that not everybody needs, and the extra of das3d that installs each.
EXTRAS = {
    "alembic": "tracking",
    "fastapi": "serve",
    "jinja2": "report",
    "lightning": "train",
    "matplotlib": "benchmark",
    "mlflow": "tracking",
    "onnx": "export",
    "onnxruntime": "runtime",
    "onnxscript": "export",
    "openvino": "openvino",
    "prometheus_client": "serve",
    "psycopg": "postgres",
    "ray": "ray",
    "sqlalchemy": "tracking",
    "starlette": "serve",
    "tensorboard": "tracking",
    "torch": "train",
    "uvicorn": "serve",
}


class Das3dError(Exception):
    """Something outside the program is wrong, and the message says what to change."""


class DataError(Das3dError):
    """One or more problems with a user's data, reported together before any work starts.

    Args:
        problems: one self-contained sentence a problem, each naming its file.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class SettingsError(Das3dError):
    """A setting has an unknown name or a value that cannot work."""


class ModelError(Das3dError):
    """A run folder or model file cannot be used."""


class MissingPackageError(Das3dError, ImportError):
    """What was asked for needs a package that is not installed."""


@contextmanager
def explained(what: str, hint: str = "") -> Iterator[None]:
    """Name the command that installs it where an import in this block misses a package of `EXTRAS`.

    Example:
        with explained("das3d train"):
            from das3d.run import train
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise missing(what, package, hint) from None


def missing(what: str, package: str, hint: str = "") -> MissingPackageError:
    """The error that a package of `EXTRAS` is missing."""
    command = f'pip install "das3d[{EXTRAS[package]}]"'
    return MissingPackageError(f"{what} needs {package}, which is not installed; install it by {command}{hint}")


def one_line(text: object, most: int = 120) -> str:
    """Foreign text, such as a decoder's complaint or what a file says, made fit to stand inside a message."""
    line = " ".join(str(text).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= most else f"{line[:most]}..."
