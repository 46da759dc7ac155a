"""The service as an ASGI application: what each address does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

import das3d
from das3d.errors import one_line
from das3d.layouts import ROLES
from das3d.service.answers import (
    InspectionAnswer,
    InspectionPage,
    ModelAnswer,
    Problem,
    RefusalAnswer,
    RefusalPage,
)
from das3d.service.gate import Gate, Limits
from das3d.service.inspections import Inspections, LostDatabaseError, Truth, Verdict
from das3d.service.retention import Keep
from das3d.service.views import map_file, overlay_png, view
from das3d.service.work import ServedModel, Service
from das3d.streaming import full_red
from das3d.surfaces import import_map, read_asset

log = logging.getLogger("das3d.service")


def make_app(
    models: Sequence[ServedModel],
    inspections: Inspections,
    limits: Limits = Limits(),
    key: str | None = None,
    *,
    keep_scans: bool = True,
    keep: Keep = Keep(),
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The application. It takes `inspections` over and closes them when it stops.

    Args:
        models: at least one.
        inspections: where verdicts are recorded.
        limits: what it takes on.
        key: that every request must show, None for a service open to whoever reaches it.
        keep_scans: whether uploads are kept beside the maps.
        keep: how long what is kept.
        hosts: names under which it may be asked, None for any.
    """
    service = Service(models, inspections, limits, keep_scans=keep_scans, keep=keep)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.retention.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="das3d", version=das3d.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Finds defects in products from RGB + 3D scans. Every verdict is recorded before it is answered.",
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(Gate, key=key, limits=limits, metrics=service.metrics, hosts=hosts)
    _add_inspections(app, service)
    _add_operation(app, service)
    _add_page(app)
    _add_problems(app)
    return app


COUNT = "Tell in `total` how many there are on all pages, which takes long among millions."
TEXT = r"^[^\x00]*$"  # what a database can hold; PostgreSQL refuses NUL
WRONG: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The API key is missing or wrong."},
    404: {"model": Problem, "description": "There is no such thing."},
}
WRONG_FILE: dict[int | str, dict[str, Any]] = WRONG | {
    410: {"model": Problem, "description": "The files of this inspection were removed when their time was over."},
    500: {"model": Problem, "description": "A file of this inspection is there and cannot be read."},
}
WRONG_UPLOAD: dict[int | str, dict[str, Any]] = WRONG | {
    400: {"model": Problem, "description": "The form cannot be read."},
    408: {"model": Problem, "description": "The upload took too long."},
    413: {"model": Problem, "description": "Too many bytes or pixels."},
    415: {"model": Problem, "description": "A file is of no known kind."},
    422: {"model": Problem, "description": "A file or field is not what it should be."},
    429: {"model": Problem, "description": "The service is full; Retry-After says when to come again."},
    503: {
        "model": Problem,
        "description": "The service is stopping, its database is away or its file was removed, its networks failed, or it "
        "took too long.",
    },
    507: {"model": Problem, "description": "The disk is full or cannot be written; nothing was recorded."},
}


