"""Forget sets over HTTP: uploads in every form, refusals, purges."""

import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.database import engine as db
from app.database.models import Evaluation, ForgetSetFile
from app.settings import settings
from tests.support.factories import bundle_content, muse_files, muse_folder
from tests.support.places import MUSE_NEWS
from tests.support.service import BUNDLE, QA, Service, content_of, upload, write_bundle
from tests.support.stand_ins.quick import evaluate
from worker.attempts import inputs
from worker.loop import outcomes, reconcile, runner

PATH = "/v1/forget-sets"


def test_an_upload_says_what_can_be_measured_and_why_the_rest_cannot(service: Service) -> None:
    response = service.post(PATH, files=upload(BUNDLE), data={"name": "tiny"})
    made = service.made(response)
    assert response.headers["Location"] == f"{PATH}/{made['id']}"
    assert (made["name"], made["source"]) == ("tiny", "upload")
    assert made["counts"]["knowmem/forget_qa"] == 4
    available = {item["metric"]: item["available"] for item in made["metrics"]}
    assert {metric for metric, is_so in available.items() if is_so} == {"knowmem_forget", "knowmem_retain"}
    assert {metric for metric, is_so in available.items() if not is_so} == {"verbmem", "privleak", "verbmem_sampled"}
    assert "verbmem/forget.json" in next(m["reason"] for m in made["metrics"] if m["metric"] == "verbmem")
    assert service.get(f"{PATH}/{made['id']}").json() == made
    assert "Belma" not in service.get(f"{PATH}/{made['id']}").text


def test_the_same_content_again_is_the_same_forget_set(service: Service) -> None:
    first = service.made(service.post(PATH, files=upload(BUNDLE)))
    lines = {path + "l": "\n".join(json.dumps(item) for item in items).encode() for path, items in BUNDLE.items()}
    again = service.made(service.post(PATH, files=upload(lines)), 200)
    assert again["id"] == first["id"]
    assert len(service.get(PATH).json()["items"]) == 1


def test_a_form_fields_name_is_the_path_too(service: Service) -> None:
    files = [(path.removesuffix(".json"), ("any.json", content_of(items))) for path, items in BUNDLE.items()]
    assert service.made(service.post(PATH, files=files))["counts"]["knowmem/retain_qa"] == 4


def test_curl_uploads_a_folder_file_by_file(service: Service, tmp_path: Path) -> None:
    write_bundle(tmp_path)
    plain = [f"-Ffiles=@{path};filename={path}" for path in BUNDLE]
    named = [f"-F{path.removesuffix('.json')}=@{path}" for path in BUNDLE]
    for arguments in (plain, named):
        command = ["curl", "-sS", "-H", f"Authorization: {service.http.headers['Authorization']}", service.url + PATH]
        ran = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, check=True)
        assert json.loads(ran.stdout)["counts"]["knowmem/forget_qa_icl"] == 2, ran.stdout


def test_curl_uploads_a_folder_in_a_single_line(service: Service, tmp_path: Path) -> None:
    write_bundle(tmp_path / "news")
    key = service.http.headers["Authorization"]
    line = f"tar cz -C news . | curl -sS -H 'Authorization: {key}' -F 'files=@-;filename=news.tgz' {service.url}{PATH}"
    ran = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(ran.stdout)["counts"]["knowmem/forget_qa"] == 4, ran.stdout


def test_a_bundles_own_name_is_taken_and_cleaned(service: Service) -> None:
    made = service.made(service.post(PATH, files=upload(BUNDLE | {"bundle.json": {"name": "ne\x00ws\n"}})))
    assert made["name"] == "news"


def zipped(files: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, value in files.items():
            archive.writestr(path, content_of(value))
    return buffer.getvalue()


def tarred(files: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, value in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content_of(value))
            archive.addfile(member, io.BytesIO(content_of(value)))
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "pack"), [("news.zip", zipped), ("news.tar.gz", tarred)])
def test_an_archive_counts_as_its_files(service: Service, name: str, pack: Any) -> None:
    folder = {f"news/{path}": items for path, items in BUNDLE.items()} | {"news/README.md": b"read me"}
    made = service.made(service.post(PATH, files={"files": (name, pack(folder))}))
    assert made["counts"]["knowmem/forget_qa"] == 4
    with db.reading() as session:
        stored = set(session.scalars(sa.select(ForgetSetFile.name)))
    assert stored == set(BUNDLE), "the read-me is no part of the forget set"


