"""Lists in pages, newest first: a page ends with the id of its last item, and the next one starts below it."""

from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import InstrumentedAttribute, Session

Item = TypeVar("Item")
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=200, description="Items per page.")]
Cursor = Annotated[
    str | None,
    Query(
        pattern="^[0-9a-f-]{36}$",
        description="Taken from the last page's `next`.",
        examples=["01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"],
    ),
]


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest first."""

    items: list[Item]
    next: str | None = Field(
        description="Path and query of the next page; null on the last one.",
        examples=["/v1/audits?limit=50&cursor=01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"],
    )


def read_page(
    session: Session,
    statement: "sa.Select[Row]",
    key: InstrumentedAttribute[str],
    *,
    path: str,
    limit: int,
    cursor: str | None,
    filters: dict[str, Any] | None = None,
) -> tuple[list[Row], str | None]:
    """A page of the statement's rows and the path of the next one.

    Args:
        key: The sortable id column that pages are cut by.
        path: The list's own path, with `filters` the start of the next page's.
    """
    if cursor is not None:
        statement = statement.where(key < cursor)
    rows = list(session.scalars(statement.order_by(key.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    rows = rows[:limit]
    query = {**{name: value for name, value in (filters or {}).items() if value is not None}, "limit": limit}
    return rows, f"{path}?{urlencode({**query, 'cursor': getattr(rows[-1], key.key)})}"
