"""What arguments mean: those of Python functions, and the words of the command line. Errors name the argument or option.

Public functions check what they are given by the first few functions here, once, and what lies behind them trusts it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, get_args

from das3d.choices import Modality
from das3d.errors import Das3dError, DataError, SettingsError, one_line

Kind = TypeVar("Kind")
KINDS: dict[type, str] = {str: "text"}  # what people call kinds of things whose class has another name

# ------------------------------------------------------------------------------------------- of Python functions


def path_of(given: Any, name: str, error: type[Das3dError] = DataError) -> Path:
    """The path that is given as one, or as text. Raises `error` where it is neither."""
    if not isinstance(given, str | os.PathLike):
        raise error(f"{name}: expected a path, found {shown(given)}")
    return Path(given)


def list_of(kind: type[Kind], given: Any, name: str, error: type[Das3dError] = SettingsError) -> list[Kind]:
    """What a sequence of things of one kind, or of any `object`, holds.

    Raises `error` where something else is given. A single text is no sequence: it would be taken letter by letter.
    """
    what = "" if kind is object else f" of {KINDS.get(kind, kind.__name__)}"
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise error(f"{name}: expected a sequence{what}, such as a list, found {shown(given)}")
    things = list(given)
    for thing in things:
        if not isinstance(thing, kind):
            raise error(f"{name}: expected a sequence{what}, found {shown(thing)} in it")
    return things


def expect_kind(kind: type, given: Any, name: str, error: type[Das3dError] = SettingsError, *, giver: str = "") -> None:
    """Raises `error` where something of another kind is given; `giver` names what gives one."""
    if not isinstance(given, kind):
        source = f", as {giver} gives" if giver else ""
        raise error(f"{name}: expected {KINDS.get(kind, kind.__name__)}{source}, found {shown(given)}")


def expect_one_of(words: Sequence[str], given: Any, name: str, error: type[Das3dError] = SettingsError) -> None:
    """Raises `error` where none of these words is given."""
    if not (isinstance(given, str) and given in words):
        raise error(f"{name}: expected one of {', '.join(words)}, found {shown(given)}")


def is_number(given: Any) -> bool:
    """Whether this is a number; NaN and infinity are."""
    try:
        math.isnan(given)
    except (TypeError, ValueError, OverflowError):  # text, arrays, whole numbers beyond any use
        return False
    return True


def is_whole(given: Any, least: int) -> bool:
    """Whether this is a whole number, and no less than that."""
    return isinstance(given, Integral) and int(given) >= least


def shown(given: Any) -> str:
    """A wrong argument for a message: plain values as they are, of others their kind."""
    plain = given is None or isinstance(given, str | bytes | int | float)
    return one_line(repr(given)) if plain else type(given).__name__


def shown_number(given: Any) -> str:
    """The same where a number belongs, which is shown in short: 0 and not 0.0."""
    return f"{given:g}" if is_number(given) else shown(given)


# ------------------------------------------------------------------------------------------- of the command line


def parse_duration(text: str, option: str = "--budget", example: str = "90s, 20m or 1h") -> float:
    """Seconds in '90s', '20m', '1.5h', '30d' or '1y' (of 365 days). Raises SettingsError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = -1
    if not 0 < seconds < 1e9:
        raise SettingsError(f"{option}: expected a time such as {example}, found {text!r}")
    return seconds


def parse_moment(text: str | None, option: str) -> datetime | None:
    """The moment in '2026-11-20' or '2026-11-20T06:30', UTC where it has no zone; None stays None. Raises SettingsError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        example = "2026-11-20 or 2026-11-20T06:30"
        raise SettingsError(f"{option}: expected a day or moment such as {example}, found {one_line(text)!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_keep(good: str | None, defective: str | None, refused: str | None, rows: str | None) -> Any:
    """Keep of '30d' and the like; refused parts as long as defective ones where nobody says else. Raises SettingsError."""
    told = {"good": good, "defective": defective, "refused": refused or defective, "rows": rows}
    from das3d.service.retention import Keep

    return Keep(**{
        name: None if text is None else parse_duration(text, f"--keep-{name}", "30d or 1y") for name, text in told.items()
    })  # fmt: skip


def parse_share(text: str, option: str = "--max-false-alarm", *, ends: bool = False) -> float:
    """The share in '1%' or '0.01', with `ends` also none and all. Raises SettingsError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1
    if not (0 < share < 1 or (ends and share in (0, 1))):
        raise SettingsError(f"{option}: expected a share such as 1% or 0.01, found {text!r}")
    return share


def read_key(file: Path | None) -> str | None:
    """The API key in a file, or in the environment; None where there is neither. It is not shown in any message."""
    key = os.environ.get("DAS3D_API_KEY") if file is None else file.read_text(encoding="utf-8", errors="replace")
    if key is None:
        return None
    key = key.strip()
    if not (len(key) >= 8 and key.isascii() and key.isprintable()):
        where = "DAS3D_API_KEY" if file is None else str(file)
        raise SettingsError(f"{where}: expected an API key of 8 or more ASCII characters, found something else")
    return key


def words_in(text: str, option: str) -> list[str]:
    """The words of a list such as 'a,b'. Raises SettingsError where one is empty or comes twice."""
    words = [word.strip() for word in text.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise SettingsError(f"{option}: expected different words with commas between them, found {text!r}")
    return words


def parse_modalities(text: str) -> Any:
    """('rgb+depth', 'rgb') of 'rgb+depth,rgb'. Raises SettingsError."""
    known = get_args(Modality)
    if unknown := [word for word in words_in(text, "--modalities") if word not in known]:
        raise SettingsError(f"--modalities: expected some of {','.join(known)}, found {','.join(unknown)!r}")
    return tuple(words_in(text, "--modalities"))


def parse_seeds(text: str) -> tuple[int, ...]:
    """(0, 1, 2) of '0,1,2'. Raises SettingsError."""
    words = words_in(text, "--seeds")
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise SettingsError(f"--seeds: expected whole numbers such as 0,1,2, found {text!r}")
    return tuple(int(word) for word in words)


def texture_changes(folder: Path | None) -> list[str]:
    """The settings that take textures from a folder."""
    if folder is None:
        return []
    return ["synthesis.texture=folder", f"synthesis.texture_folder={json.dumps(str(folder))}"]


def parse_depth_unit(text: str | None, data: Path | None = None, category: str | None = None) -> Any:
    """DepthFormat of 'mm' or '0.0001' (metres per count); None stays None. Raises SettingsError.

    Warns where the data itself says, which is what counts.
    """
    if text is None:
        return None
    from das3d.console import warn
    from das3d.files import DepthFormat
    from das3d.layouts import declaration_for

    if data is not None:
        folder = data / category if category and (data / category).is_dir() else data
        if folder.is_dir() and (path := declaration_for(folder)):
            warn(f"{path} declares how depth is read; --depth-unit {text} is not used")
    try:
        return DepthFormat.parse(text)
    except DataError as error:
        raise SettingsError(f"--depth-unit: {error}") from None
