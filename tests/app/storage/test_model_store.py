"""The model store, on a folder and on a real S3-compatible server, through the life of a remediation."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import sqlalchemy as sa

from app.checkpoints import sources
from app.checkpoints.format.digests import digest
from app.database import engine as db
from app.database import leases
from app.database.models import Evaluation, Remediation, Trial
from app.database.states import EvaluationState, RemediationState
from app.errors import CheckpointRefused, Unavailable
from app.remediations.stored_models import deletion
from app.settings import settings
from app.storage import model_store
from tests.support.checkpoints import write_checkpoint
from tests.support.servers import s3_server
from tests.support.stand_ins.quick import diagnose
from tests.support.stand_ins.scored import FORGOT_IN_FULL, Unlearning, evaluate, say
from worker.attempts import remediations
from worker.loop import runner

sqlite = pytest.mark.parametrize("place", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(place: str, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A bucket that is the model store of this test; the client that reaches it."""
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (keys | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    name = f"lethe-{tmp_path.name[-20:].strip('_-').replace('_', '-').lower()}-{place}"
    monkeypatch.setenv("LETHE_MODEL_STORE_URL", f"s3://{name}/models/")
    settings.cache_clear()
    client = fsspec.filesystem("s3", skip_instance_cache=True)
    client.mkdir(name)
    yield client
    fsspec.filesystem("s3").clear_instance_cache()


def the_trial() -> Trial:
    with db.reading() as session:
        return session.scalars(sa.select(Trial).options(sa.orm.joinedload(Trial.checkpoint))).one()


def test_a_remediation_lives_in_a_bucket_and_is_fetched_where_it_is_needed(bucket: Any, remediation: str) -> None:
    runner.drain(evaluate, diagnose, Unlearning())
    with db.reading() as session:
        row = session.get_one(Remediation, remediation)
        assert (row.state, row.verdict) == (RemediationState.FINISHED, "robust")
    trial = the_trial()
    uri = trial.model_uri
    assert uri is not None
    assert uri.startswith(settings().resolved_model_store_url + "/")
    assert trial.checkpoint is not None
    assert trial.checkpoint.uri == uri
    names = {path.rpartition("/")[2]: size for path, size in bucket.du(uri, total=False).items()}
    assert {"model.safetensors", "config.json", "tokenizer.json", model_store.CARD} <= set(names)
    assert "**ROBUST**" in bucket.cat_file(f"{uri}/{model_store.CARD}").decode()
    assert not (settings().data_dir / "models").exists()

    # Every worker has its own copy, checked by its digest; it is what the audit evaluated.
    copy = model_store.local_path(uri, trial.checkpoint.digest)
    assert copy.is_relative_to(settings().data_dir / "fetched")
    assert digest(copy) == trial.checkpoint.digest
    shutil.rmtree(copy)
    stages: list[str] = []
    assert model_store.local_path(uri, trial.checkpoint.digest, lambda stage, *_: stages.append(stage)) == copy
    assert set(stages) == {"fetch"}
    stages.clear()
    model_store.local_path(uri, trial.checkpoint.digest, lambda stage, *_: stages.append(stage))
    assert stages == []
    # A request may name it, as any checkpoint.
    assert sources.open_checkpoint(uri).digest == trial.checkpoint.digest

    deletion.delete(trial.id, "requested")
    bucket.invalidate_cache()
    assert not bucket.exists(uri)
    assert not copy.exists()
    with pytest.raises(CheckpointRefused, match="deleted"):
        sources.open_checkpoint(uri)


@sqlite
def test_a_copy_that_nobody_needs_any_more_is_swept(bucket: Any, remediation: str) -> None:
    runner.drain(evaluate, diagnose, Unlearning())
    uri = the_trial().model_uri
    assert uri is not None
    copy = model_store.local_path(uri)
    remediations.clean()
    assert copy.exists()
    kept = copy.rename(copy.with_name("kept"))
    deletion.delete(the_trial().id, "by another machine")
    kept.rename(copy)
    remediations.clean()
    assert not copy.exists()


@sqlite
def test_a_model_that_was_tampered_with_is_not_evaluated(bucket: Any, remediation: str) -> None:
    def tamper(*args: Any, **kwargs: Any) -> Any:
        shutil.rmtree(settings().data_dir / "fetched", ignore_errors=True)
        found = claim(*args, **kwargs)
        if found is not None and found.checkpoint_uri.startswith("s3:"):
            bucket.pipe_file(f"{found.checkpoint_uri}/tokenizer.json", b'{"other": 1}')
        return found

    claim = leases.claim
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "claim", tamper)
        patch.setattr(leases, "claim_diagnosis", lambda *args: None)
        runner.drain(evaluate, diagnose, Unlearning())
    with db.reading() as session:
        failed = session.scalars(sa.select(Evaluation).where(Evaluation.state == EvaluationState.FAILED)).all()
    assert {row.error_code for row in failed} == {"checkpoint_changed"}


