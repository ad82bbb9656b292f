"""What surrounds every request: its id, its log line, its measurements, and the handler of uncaught errors."""

import re
import time
from uuid import uuid4

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AppError
from app.http.problems import respond, too_large

REQUESTS = Counter("lethe_http_requests_total", "Requests answered.", ["method", "route", "status"])
LATENCY = Histogram("lethe_http_request_seconds", "Time to the response's first byte.", ["method", "route"])

_QUIET = {"/livez", "/readyz", "/metrics"}
_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
log = structlog.get_logger()


class RequestContext:
    """Pure ASGI, so that streams and disconnects pass through untouched.

    Bodies over the limit are refused: at once if they declare their length, else while they are read. (FastAPI's own
    limit answers some of them in plain text.)
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status, received = 0, 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise HTTPException(413)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                _measure(scope, status, time.perf_counter() - started)
            await send(message)

        try:
            if headers.get("content-length", "").isdecimal() and int(headers["content-length"]) > self.max_body_bytes:
                await respond(too_large(self.max_body_bytes))(scope, receive, send_with_id)
            else:
                await self.app(scope, receive_within_limit, send_with_id)
        except ClientDisconnect:
            log.info("client went away")
        except Exception:
            log.exception("unexpected error", method=scope["method"], path=scope["path"])
            if status:
                raise
            problem = AppError("internal", f"{AppError.title()}; look there for request {request_id}")
            await respond(problem)(Request(scope).scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(1000 * (time.perf_counter() - started), 1),
                )


def _measure(scope: Scope, status: int, seconds: float) -> None:
    # The route's template, never the path: one label per id would be unbounded.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    REQUESTS.labels(method, route, str(status)).inc()
    LATENCY.labels(method, route).observe(seconds)
