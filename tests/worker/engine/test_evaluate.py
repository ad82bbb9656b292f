"""The engine's entry point, as a researcher would call it."""

from pathlib import Path

import pytest
import torch

from app.catalog.metrics import DEFAULT_METRICS
from app.checkpoints.format.digests import digest
from app.errors import CheckpointRefused, EvaluationCancelled, EvaluationFailed, InvalidRequest
from app.evidence.evaluation import Evaluation
from app.forget_sets.bundle import Bundle, parse, read_directory
from tests.support.factories import bundle_files, tiny_bundle, tiny_checkpoint
from tests.support.judgement.evaluations import membership_of, scores_of
from tests.support.places import MUSE_NEWS
from worker.engine import precisions as registry
from worker.engine.evaluate import evaluate


def comparable(evaluation: Evaluation) -> dict[str, object]:
    return evaluation.model_dump(exclude={"seconds"})


def test_an_evaluation_carries_scores_proof_and_what_ran_it(llama: Path, bundle: Bundle) -> None:
    found = evaluate(llama, "rtn-int4", bundle, uri="file:///models/a")
    assert found.checkpoint.uri == "file:///models/a"
    assert found.checkpoint.digest == digest(llama)
    assert found.checkpoint.parameters == 123_200
    assert found.precision.name == "rtn-int4"
    assert found.census is not None
    assert found.census.coverage > 0.5
    assert found.forget_set == bundle.info()
    assert found.engine.device == "cpu"
    assert found.engine.dtype == "float32"
    for metric in ("verbmem", "knowmem_forget", "knowmem_retain"):
        assert len(scores_of(found, metric).scores) == 6
    assert len(membership_of(found).holdout.loss) == 6
    assert set(found.seconds) == {"checkpoint", "precision", *DEFAULT_METRICS}
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_full_precision_needs_no_proof_and_each_precision_gives_its_own_numbers(llama: Path, bundle: Bundle) -> None:
    losses = {}
    for name in ("full", "rtn-int8", "rtn-int4", "bnb-nf4", "bnb-fp4", "bnb-int8"):
        found = evaluate(llama, name, bundle, metrics=("privleak",))
        assert (found.census is None) == (name == "full")
        assert found.scores("verbmem") is None
        losses[name] = membership_of(found).forget.loss[0]
    assert len(set(losses.values())) == 6
    assert abs(losses["rtn-int8"] - losses["full"]) < abs(losses["rtn-int4"] - losses["full"])


def test_numbers_do_not_depend_on_what_ran_before(llama: Path, bundle: Bundle) -> None:
    names = ("rtn-int4", "bnb-nf4", "full", "bnb-int8")
    first = {name: comparable(evaluate(llama, name, bundle)) for name in names}
    torch.manual_seed(1234)
    assert {name: comparable(evaluate(llama, name, bundle)) for name in reversed(names)} == first


def test_metrics_that_the_forget_set_cannot_give_are_left_none(llama: Path) -> None:
    only = parse({name: content for name, content in bundle_files(2).items() if name.startswith("raw/")})
    found = evaluate(llama, "full", only)
    assert found.scores("verbmem") is not None
    assert found.scores("knowmem_forget") is None
    assert found.scores("privleak") is None
    assert "privleak" in found.forget_set.unavailable
    assert "verbmem" in found.forget_set.derived


def test_without_proof_no_metric_runs(llama: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry.quantizer(registry.parse("bnb-nf4")), "apply", lambda model, precision, ticks, calibration: {}
    )
    stages: list[str] = []
    with pytest.raises(EvaluationFailed) as failed:
        evaluate(llama, "bnb-nf4", bundle, progress=lambda stage, done, total: stages.append(stage))
    assert failed.value.code == "not_quantized"
    assert set(stages) == {"checkpoint"}


def test_bad_arguments_are_refused_before_the_checkpoint_is_opened(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(InvalidRequest) as refused:
        evaluate(tmp_path, "int4", bundle)
    assert refused.value.code == "unknown_precision"
    with pytest.raises(InvalidRequest) as refused:
        evaluate(tmp_path, "full", bundle, metrics=("rouge",))
    assert refused.value.code == "unknown_metric"
    with pytest.raises(CheckpointRefused) as missing:
        evaluate(tmp_path / "nowhere", "full", bundle)
    assert missing.value.code == "checkpoint_missing"


def test_stages_are_reported_in_order_and_cancelling_stops_in_any(llama: Path, bundle: Bundle) -> None:
    stages: list[str] = []
    evaluate(llama, "rtn-int4", bundle, progress=lambda stage, done, total: stages.append(stage))
    order = ["checkpoint", "precision", *DEFAULT_METRICS]
    assert sorted(stages, key=order.index) == stages
    assert set(stages) == set(order)
    for stop in order:

        def cancel(stage: str, done: int, total: int, stop: str = stop) -> None:
            if stage == stop:
                raise EvaluationCancelled("cancelled", "asked to stop")

        with pytest.raises(EvaluationCancelled):
            evaluate(llama, "rtn-int4", bundle, progress=cancel)


def test_a_bundle_read_from_a_directory_gives_the_same_as_an_upload(llama: Path, tmp_path: Path) -> None:
    folder = parse(read_directory(tiny_bundle(tmp_path, 2, jsonl=True)))
    upload = parse(bundle_files(2))
    a, b = (evaluate(llama, "full", each, metrics=("knowmem_forget",)) for each in (folder, upload))
    assert comparable(a) == comparable(b)


@pytest.mark.skipif(not MUSE_NEWS.exists(), reason="the real MUSE-News evaluation set is not on this machine")
def test_the_real_muse_news_set_runs_through_a_tiny_model(tmp_path: Path) -> None:
    bundle = parse(read_directory(MUSE_NEWS))
    path = tiny_checkpoint(tmp_path, num_hidden_layers=1, num_attention_heads=2, hidden_size=32, intermediate_size=32)
    found = evaluate(path, "rtn-int4", bundle, metrics=("knowmem_forget", "privleak"))
    knowmem = scores_of(found, "knowmem_forget")
    assert len(knowmem.scores) == 100
    assert knowmem.flags["prompt_truncated"] == list(range(100))
    assert len(membership_of(found).flags["forget.truncated"]) == 100
    assert set(membership_of(found).forget.tokens) == {511}
