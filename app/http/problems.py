"""Errors over HTTP: refusals become RFC 9457 problem+json here, and every route's documentation lists its own."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.errors import (
    AppError,
    FieldProblem,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
log = structlog.get_logger()


def respond(error: AppError, headers: dict[str, str] | None = None) -> Response:
    """The error as a response."""
    headers = dict(headers or {})
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="lethe"'
    if error.status == 503 or error.code == "report_not_ready":
        headers.setdefault("Retry-After", str(RETRY_SECONDS))
    body = error.problem().model_dump_json(exclude_none=True)
    return Response(body, status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


def look_again(response: Response, seconds: int = RETRY_SECONDS) -> None:
    """Set Retry-After."""
    response.headers["Retry-After"] = str(seconds)


def add_handlers(app: FastAPI) -> None:
    """Register the handlers; everything that leaves the service as an error goes through `respond`."""
    app.add_exception_handler(AppError, _on_app_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for unreachable in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(unreachable, _on_database_error)


async def _on_app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    return respond(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        position = found[0]["loc"][-1]
        why = found[0].get("ctx", {}).get("error", "")
        return respond(MalformedRequest("malformed_request", f"the body is not JSON: {why} at character {position}"))
    return respond(invalid_fields([(item["loc"], item["msg"]) for item in found]))


def invalid_fields(found: Sequence[tuple[Sequence[int | str], str]]) -> InvalidRequest:
    """The refusal that names each field: (location as pydantic gives it, message)."""
    problems = [FieldProblem(field=_field(location), message=_sentence(message)) for location, message in found]
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:5])
    return InvalidRequest("invalid_request", detail, errors=problems)


def _field(location: Sequence[int | str]) -> str:
    parts = [str(part) for part in location]
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] in {"body", "query", "path", "header"} else parts)


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    path = request.url.path
    match error.status_code:
        case 404:
            return respond(NotFound("not_found", f"there is no {path}; /docs lists all routes"))
        case 405:
            headers = {"Allow": (allowed := ", ".join(_methods(request, headers.get("Allow", ""))))}
            return respond(
                MethodNotAllowed("method_not_allowed", f"{path} does not support {request.method}, only {allowed}"),
                headers,
            )
        case 413:
            return respond(too_large(request.app.state.max_body_bytes))
        case 415:
            return respond(UnsupportedMediaType("unsupported_media_type", str(error.detail)))
        case status if status < 500:
            return respond(MalformedRequest("malformed_request", str(error.detail)))
        case _:
            return respond(AppError("internal", AppError.title()))


def _methods(request: Request, allowed: str) -> list[str]:
    """All methods that the path supports; the router knows only those of the first route that matches."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    documented = [methods for path, methods in paths.items() if compile_path(path)[0].match(request.url.path)]
    return sorted({name.upper() for methods in documented for name in methods} | set(filter(None, allowed.split(", "))))


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit."""
    return TooLarge("too_large", f"the body is larger than {limit} bytes; the operator can raise LETHE_MAX_BODY_BYTES")


async def _on_database_error(request: Request, error: Exception) -> Response:
    log.error("database unavailable", error=str(error).splitlines()[0])
    return respond(Unavailable("database_unavailable", "the database cannot be used right now; try again later"))


def _tree(root: type[AppError] = AppError) -> Iterator[type[AppError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def class_of(code: str) -> type[AppError]:
    """The error class that has this code."""
    return next(cls for cls in _tree() if code in cls.codes)


EVERYWHERE = ("key_missing", "key_invalid", "key_revoked", "scope_missing", "internal", "database_unavailable")
WITH_BODY = ("malformed_request", "too_large", "invalid_request")
CHECKPOINT = class_of("checkpoint_missing").codes
FORGET_SET = class_of("forget_set_missing").codes


Responses = dict[int | str, dict[str, Any]]


def problems(*codes: str, authenticated: bool = True) -> Responses:
    """The `responses=` of a route that can fail with these codes and with those of every authenticated route."""
    by_status: dict[int, list[tuple[type[AppError], str]]] = defaultdict(list)
    for code in dict.fromkeys((*codes, *(EVERYWHERE if authenticated else EVERYWHERE[-2:]))):
        cls = class_of(code)
        by_status[cls.status].append((cls, code))
    return {
        status: {
            "description": "; ".join(f"`{code}`: {cls.title()}" for cls, code in found),
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {code: {"value": _example(cls, code)} for cls, code in found},
                }
            },
        }
        for status, found in sorted(by_status.items())
    }


def _example(cls: type[AppError], code: str) -> dict[str, Any]:
    problem = Problem(title=cls.title(), status=cls.status, detail="what was wrong, and what to do", code=code)
    return problem.model_dump(mode="json", exclude_none=True)