async def _only_known(request: Request) -> None:
    # A misspelt field would be passed over in silence: `unit=mm` instead of `depth_unit=mm`, and a part is misjudged. So
    # would be all but the last of a field that comes twice.
    takes = request.scope["route"].dependant
    query = [name for name, _ in request.query_params.multi_items()]
    sent: list[tuple[str, list[str], Sequence[Any]]] = [("parameters", query, takes.query_params)]
    if takes.body_params:
        sent.append(("fields", [name for name, _ in (await request.form()).multi_items()], takes.body_params))
    for what, names, known in sent:
        allowed = [one.alias for one in known]
        if strange := sorted(set(names) - set(allowed)):
            expected = f"{what} of {', '.join(allowed)}" if allowed else f"no {what}"
            raise HTTPException(422, f"{one_line(', '.join(strange))}: expected {expected}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise HTTPException(422, f"{twice[0]}: expected it once, found it {names.count(twice[0])} times")


def _add_inspections(app: FastAPI, service: Service) -> None:
    router = APIRouter(tags=["inspections"], dependencies=[Depends(_only_known)])

    @router.get("/models", responses=WRONG)
    def list_models() -> list[ModelAnswer]:
        """The models of this service."""
        return [model.describe() for model in service.models.values()]

    @router.post("/inspections", status_code=201, responses=WRONG_UPLOAD)
    async def inspect_part(
        rgb: Annotated[UploadFile | None, File(description="PNG, JPEG, TIFF or BMP.")] = None,
        depth: Annotated[
            UploadFile | None, File(description="16-bit PNG, TIFF, NPY or NPZ (depth or points), organised PLY or PCD.")
        ] = None,
        model: Annotated[str | None, Form(description="Its name; where there are several.", examples=["gland"])] = None,
        part: Annotated[
            str | None, Form(description="What the part is called; by default as its file.", examples=["000123"])
        ] = None,
        depth_unit: Annotated[
            str | None,
            Form(description="m, cm, mm, um, or metres per count; by default as in training.", examples=["mm", "0.0001"]),
        ] = None,
    ) -> InspectionAnswer:
        """Inspect one part. The verdict is recorded before this answers, as is a part that cannot be judged (422)."""
        try:
            return service.answer(await service.inspect(service.choose(model), part, rgb, depth, depth_unit))
        except OSError as error:
            raise unwritable(service.inspections.folder, error) from None

    @router.get("/inspections", responses=WRONG)
    def list_inspections(
        model: Annotated[str | None, Query(pattern=TEXT, description="Only by this model.")] = None,
        verdict: Annotated[Verdict | None, Query(description="Only these.")] = None,
        truth: Annotated[
            Truth | None, Query(description="Only what a person found to be so; unknown: nobody has said.")
        ] = None,
        part: Annotated[
            str | None, Query(max_length=200, pattern=TEXT, description="Only parts whose name begins so.")
        ] = None,
        since: Annotated[datetime | None, Query(description="From this moment on; UTC where it has no zone.")] = None,
        until: Annotated[datetime | None, Query(description="Before this moment.")] = None,
        min_score: Annotated[float | None, Query(ge=0, le=1)] = None,
        max_score: Annotated[float | None, Query(ge=0, le=1)] = None,
        before: Annotated[int | None, Query(ge=1, lt=1 << 63, description="Only smaller ids: the next page.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        count: Annotated[bool, Query(description=COUNT)] = False,
    ) -> InspectionPage:
        """Past inspections, newest first."""
        filters = {
            "model": model, "verdict": verdict, "truth": truth, "part": part, "since": _utc(since), "until": _utc(until),
            "min_score": min_score, "max_score": max_score,
        }  # fmt: skip
        rows = service.inspections.page(before=before, limit=limit + 1, **filters)
        more = len(rows) > limit
        rows = rows[:limit]
        total = service.inspections.count(**filters) if count else None
        return InspectionPage(items=[service.answer(row) for row in rows], total=total, next=rows[-1].id if more else None)

    @router.get("/refused", responses=WRONG)
    def list_refused(
        before: Annotated[int | None, Query(ge=1, lt=1 << 63, description="Only smaller ids: the next page.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        count: Annotated[bool, Query(description=COUNT)] = False,
    ) -> RefusalPage:
        """Parts that could not be judged, newest first."""
        rows = service.inspections.refused(before=before, limit=limit + 1)
        more = len(rows) > limit
        items = [RefusalAnswer.model_validate(row) for row in rows[:limit]]
        total = service.inspections.count_refused() if count else None
        return RefusalPage(items=items, total=total, next=items[-1].id if more else None)

    @router.get("/inspections/{id}", responses=WRONG)
    def get_inspection(id: int) -> InspectionAnswer:
        """One past inspection."""
        return service.answer(service.find(id))

    @router.put("/inspections/{id}/truth", responses=WRONG)
    def mark_inspection(
        id: int,
        value: Annotated[Truth, Query(description="What the part was found to be; unknown takes it back.")],
    ) -> InspectionAnswer:
        """Keep what a person found a part to be. The verdict stays as it was; `das3d calibrate` and `drift` heed it."""
        service.inspections.mark(id, value)
        return service.answer(service.find(id))

    @router.get(
        "/inspections/{id}/map.tiff", responses=WRONG_FILE | {200: {"content": {"image/tiff": {}}}},
        response_class=FileResponse,
    )  # fmt: skip
    def get_map(id: int) -> FileResponse:
        """The anomaly map: (height, width) float32, 0 to 1."""
        return FileResponse(map_file(service.inspections, service.find(id)), media_type="image/tiff")

    @router.get(
        "/inspections/{id}/overlay.png", responses=WRONG_FILE | {200: {"content": {"image/png": {}}}},
        response_class=Response,
    )  # fmt: skip
    async def get_overlay(id: int) -> Response:
        """The anomaly map as heat over the scan."""

        def picture() -> bytes:
            inspection = service.find(id)
            return overlay_png(service.inspections, inspection, full_red(inspection.threshold))

        return Response(await service.look(picture), media_type="image/png")

    @router.get("/inspections/{id}/view", include_in_schema=False)
    async def get_view(id: int) -> dict[str, Any]:
        def data() -> dict[str, Any]:
            inspection = service.find(id)
            seen = view(service.inspections, inspection, service.statistics(inspection), service.focal_length(inspection))
            return seen | {"scale": full_red(inspection.threshold)}

        return await service.look(data)

    app.include_router(router)


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)  # as balancers ask
    @app.get("/healthz", tags=["operation"], responses={503: {"model": Problem}})
    async def healthz() -> dict[str, str]:
        """Whether the process lives. Restart it where this does not answer 200: its networks have failed for good."""
        service.check_life()
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["operation"], responses={503: {"model": Problem}})
    async def readyz() -> dict[str, str]:
        """Whether it can inspect: the networks compute, the database answers, and the disk has room.

        Send it no parts where this is not 200.
        """
        await service.check()
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"], responses=WRONG, response_class=Response)
    def get_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    assets = Path(das3d.__file__).parent / "assets"
    imports = import_map("/assets")
    page = read_asset("page/index.html").decode().replace("IMPORT_MAP", imports).replace("ROLES", json.dumps(ROLES))
    allowed = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{allowed}'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    app.mount("/assets", StaticFiles(directory=assets), name="assets")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def get_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _add_problems(app: FastAPI) -> None:
    # Whatever is wrong, the answer is JSON with one line in `detail`.
    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"][1:])
        found = one_line(repr(first.get("input")))
        if where in ("rgb", "depth"):  # most often of curl without the @ before the name of a file
            return JSONResponse({"detail": f"{where}: expected a file, found text: {found}"}, 422)
        return JSONResponse({"detail": f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, found {found}"}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # Nothing that a request may bring about; the server logs the traceback.
        return JSONResponse({"detail": "the service failed; its log says why"}, 500)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, OSError):  # on taking in a form, which the framework then blames
            error = unwritable(Path(tempfile.gettempdir()), error.__cause__)
        return await http_exception_handler(request, error)

    @app.exception_handler(SQLAlchemyError)
    async def no_database(request: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("database: %s", one_line(getattr(error, "orig", None) or error, 500))
        return JSONResponse({"detail": "the database does not answer; try again"}, 503, {"Retry-After": "5"})

    @app.exception_handler(LostDatabaseError)
    async def lost_database(request: Request, error: LostDatabaseError) -> JSONResponse:
        log.error("%s", error)
        return JSONResponse({"detail": str(error)}, 503)


def unwritable(folder: Path, error: OSError) -> HTTPException:
    """What is answered where a part cannot be written into a folder, most often for want of room."""
    detail = f"{folder}: expected a folder that can be written, found {error.strerror or type(error).__name__}"
    log.error("%s", detail)
    return HTTPException(507, detail)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