@pytest.mark.parametrize(("name", "pack"), [("bad.zip", zipped), ("bad.tar.gz", tarred)])
@pytest.mark.parametrize("path", ["../knowmem/forget_qa.json", "/etc/knowmem/forget_qa.json"])
def test_an_archive_with_a_path_that_leaves_it_is_refused(service: Service, name: str, pack: Any, path: str) -> None:
    response = service.post(PATH, files={"files": (name, pack({path: QA}))})
    assert "leaves the archive" in service.refused(response, 422, "forget_set_malformed")["detail"]


@pytest.mark.parametrize(("name", "pack"), [("bomb.zip", zipped), ("bomb.tar.gz", tarred)])
def test_an_archive_that_unpacks_to_too_much_is_refused(service: Service, name: str, pack: Any) -> None:
    response = service.post(PATH, files={"files": (name, pack({"raw/forget.txt": b" " * (33 * 2**20)}))})
    service.refused(response, 413, "too_large")


def test_a_broken_archive_is_refused(service: Service) -> None:
    for name in ("news.zip", "news.tar.gz"):
        service.refused(service.post(PATH, files={"files": (name, b"nothing")}), 422, "forget_set_malformed")


@pytest.mark.parametrize("corpus", ["news", "books"])
def test_muses_own_folders_can_be_sent_whole(service: Service, models: Path, corpus: str) -> None:
    files = muse_files(corpus)
    packed = tarred({f"{corpus}/{path}": content for path, content in files.items()})
    bodies: list[dict[str, Any]] = [
        {"files": upload(files)},
        {"files": {"files": ("muse.tgz", packed)}},
        {"json": {"uri": str(muse_folder(models / "muse" / corpus, corpus))}},
    ]
    for body in bodies:
        made = service.made(service.post(PATH, **body))
        assert all(item["available"] for item in made["metrics"])
        assert made["counts"]["raw/retain"] == 4
        assert {"raw/holdout.json", "raw/retain2.txt", "raw/forget.txt"} <= set(made["ignored"])
        with db.reading() as session:
            stored = set(session.scalars(sa.select(ForgetSetFile.name)))
        assert stored == {f"{name}.json" for name in bundle_content()} | {"raw/retain.json"}
        service.http.delete(f"{PATH}/{made['id']}")


FIRST = "knowmem/forget_qa.json"


@pytest.mark.parametrize(
    ("files", "code", "place"),
    [
        ({FIRST: b'[{"question": "a",]'}, "forget_set_malformed", (FIRST, 1, None)),
        ({FIRST + "l": b'{"question": "a", "answer": "b"}\n{"q'}, "forget_set_malformed", (FIRST + "l", 2, None)),
        ({FIRST: b'[{"question": "a",\n"answer": ""}]'}, "forget_set_malformed", (FIRST, 1, "answer")),
        ({FIRST: b'\n["caf\xe9"]'}, "forget_set_not_utf8", (FIRST, 2, None)),
        (
            {FIRST: b'[{"question": "a", "answer": "b",\n"perturbed_answer": "c"}]'},
            "forget_set_malformed",
            (FIRST, 1, "perturbed_answer"),
        ),
        ({"knowmem/other.json": b"[]"}, "forget_set_unknown_file", ("knowmem/other.json", None, None)),
    ],
)
def test_a_malformed_file_is_refused_naming_file_line_and_field(
    service: Service, files: dict[str, bytes], code: str, place: tuple[str, int | None, str | None]
) -> None:
    problem = service.refused(service.post(PATH, files=upload(files)), 422, code)
    error = problem["errors"][0]
    assert (error.get("file"), error.get("line"), error.get("field")) == place
    assert service.get(PATH).json()["items"] == [], "nothing is half written"


def test_a_forget_set_without_usable_items_is_refused(service: Service) -> None:
    service.refused(service.post(PATH, files=upload({"knowmem/forget_qa.json": []})), 422, "forget_set_empty")


