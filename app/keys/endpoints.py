"""API keys over HTTP, for administrators; `lethe keys` does the same on the machine itself."""

from datetime import datetime

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from app.database.engine import reading, transaction
from app.http import auth
from app.http.auth import IsAdmin
from app.http.problems import WITH_BODY, problems
from app.http.request_types import Id, Name, RequestModel
from app.http.scopes import Scope

router = APIRouter(tags=["API keys"])


class NewKey(RequestModel):
    """What a key is for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "ci", "scopes": ["audits:write", "audits:read"]}]}
    )

    name: Name
    scopes: list[Scope] = Field(min_length=1, description="CI: audits:write, audits:read; compliance: audits:read.")


class Key(BaseModel):
    """A key, without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"])
    name: str = Field(examples=["ci"])
    prefix: str = Field(description="The secret's first characters, to recognise it by.", examples=["lethe_Jb3fXq"])
    scopes: list[str] = Field(examples=[["audits:write", "audits:read"]])
    created_at: datetime
    revoked_at: datetime | None


class CreatedKey(Key):
    """A key with its secret, shown this once."""

    secret: str = Field(examples=["lethe_Jb3fXqC0m5Zk8N1vTtW2yLr7Hd4Sg9Ae6Ui0Po3Qw5E"])


class Keys(BaseModel):
    """All keys, newest first."""

    items: list[Key]


@router.post("/v1/keys", status_code=201, responses=problems(*WITH_BODY))
def create_key(body: NewKey, key: IsAdmin, response: Response) -> CreatedKey:
    """Create a key. Its secret is in this response and nowhere else."""
    with transaction() as session:
        made, secret = auth.create_key(session, body.name, body.scopes)
        response.headers["Location"] = f"/v1/keys/{made.id}"
        response.headers["Cache-Control"] = "no-store"
        return CreatedKey.model_validate({**Key.model_validate(made).model_dump(), "secret": secret})


@router.get("/v1/keys", responses=problems())
def list_keys(key: IsAdmin) -> Keys:
    """List all keys, including revoked ones."""
    with reading() as session:
        return Keys(items=[Key.model_validate(row) for row in auth.list_keys(session)])


@router.delete("/v1/keys/{key_id}", status_code=204, responses=problems("not_found", "invalid_request"))
def revoke_key(key_id: Id, key: IsAdmin) -> None:
    """Revoke a key at once and for good."""
    with transaction() as session:
        auth.revoke_key(session, key_id)
