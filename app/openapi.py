"""The API's description of itself."""

from typing import Any

from fastapi import FastAPI

from app.errors import Problem
from app.remediations.report import RemediationReport
from app.reports.model import AuditReport

DESCRIPTION = """\
Post an *original* and an *unlearned* checkpoint with a *forget set*; GPU workers quantize both, run the MUSE
metrics on each, and a report says whether the model remembers again at any precision of the plan.

1. `POST /v1/forget-sets`: a bundle in MUSE's folder layout.
2. `POST /v1/audits`: the pair, the forget set, what to run, how to judge.
3. `GET /v1/audits/{id}/events`, or poll `GET /v1/audits/{id}`.
4. `GET /v1/audits/{id}/report`.
5. If it failed, `POST /v1/audits/{id}/remediations`: unlearn again by a method that survives quantization.

A finished audit's stored scores can be judged again, by another policy or a newer version's rules, without measuring
anything anew: `POST /v1/audits/{id}/judgements`.

Every request except those about health carries `Authorization: Bearer lethe_…`. Every error is
`application/problem+json` with a stable `code`. Lists come in pages: follow `next`.
"""

TAGS = [
    {
        "name": "Forget sets",
        "description": "What must be forgotten and what must be kept.",
    },
    {"name": "Checkpoints", "description": "Directories of safetensors, identified by their digest."},
    {"name": "Audits", "description": "The pair, at every precision of its plan, judged by a policy."},
    {"name": "Diagnoses", "description": "Where a pair's update lives and what rounding does to it. Never a verdict."},
    {"name": "Reports", "description": "The immutable outcome of an audit."},
    {
        "name": "Remediations",
        "description": "Unlearning the original again by a method that survives quantization, and the audit that "
        "proves it.",
    },
    {"name": "API keys", "description": "For administrators."},
    {"name": "Health", "description": "For machines."},
]


def install(app: FastAPI) -> None:
    """Complete the generated document with the schemas that only raw responses refer to."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for name, model, mode in (
                ("Problem", Problem, "validation"),
                ("AuditReport", AuditReport, "serialization"),
                ("RemediationReport", RemediationReport, "serialization"),
            ):
                own = model.model_json_schema(mode=mode, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
                for inner, definition in own.pop("$defs", {}).items():
                    schemas.setdefault(inner, definition)
                schemas[name] = own
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
