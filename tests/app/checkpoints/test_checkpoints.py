"""Checkpoints over HTTP: what is registered, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.places import REPOSITORY
from tests.support.service import Service

PATH = "/v1/checkpoints"


def test_a_checkpoint_is_registered_once_per_place(service: Service, models: Path) -> None:
    uri = service.checkpoint("first")
    response = service.post(PATH, json={"uri": uri})
    made = service.made(response)
    assert (made["name"], made["uri"], made["parameters"]) == ("first", uri, 16)
    assert response.headers["Location"] == f"{PATH}/{made['id']}"
    assert service.made(service.post(PATH, json={"uri": f"file://{uri}", "name": "other"}), 200) == made
    assert service.get(f"{PATH}/{made['id']}").json() == made
    (models / "first").rename(models / "moved")
    moved = service.made(service.post(PATH, json={"uri": str(models / "moved")}))
    assert moved["digest"] == made["digest"]
    found = service.get(PATH, params={"digest": made["digest"]}).json()["items"]
    assert [item["id"] for item in found] == [moved["id"], made["id"]]


def test_a_checkpoint_that_changed_is_another_checkpoint(service: Service, models: Path) -> None:
    uri = service.checkpoint("changing")
    before = service.made(service.post(PATH, json={"uri": uri}))
    weights = models / "changing" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert service.made(service.post(PATH, json={"uri": uri}))["digest"] != before["digest"]


def test_a_missing_path_is_refused(service: Service, models: Path) -> None:
    service.refused(service.post(PATH, json={"uri": str(models / "nothing")}), 422, "checkpoint_missing")


def test_a_path_outside_the_roots_is_refused_whatever_it_is(service: Service, models: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    for uri in (tmp_path / "model", models / ".." / "data", "/etc/passwd", "/nothing/at/all"):
        service.refused(service.post(PATH, json={"uri": str(uri)}), 422, "checkpoint_outside_roots")


def test_a_symlink_out_is_refused(service: Service, models: Path, tmp_path: Path) -> None:
    outside = write_checkpoint(tmp_path / "model")
    (models / "linked").symlink_to(outside)
    service.refused(service.post(PATH, json={"uri": str(models / "linked")}), 422, "checkpoint_outside_roots")
    (models / "linked").unlink()
    inside = Path(service.checkpoint())
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(outside / "model.safetensors")
    service.refused(service.post(PATH, json={"uri": str(inside)}), 422, "checkpoint_outside_roots")


def test_an_unreadable_path_is_refused(service: Service) -> None:
    path = Path(service.checkpoint())
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    service.refused(service.post(PATH, json={"uri": str(path)}), 422, "checkpoint_unreadable")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_fifo_is_refused_and_never_opened(service: Service, name: str) -> None:
    path = Path(service.checkpoint())
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    problem = service.refused(service.post(PATH, json={"uri": str(path)}), 422, "checkpoint_unreadable")
    assert name in problem["detail"]


def test_pickle_weights_are_refused(service: Service) -> None:
    path = Path(service.checkpoint())
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    problem = service.refused(service.post(PATH, json={"uri": str(path)}), 422, "checkpoint_pickle")
    assert "safetensors" in problem["detail"]


def test_truncated_safetensors_are_refused(service: Service) -> None:
    path = Path(service.checkpoint()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    service.refused(service.post(PATH, json={"uri": str(path.parent)}), 422, "checkpoint_truncated")


def test_a_missing_tokenizer_is_refused(service: Service) -> None:
    path = Path(service.checkpoint())
    (path / "tokenizer.json").unlink()
    service.refused(service.post(PATH, json={"uri": str(path)}), 422, "checkpoint_no_tokenizer")


@pytest.mark.parametrize("uri", ["hf://meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b", "https://example.org/model"])
def test_a_checkpoint_elsewhere_is_refused_with_what_to_do(service: Service, uri: str) -> None:
    problem = service.refused(service.post(PATH, json={"uri": uri}), 422, "checkpoint_unsupported")
    assert "path" in problem["detail"]


def test_a_relative_path_is_told_to_be_absolute(service: Service) -> None:
    for uri in ("models/a", "a", "./models/a/b"):
        problem = service.refused(service.post(PATH, json={"uri": uri}), 422, "checkpoint_unsupported")
        assert "relative" in problem["detail"]
        assert "absolute" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "uri"),
        ({"uri": ""}, "uri"),
        ({"uri": 3}, "uri"),
        ({"uri": "/a\x00b"}, "uri"),
        ({"uri": "/a", "name": " "}, "name"),
        ({"uri": "/a", "name": "a\nb"}, "name"),
        ({"uri": "/a", "nmae": "a"}, "nmae"),
    ],
)
def test_a_wrong_field_is_named(service: Service, body: dict[str, object], field: str) -> None:
    problem = service.refused(service.post(PATH, json=body), 422, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field]


def test_half_a_surrogate_pair_in_a_name_is_refused(service: Service) -> None:
    body = b'{"uri": "/a", "name": "\\ud800"}'
    headers = {"Content-Type": "application/json"}
    service.refused(service.post(PATH, content=body, headers=headers), 422, "invalid_request")


def test_lists_come_in_pages(service: Service) -> None:
    ids = [service.made(service.post(PATH, json={"uri": service.checkpoint()}))["id"] for _ in range(5)]
    found: list[str] = []
    path: str | None = f"{PATH}?limit=2"
    while path is not None:
        page = service.get(path).json()
        assert len(page["items"]) <= 2
        found += [item["id"] for item in page["items"]]
        path = page["next"]
    assert found == ids[::-1]
    service.refused(service.get(PATH, params={"limit": 0}), 422, "invalid_request")
    service.refused(service.get(PATH, params={"cursor": "x"}), 422, "invalid_request")
    service.refused(service.get(f"{PATH}/nothing"), 404, "not_found")


def test_reading_checkpoints_needs_no_torch() -> None:
    code = (
        "import sys, app.checkpoints.format.files, app.forget_sets.bundle, app.catalog.precisions;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