@sqlite
def test_a_store_that_is_away_says_which(
    place: str, monkeypatch: pytest.MonkeyPatch, bucket: Any, endpoint: str
) -> None:
    monkeypatch.setenv("LETHE_MODEL_STORE_URL", "nosuch://place")
    settings.cache_clear()
    with pytest.raises(Unavailable, match="LETHE_MODEL_STORE_URL"):
        model_store.check_reachable()
    with pytest.raises(Unavailable, match="nosuch"):
        model_store.delete("nosuch://place/x")


@sqlite
def test_only_the_store_lies_outside_the_allowed_folders(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHE_MODEL_STORE_URL", f"file://{tmp_path}/store")
    settings.cache_clear()
    inside = write_checkpoint(tmp_path / "store" / "a" / "b")
    assert sources.open_checkpoint(str(inside)).uri == str(inside)
    outside = write_checkpoint(tmp_path / "elsewhere")
    (tmp_path / "store" / "link").symlink_to(outside)
    for path in (outside, tmp_path / "store" / ".." / "elsewhere", tmp_path / "store" / "link"):
        with pytest.raises(CheckpointRefused) as refused:
            sources.open_checkpoint(str(path))
        assert refused.value.code == "checkpoint_outside_roots"
    assert model_store.owns(model_store.place("a", "sha256:b"))
    # All of a bucket would be fetched as if it were one checkpoint.
    for wrong in ("../elsewhere", "", "a", "a/", "/", "./a", "a/b/c"):
        assert not model_store.owns(f"{model_store.root()}/{wrong}"), wrong


@sqlite
def test_a_store_that_an_earlier_version_made_stays_where_it_is(place: str) -> None:
    data = settings().data_dir
    assert model_store.folder() == data / "models"
    earlier = write_checkpoint(data / "artifacts" / "trial" / "digest")
    assert model_store.folder() == data / "artifacts"
    assert sources.open_checkpoint(str(earlier)).uri == str(earlier)


@sqlite
def test_what_is_stored_is_complete_or_an_error(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_checkpoint(tmp_path / "new")
    say(checkpoint, FORGOT_IN_FULL)
    uri = model_store.place("trial", "sha256:" + "a" * 64)
    stored = model_store.store(checkpoint, uri, "# card", lambda *_: None)
    assert stored == sum(file.stat().st_size for file in Path(uri).iterdir())
    assert digest(Path(uri)) == digest(checkpoint)
    monkeypatch.setattr(model_store, "_sizes", lambda *args: {"config.json": 1})
    with pytest.raises(Unavailable, match="bytes"):
        model_store.store(checkpoint, uri, "# card", lambda *_: None)


@sqlite
def test_a_model_can_be_fetched_twice_at_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_MODEL_STORE_URL", "memory://store")
    settings.cache_clear()
    checkpoint = write_checkpoint(tmp_path / "new")
    uri = model_store.place("trial", digest(checkpoint))
    model_store.store(checkpoint, uri, "card", lambda *_: None)
    fetched: list[Path] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if done == 2 and not fetched:
            fetched.append(model_store.local_path(uri, digest(checkpoint)))

    assert model_store.local_path(uri, digest(checkpoint), meanwhile) == fetched[0]
    assert digest(fetched[0]) == digest(checkpoint)
    assert list(fetched[0].parent.iterdir()) == fetched
