"""What stands in front of every request: who may come in, how many at once, how much they may bring, how long it may take.

It is ASGI middleware because all this must be settled before a byte of a body is kept. Whoever is turned away is told why
in JSON like anyone else.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from das3d.errors import one_line

OPEN = ("/healthz", "/readyz", "/")  # without a key: probes, and the page, which asks for the key itself
OPEN_FOLDER = "/assets/"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Limits:
    """What one service takes on.

    Attributes:
        queue: inspections under way at once, from the first byte of the upload to the answer; 429 beyond.
        batch: parts that are computed together.
        upload: bytes of one request.
        pixels: of one scan.
        seconds: that an upload may take, and after it the inspection.
        readers: uploads that are decoded at once, and past scans besides, for those who look at them; each may take 60
            bytes of memory a pixel.
    """

    queue: int = 32
    batch: int = 8
    upload: int = 64 << 20
    pixels: int = 16_000_000
    seconds: float = 30.0
    readers: int = 2


class Metrics:
    """What Prometheus gets to see, in a registry of its own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "das3d_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "das3d_request_seconds", "From the first byte to the answer.", ("method", "route"), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.under_way = Gauge("das3d_inspections_under_way", "Taken in and not yet answered.", registry=self.registry)
        self.queue = Gauge("das3d_queue_limit", "Inspections that may be under way.", registry=self.registry)
        self.inspections = Counter(
            "das3d_inspections", "Verdicts and refusals recorded.", ("model", "verdict"), registry=self.registry
        )
        self.stage_seconds = Histogram(
            "das3d_stage_seconds", "Of one inspection: read, wait and compute, record.", ("stage",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.scores = Histogram(
            "das3d_score", "Scores, whose drift shows that parts or sensors change.", ("model",),
            buckets=tuple(step / 20 for step in range(1, 20)), registry=self.registry,
        )  # fmt: skip
        self.false_alarms = Histogram(
            "das3d_false_alarm_probability",
            "Of parts, by which drift shows whatever the scale of the model's scores: those of good parts spread evenly.",
            ("model",), buckets=tuple(step / 10 for step in range(1, 10)), registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "das3d_batch_parts", "Parts computed together.", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )


class Gate:
    """Middleware: names of the host, API key, admission, size and time of uploads, metrics, headers."""

    def __init__(
        self, app: ASGIApp, *, key: str | None, limits: Limits, metrics: Metrics, hosts: Collection[str] | None = None
    ) -> None:
        self._app, self._limits, self._metrics, self._hosts = app, limits, metrics, hosts
        self._key = None if key is None else key.encode()
        self._under_way = 0
        metrics.queue.set(limits.queue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            await self._let_in(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # its pattern: ids would make a series each
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT") else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.request_seconds.labels(method, route).observe(time.perf_counter() - begun)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self._hosts is not None and (host := _host_in(headers)) not in self._hosts:
            # A page that lets its own name point here (DNS rebinding) may read and send what it likes otherwise.
            detail = (
                f"expected a request to {', '.join(self._hosts)}, found one to {one_line(host)!r}; a key lifts this limit"
            )
            await self._turn_away(scope, receive, send, 421, detail)
        elif not self._knows(headers) and path not in OPEN and not path.startswith(OPEN_FOLDER):
            detail = "expected the API key in the header X-API-Key or Authorization: Bearer"
            await self._turn_away(scope, receive, send, 401, detail, {"WWW-Authenticate": "Bearer"})
        elif scope["method"] not in ("GET", "HEAD") and (page := self._another_page(headers)):
            detail = f"expected a request of this service's own page or of a program, found one of {one_line(page)}"
            await self._turn_away(scope, receive, send, 403, detail)
        elif scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif self._under_way >= self._limits.queue:
            detail = f"{self._limits.queue} inspections are under way, as many as this service takes on; try again"
            await self._turn_away(scope, receive, send, 429, detail, {"Retry-After": "1"})
        elif int(headers.get("content-length", 0)) > self._limits.upload:  # servers have made sure that it is a number
            await self._turn_away(scope, receive, send, 413, self._too_large())
        else:
            self._count(+1)
            try:
                await self._app(scope, self._limited(receive), send)
            finally:
                self._count(-1)

    def _count(self, change: int) -> None:
        self._under_way += change
        self._metrics.under_way.set(self._under_way)

    def _knows(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        shown = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        return hmac.compare_digest(shown.encode(), self._key)

    def _another_page(self, headers: Headers) -> str:
        # Whose page sent a request, "" where it is this service's own or no page at all. Browsers that say how the page
        # relates to the service know better than its address, which a proxy may hide.
        origin = headers.get("origin", "")
        relation = headers.get("sec-fetch-site")
        if relation in ("cross-site", "same-site"):
            return origin or "another page"
        if relation is not None or not origin or self._key is not None:  # a key is sent by no page that does not know it
            return ""
        # No page may send the second header to another site, so that whoever has it comes through a proxy or is none.
        own = {_without_default_port(headers.get(name, ""), origin) for name in ("host", "x-forwarded-host")}
        return "" if origin.partition("://")[2].lower() in own - {""} else origin

    def _too_large(self) -> str:
        return f"expected an upload of at most {self._limits.upload / (1 << 20):g} MiB, found more"

    def _limited(self, receive: Receive) -> Receive:
        # The body, broken off where it is too large or too slow.
        taken, finished = 0, False
        deadline = asyncio.get_running_loop().time() + self._limits.seconds

        async def limited() -> Message:
            nonlocal taken, finished
            if finished:  # what comes then is the end of the connection, which may take its time
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"expected the upload within {self._limits.seconds:g} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            taken += len(message.get("body", b""))
            finished = not message.get("more_body", False)
            if taken > self._limits.upload:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        return limited

    async def _turn_away(
        self, scope: Scope, receive: Receive, send: Send, status: int, detail: str, headers: dict[str, str] | None = None
    ) -> None:
        # Clients that are still sending would see a broken connection instead of the answer, so their body is read and
        # dropped, unless they ask first.
        if Headers(scope=scope).get("expect", "").lower() != "100-continue":
            limited = self._limited(receive)
            try:
                while (await limited()).get("more_body", False):
                    pass
            except HTTPException:
                pass
        await JSONResponse({"detail": detail}, status, headers)(scope, receive, send)


def _without_default_port(host: str, origin: str) -> str:
    # As browsers write it in an origin.
    scheme = origin.partition("://")[0]
    return host.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))


def _host_in(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # brackets that enclose no address
        return ""


def _add_headers(headers: MutableHeaders, path: str) -> None:
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("X-Frame-Options", "DENY")
    # Assets change with the version; the rest is nobody's to keep.
    headers.setdefault("Cache-Control", "no-cache" if path.startswith(OPEN_FOLDER) else "no-store")
