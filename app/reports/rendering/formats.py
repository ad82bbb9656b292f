"""The formats that a report comes in.

A new format is a file beside this one that renders it, and an entry here: the routes, the API's description, `--format`
and `--out` follow from the entry.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from app.errors import FieldProblem, InvalidRequest
from app.reports.model import AuditReport
from app.reports.rendering.markdown import markdown


class Format(NamedTuple):
    """One format."""

    name: str
    media_type: str
    extension: str
    """The extension of its files, with the dot."""
    render: Callable[[AuditReport], bytes]
    example: str | None = None
    """The beginning of an example, for the API's description."""


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("json", "application/json", ".json", AuditReport.canonical),
        Format(
            "markdown",
            "text/markdown",
            ".md",
            lambda report: markdown(report).encode(),
            "# Audit release 2026-03: RECOVERED\n…",
        ),
    )
}
"""Name -> format; the first is what a client without a preference gets."""


def media_types() -> Mapping[str, str]:
    """Name -> media type."""
    return {one.name: one.media_type for one in FORMATS.values()}


def named(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidRequest: there is no such format.
    """
    if name not in FORMATS:
        message = f"there is no format {name!r}; known: {', '.join(FORMATS)}"
        raise InvalidRequest("invalid_request", message, errors=[FieldProblem(field="format", message=message)])
    return FORMATS[name]


def write(report: AuditReport, file: Path) -> None:
    """Write a report in the format of the file's extension; as JSON if no format has that extension."""
    chosen = next((one for one in FORMATS.values() if one.extension == file.suffix), FORMATS["json"])
    file.write_bytes(chosen.render(report))
