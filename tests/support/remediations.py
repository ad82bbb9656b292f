"""Remediations as tests ask for them: over HTTP, and in the database alone; the engine is a stand-in."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.database import engine as db
from app.database.models import Audit
from app.http import auth
from app.remediations import service
from app.remediations.schemas import NewRemediation
from tests.support.checkpoints import write_checkpoint
from tests.support.service import BUNDLE, Service, content_of
from tests.support.stand_ins.quick import diagnose
from tests.support.stand_ins.scored import FORGOT_IN_FULL, Unlearning, evaluate, say
from tests.support.worker_service import submit
from worker.loop import runner

TEXTS = {"raw/forget.json": ["Belma painted the old mill in Lunden."], "raw/retain.json": ["Corin sold a red lantern."]}
FILES = {name: content_of(value) for name, value in (BUNDLE | TEXTS).items()}
SURE = {"method": "sure", "loss": "npo_gdr"}


def drain(unlearn: Unlearning | None = None) -> None:
    """Let a worker do all that waits."""
    runner.drain(evaluate, diagnose, unlearn or Unlearning())


def failed_audit(service: Service, bundle: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A finished audit whose unlearned model remembers at 4 bits."""
    body: dict[str, Any] = {
        "unlearned": say(service.checkpoint(), FORGOT_IN_FULL),
        "forget_set": service.forget_set(BUNDLE | TEXTS if bundle is None else bundle),
        "plan": {"precisions": ["full", "rtn-int8", "rtn-int4"]},
    }
    body |= changes
    # What the stand-in for the engine measures.
    body["plan"] = {"metrics": ["knowmem_forget", "knowmem_retain"]} | body["plan"]
    audit = service.audit(**body)
    drain()
    return service.get(audit["links"]["self"]).json()


def begin(service: Service, audit: Any, **body: Any) -> Any:
    """Ask for a remediation by SURE over HTTP; what was accepted."""
    return service.made(service.post(f"/v1/audits/{audit['id']}/remediations", json=SURE | body), 202)


def read(service: Service, remediation: Any) -> Any:
    """The remediation as it is now."""
    return service.get(remediation["links"]["self"]).json()


def follow(service: Service, remediation: Any, after: str | None = None) -> list[dict[str, Any]]:
    """Its events, those after an id if one is given."""
    headers = {} if after is None else {"Last-Event-ID": after}
    found: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    for line in service.get(remediation["links"]["events"], headers=headers).text.splitlines():
        name, _, value = line.partition(": ")
        if line and name != "retry":
            fields[name] = json.loads(value) if name == "data" else value
        elif fields:
            found.append(fields)
            fields = {}
    return found


@pytest.fixture
def remediation(place: str, tmp_path: Path) -> str:
    """A queued remediation of an audit whose model remembers at 4 bits; its id."""
    for number, name in enumerate(("original", "unlearned")):
        write_checkpoint(tmp_path / name, value=number)
    say(tmp_path / "unlearned", FORGOT_IN_FULL)
    audit_id = submit(tmp_path, precisions=("full", "rtn-int4"), files=FILES)
    runner.drain(evaluate, diagnose)
    return queue_remediation(audit_id)


def queue_remediation(audit_id: str) -> str:
    """Ask for a remediation of an audit in the database; its id."""
    with db.transaction() as session:
        assert session.get_one(Audit, audit_id).verdict == "recovered"
        key, _ = auth.create_key(session, "test", ["admin"])
        body = NewRemediation(method="sure", loss="npo_gdr")
        return service.create(session, audit_id, body, api_key_id=key.id, idempotency_key=None)[0]