def test_an_upload_without_files_or_with_unknown_fields_is_refused(service: Service) -> None:
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\ntiny\r\n--x--\r\n'
    service.refused(service.post(PATH, headers=boundary, content=body), 422, "invalid_request")
    problem = service.refused(service.post(PATH, files=upload(BUNDLE), data={"title": "tiny"}), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "title"


def test_an_upload_of_another_kind_is_refused(service: Service) -> None:
    service.refused(
        service.post(PATH, content=b"[]", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type"
    )
    broken = {"Content-Type": "multipart/form-data"}
    service.refused(service.post(PATH, content=b"[]", headers=broken), 400, "malformed_request")


def test_a_directory_under_the_roots_is_copied(service: Service, models: Path) -> None:
    folder = write_bundle(models / "news")
    made = service.made(service.post(PATH, json={"uri": f"file://{folder}"}))
    assert (made["name"], made["source"]) == ("news", str(folder))
    with db.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ForgetSetFile)) == 4


def test_a_directory_outside_the_roots_or_not_there_is_refused(service: Service, models: Path, tmp_path: Path) -> None:
    outside = write_bundle(tmp_path / "news")
    service.refused(service.post(PATH, json={"uri": str(outside)}), 422, "forget_set_outside_roots")
    (models / "link").symlink_to(outside)
    service.refused(service.post(PATH, json={"uri": str(models / "link")}), 422, "forget_set_outside_roots")
    (models / "link").unlink()
    service.refused(service.post(PATH, json={"uri": str(models / "nothing")}), 422, "forget_set_missing")
    service.refused(service.post(PATH, json={"uri": "hf://muse-bench/MUSE-News"}), 422, "forget_set_missing")


def test_perturbed_answers_are_counted_and_reach_the_engine_as_they_were_sent(service: Service) -> None:
    wrong = [item | {"perturbed_answer": [f"Corin {at}", "Dagny"]} for at, item in enumerate(QA)]
    made = service.made(service.post(PATH, files=upload(BUNDLE | {"knowmem/forget_qa.json": [*wrong[:3], QA[3]]})))
    assert made["counts"]["knowmem/forget_qa.perturbed_answer"] == 3
    plain = service.made(service.post(PATH, files=upload(BUNDLE)))
    assert plain["digest"] != made["digest"]
    assert "knowmem/forget_qa.perturbed_answer" not in plain["counts"]
    stored = inputs.read_bundle(made["digest"])
    assert stored.digest == made["digest"]
    assert [item.perturbed for item in stored.forget_qa] == [
        ("Corin 0", "Dagny"),
        ("Corin 1", "Dagny"),
        ("Corin 2", "Dagny"),
        (),
    ]
    assert "Corin" not in service.get(f"{PATH}/{made['id']}").text


def test_items_that_repeat_others_are_told_by_their_place_and_not_by_their_text(service: Service) -> None:
    copied = BUNDLE | {"knowmem/forget_qa.json": [*QA, QA[3], QA[3]]}
    made = service.get(f"{PATH}/{service.forget_set(copied)}").json()
    # Two are shown with their answers in the prompt of all others.
    assert made["duplicates"] == {"knowmem/forget_qa": [0, 1, 4, 5], "knowmem/retain_qa": [0, 1]}
    assert made["counts"]["knowmem/forget_qa"] == 6


def test_a_purge_deletes_the_content_and_keeps_digest_and_counts(service: Service) -> None:
    made = service.made(service.post(PATH, files=upload(BUNDLE)))
    assert service.http.delete(f"{PATH}/{made['id']}").status_code == 204
    assert service.http.delete(f"{PATH}/{made['id']}").status_code == 204, "again is no error"
    after = service.get(f"{PATH}/{made['id']}").json()
    assert after["purged_at"]
    assert after | {"purged_at": None} == made
    with db.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ForgetSetFile)) == 0
    anew = service.made(service.post(PATH, files=upload(BUNDLE)))
    assert (anew["digest"], anew["purged_at"]) == (made["digest"], None)
    assert anew["id"] != made["id"]
    service.refused(service.http.delete(f"{PATH}/nothing"), 404, "not_found")


