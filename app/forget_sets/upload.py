"""Reading the body of `POST /v1/forget-sets`: an upload of files, or a JSON object that names a directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from app.errors import MalformedRequest, UnsupportedMediaType
from app.forget_sets import archives
from app.forget_sets.layout import refused
from app.forget_sets.schemas import NewForgetSet
from app.http.problems import invalid_fields
from app.settings import settings

_MAX_FILES = 100
_PLAIN = {"files", "file"}


@dataclass(frozen=True)
class Upload:
    """Files by relative path."""

    files: Mapping[str, bytes]
    name: str | None


async def read_body(request: Request) -> Upload | NewForgetSet:
    """The body, read as its content type says."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request)
    if kind == "application/json":
        return await _read_json(request)
    raise UnsupportedMediaType(
        "unsupported_media_type",
        f"the content type is {kind or 'missing'}; send the files as multipart/form-data, or a uri as application/json",
    )


async def _read_json(request: Request) -> NewForgetSet:
    body = await request.body()
    try:
        return NewForgetSet.model_validate_json(body)
    except ValidationError as error:
        found = error.errors()
        if found[0]["type"] == "json_invalid":
            raise MalformedRequest("malformed_request", f"the body is not JSON: {found[0]['msg']}") from error
        raise invalid_fields([(item["loc"], item["msg"]) for item in found]) from error


async def _read_form(request: Request) -> Upload:
    files: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    async with request.form(max_files=_MAX_FILES, max_fields=10) as form:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[field] = value
                continue
            path = _path(field, value.filename or "")
            content = await value.read()
            limit = settings().max_body_bytes
            unpacked = archives.unpack(path, content, limit) if archives.is_archive(path) else {path: content}
            for name, data in unpacked.items():
                if name in files:
                    raise refused("forget_set_malformed", "was sent twice", file=name)
                files[name] = data
    if unknown := sorted(fields.keys() - {"name"}):
        raise invalid_fields([((field,), "is not a field of this upload; send files as @path") for field in unknown])
    if not files:
        raise invalid_fields([(("files",), "no file was sent")])
    try:
        label = NewForgetSet(uri="/", name=fields.get("name")).name
    except ValidationError as error:
        raise invalid_fields([(item["loc"], item["msg"]) for item in error.errors()]) from error
    return Upload(files, label)


def _path(field: str, filename: str) -> str:
    """In the field `files` the file name is the path; any other field's name is the path, whatever the file's name."""
    if field in _PLAIN:
        return filename
    return field if PurePosixPath(field).suffix else field + PurePosixPath(filename).suffix
