"""Lists in pages, newest first: a page ends with the id of its last item, and the next one starts below it."""

from collections.abc import Callable
from typing import Annotated, Generic, TypeVar
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import InstrumentedAttribute

from app.database.engine import reading

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


def page_of(
    statement: "sa.Select[Row]",
    key: InstrumentedAttribute[str],
    view: Callable[[Row], Item],
    path: str,
    limit: int,
    cursor: str | None,
    **filters: object,
) -> Page[Item]:
    """A page of the statement's rows.

    Args:
        key: The sortable id column that splits the list into pages.
        view: Turns a row into its response; called while the session is open.
        path: The list's own path; with `filters` (those that are not None) it starts the next page's.
    """
    if cursor is not None:
        statement = statement.where(key < cursor)
    with reading() as session:
        rows = list(session.scalars(statement.order_by(key.desc()).limit(limit + 1)))
        items = [view(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(items=items, next=None)
    query = {**{name: value for name, value in filters.items() if value is not None}, "limit": limit}
    return Page(items=items, next=f"{path}?{urlencode({**query, 'cursor': getattr(rows[limit - 1], key.key)})}")