@pytest.mark.timeout(30)
def test_a_fifo_in_a_directory_is_refused_and_never_opened(service: Service, models: Path) -> None:
    folder = write_bundle(models / "with-fifo")
    os.mkfifo(folder / "bundle.json")
    problem = service.refused(service.post(PATH, json={"uri": str(folder)}), 422, "forget_set_malformed")
    assert problem["errors"][0]["file"] == "bundle.json"


PROBES = [f"probe-{number}-{'q' * 40}" for number in range(8)]


def found_on_disk() -> set[str]:
    """The probes that some file of the data directory holds."""
    contents = [path.read_bytes() for path in settings().data_dir.rglob("*") if path.is_file()]
    return {probe for probe in PROBES if any(probe.encode() in content for content in contents)}


def probing() -> dict[str, Any]:
    # Each text is longer than a page of SQLite's.
    long = [f"{probe} " + f"{probe} goes on. " * 400 for probe in PROBES]
    return BUNDLE | {
        "raw/forget.json": long[1:],
        "knowmem/forget_qa.json": [QA[0] | {"perturbed_answer": long[:1]}, *QA[1:]],
    }


def test_a_purge_leaves_no_text_in_any_file_of_the_data_directory(service: Service) -> None:
    made = service.made(service.post(PATH, files=upload(probing())))
    service.audit(forget_set=made["id"])
    if db.engine().dialect.name == "sqlite":
        assert found_on_disk() == set(PROBES)
    assert service.http.delete(f"{PATH}/{made['id']}").status_code == 204
    assert found_on_disk() == set()


def test_what_a_reader_kept_from_being_purged_goes_once_it_is_gone(service: Service) -> None:
    made = service.made(service.post(PATH, files=upload(probing())))
    with db.reading() as session:
        session.scalar(sa.select(sa.func.count()).select_from(ForgetSetFile))
        assert service.http.delete(f"{PATH}/{made['id']}").status_code == 204
    reconcile.reconcile(idle=False)
    assert found_on_disk() == set()


def test_only_the_owner_can_enter_the_data_directory(service: Service) -> None:
    if db.engine().dialect.name == "sqlite":
        assert settings().data_dir.stat().st_mode & 0o777 == 0o700


def test_a_forget_set_purged_while_its_audit_is_queued_ends_the_audit(service: Service) -> None:
    forget_set = service.forget_set()
    audit = service.audit(forget_set=forget_set)
    service.http.delete(f"{PATH}/{forget_set}")
    after = service.get(audit["links"]["self"]).json()
    assert (after["state"], after["verdict"]) == ("finished", "inconclusive")
    assert {part["error_code"] for part in after["parts"]} == {"forget_set_purged"}
    refused = service.post("/v1/audits", json=service.audit_body(forget_set=forget_set))
    service.refused(refused, 410, "forget_set_purged")
    anew = service.audit(forget_set=service.forget_set(), original=after["checkpoints"]["original"]["uri"])
    assert {part["state"] for part in anew["parts"]} == {"queued"}
    assert runner.drain(evaluate) == 4
    assert service.get(anew["links"]["self"]).json()["state"] == "finished"


def test_a_purge_stops_evaluations_that_run(service: Service) -> None:
    forget_set = service.forget_set()
    audit = service.audit(forget_set=forget_set)
    with db.transaction() as session:
        from app.database import leases

        claim = leases.claim(session, "a worker")
    assert claim is not None
    service.http.delete(f"{PATH}/{forget_set}")
    assert service.get(audit["links"]["self"]).json()["state"] == "running"
    with db.reading() as session:
        assert session.get_one(Evaluation, claim.evaluation_id).cancel_requested
    outcomes.release(claim)
    after = service.get(audit["links"]["self"]).json()
    assert (after["state"], after["verdict"]) == ("finished", "inconclusive")
    assert {part["error_code"] for part in after["parts"]} == {"forget_set_purged"}


def test_the_real_muse_news_folder_loads_as_it_is(service: Service) -> None:
    folder = MUSE_NEWS
    if not folder.is_dir():
        pytest.skip("the real MUSE-News folder is not on this machine")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json"))}
    made = service.made(service.post(PATH, files=upload(files)))
    assert all(item["available"] for item in made["metrics"])
    assert made["counts"]["knowmem/forget_qa"] == 100
    assert made["counts"]["knowmem/forget_qa_icl"] == 10
