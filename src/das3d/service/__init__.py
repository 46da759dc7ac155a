"""The inspection service: models behind HTTP, every verdict in a database, a page for people at `/`.

    das3d serve gland=runs/gland --out inspections

`open_models` and `make_app` give the same as an ASGI application for servers and tests of one's own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from das3d.console import counted, say, warn
from das3d.detector import load, model_hash
from das3d.errors import ModelError, SettingsError
from das3d.files import DepthFormat
from das3d.service.app import make_app
from das3d.service.gate import Limits
from das3d.service.inspections import DATABASE_SECONDS, Inspections
from das3d.service.queueing import warm_up
from das3d.service.retention import Keep
from das3d.service.work import ServedModel, served_model

__all__ = ["Keep", "Limits", "ServedModel", "make_app", "open_models", "serve", "served_model"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s", "datefmt": "%Y-%m-%dT%H:%M:%S%z"}},
    "handlers": {"line": {"class": "logging.StreamHandler", "formatter": "line"}},  # on standard error
    "loggers": {
        name: {"handlers": ["line"], "level": level, "propagate": False}
        for name, level in (("uvicorn", "WARNING"), ("das3d", "INFO"))
    },
}
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    models: Sequence[str],
    out: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    database: str | None = None,
    key: str | None = None,
    keep_scans: bool = True,
    keep: Keep = Keep(),
    limits: Limits = Limits(),
    device: str = "auto",
    engine: str = "auto",
    depth_format: DepthFormat | None = None,
    focal_length: float | None = None,
) -> None:
    """Serve until told to stop (SIGINT, SIGTERM); what was taken in by then is finished, recorded and answered.

    Args:
        models: run folders or model files, each as PATH or NAME=PATH.
        out: folder for maps, scans and, by default, the database.
        host, port: where to listen; port 0 takes a free one.
        database: URL of another database, such as "postgresql://user:password@host/name".
        key: that every request must show.
        keep_scans: whether uploaded files are kept beside the maps; without them past parts cannot be looked at again.
        keep: how long what is kept.
        limits: what the service takes on.
        device, engine: of the models, as `das3d.load` takes them.
        depth_format: how depth is read where a request does not say; None: as in training.
        focal_length: of the camera in pixels, for areas in mm2 where files hold depth alone; None: as in training.

    Raises:
        ModelError: a model cannot be used, has an empty name, or two share one.
        SettingsError: the database or the address cannot be used.
    """
    served = open_models(models, device, engine, depth_format, focal_length)
    for model in served:
        warm_up(model.detector)
        say(f"{model.name}: {model.engine}; {model.describe().about}")
    with _listen(host, port) as listener:
        inspections = Inspections(out, database)
        kept = "maps and scans" if keep_scans else "maps"
        say(f"{counted(inspections.count(), 'inspection')} in {inspections.place}; {kept} in {out}")
        if host not in LOOPBACK and key is None:
            warn(f"whoever reaches {host} may use this service; set DAS3D_API_KEY to ask for a key")
        hosts = LOOPBACK if host in LOOPBACK and key is None else None
        app = make_app(served, inspections, limits, key, keep_scans=keep_scans, keep=keep, hosts=hosts)
        patience = round(2 * limits.seconds) + DATABASE_SECONDS  # to take in, to compute and to record
        config = uvicorn.Config(
            app, log_config=LOGGING, log_level="warning", access_log=False, timeout_graceful_shutdown=patience,
            server_header=False,
        )  # fmt: skip
        at = f"[{host}]" if ":" in host else host
        say(f"listening on http://{at}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


def open_models(
    models: Sequence[str],
    device: str = "auto",
    engine: str = "auto",
    depth_format: DepthFormat | None = None,
    focal_length: float | None = None,
) -> list[ServedModel]:
    """Load models given as PATH or NAME=PATH; without a name, they are called by the category of their training parts.

    Raises:
        ModelError: one cannot be used, has an empty name, or two share one.
    """
    served: dict[str, ServedModel] = {}
    for word in models:
        # An "=" in a folder is part of its path, unless what stands before it could be a name.
        name, equals, place = word.partition("=")
        named = bool(equals) and "/" not in name and "\\" not in name
        if named and not name.strip():
            raise ModelError(f"{word}: expected NAME=PATH, found no name; a path that begins so is given as ./{word}")
        path = Path(place if named else word)
        detector = load(path, device, engine)
        called = name if named else str(detector.training.get("category") or path.stem)
        if called in served:
            raise ModelError(f"{path}: expected another name than {called}, which is taken; give it as NAME={path}")
        served[called] = served_model(called, model_hash(path), detector, depth_format, focal_length)
    return list(served.values())


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        if os.name != "nt":  # where it would let two services share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of names such as a..b
        if listener is not None:
            listener.close()
        found = getattr(error, "strerror", None) or error
        raise SettingsError(f"--host {host} --port {port}: expected an address that is free, found {found}") from None
    return listener
