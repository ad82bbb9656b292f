"""The API's description of itself, and what importing it costs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from app.http.problems import class_of
from app.main import create_app


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_route_but_health_names_the_key_and_its_refusals(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        if not path.startswith("/v1/"):
            continue
        assert operation["security"] == [{"API key": []}], path
        for status in ("401", "403", "500", "503"):
            assert "application/problem+json" in operation["responses"][status]["content"], (path, status)
        assert operation["description"], path


def test_every_documented_code_belongs_to_an_error(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {}):
                assert class_of(code).status == int(status), (path, code)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in re.findall(r"'#/components/schemas/([^']*)'", str(document)):
        assert name in schemas
    assert "HTTPValidationError" not in schemas


def test_every_request_and_response_has_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def has_example(schema: dict[str, Any]) -> bool:
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        if "examples" in schema or "example" in schema:
            return True
        parts = [*schema.get("properties", {}).values(), schema.get("items", {})]
        return any(part and has_example(part) for part in parts)

    for method, path, operation in operations(document):
        if not path.startswith("/v1/"):
            continue
        bodies = operation.get("requestBody", {}).get("content", {})
        answers = {
            k: v for r in ("200", "201", "202") for k, v in operation["responses"].get(r, {}).get("content", {}).items()
        }
        for kind, content in [*bodies.items(), *answers.items()]:
            if kind == "text/event-stream":
                continue
            assert "example" in content or "examples" in content or has_example(content["schema"]), (method, path, kind)


def test_importing_the_service_imports_no_torch() -> None:
    script = (
        "import sys, app.main; app.main.create_app();"
        "bad = [m for m in sys.modules if m.split('.')[0] in {'torch', 'transformers', 'worker', 'bitsandbytes'}];"
        "sys.exit(str(bad) if bad else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
