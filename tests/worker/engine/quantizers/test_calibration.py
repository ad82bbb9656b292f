"""The texts that GPTQ and AWQ look at. Traps are named as in worker/engine/README.md."""

from pathlib import Path

import pytest

from app.catalog.precisions import PRECISIONS, parse
from app.errors import EvaluationFailed, InvalidRequest
from app.forget_sets.bundle import Bundle
from app.forget_sets.bundle import parse as parse_bundle
from tests.support.factories import bundle_files, tiny_checkpoint, tiny_tokenizer
from worker.engine.evaluate import evaluate
from worker.engine.quantizers import calibration
from worker.engine.quantizers.calibration import LENGTH, SAMPLES, SHORTEST, draw, pack


def test_generic_texts_are_there_wherever_python_is_and_fill_every_sample() -> None:
    drawn = draw(parse("gptq-int4"), tiny_tokenizer(), None)
    assert drawn is not None
    assert drawn.ids.shape == (SAMPLES["gptq"], LENGTH)
    assert drawn.parameters() == {
        "calibration": "generic",
        "calibration_digest": drawn.digest,
        "calibration_samples": 128,
        "calibration_length": 512,
        "calibration_seed": 0,
    }
    again = draw(parse("gptq-int4"), tiny_tokenizer(), None)
    other = draw(parse("gptq-int4"), tiny_tokenizer(), None, seed=1)
    assert again is not None
    assert other is not None
    assert drawn.ids.equal(again.ids)
    assert drawn.digest == again.digest == other.digest
    assert not drawn.ids.equal(other.ids)
    assert draw(parse("rtn-int4"), tiny_tokenizer(), None) is None


def test_short_texts_are_packed_to_full_samples() -> None:
    """No filter of short samples, and no collator that cuts to the shortest, finds anything to do ("Short samples")."""
    lines = [f"Line {i}." for i in range(100)]
    ids = pack(lines, tiny_tokenizer(), samples=8, length=32, seed=0)
    assert ids.shape == (8, 32)
    whole = pack(lines, tiny_tokenizer(), samples=8, length=10**6, seed=0)
    assert whole.shape[0] == 1
    assert whole.numel() == sum(len(tiny_tokenizer()(line)["input_ids"]) for line in lines)


def test_the_bundles_own_texts_are_used_by_name(bundle: Bundle) -> None:
    forget = draw(parse("awq-int4@forget"), tiny_tokenizer(), bundle)
    assert forget is not None
    assert forget.source == "forget"
    assert forget.ids.shape[0] <= SAMPLES["awq"]
    decoded = str(tiny_tokenizer(bos=False).decode(forget.ids[0], skip_special_tokens=True))
    assert decoded[:80] in "".join(bundle.raw_forget)
    with pytest.raises(EvaluationFailed, match="no raw/retain; use another calibration") as refused:
        draw(parse("awq-int4@retain"), tiny_tokenizer(), bundle)
    assert refused.value.code == "precision_unavailable"


def test_the_operators_file_is_split_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(f"A paragraph of the operator, number {i}." for i in range(50)))
    drawn = draw(parse("gptq-int4@file"), tiny_tokenizer(), None, file=file)
    assert drawn is not None
    assert drawn.source == "file"
    with pytest.raises(EvaluationFailed, match="LETHE_CALIBRATION_FILE"):
        draw(parse("gptq-int4@file"), tiny_tokenizer(), None)
    with pytest.raises(EvaluationFailed, match="cannot be read as UTF-8"):
        draw(parse("gptq-int4@file"), tiny_tokenizer(), None, file=tmp_path / "nowhere")
    file.write_text("Two words")
    with pytest.raises(EvaluationFailed, match=f"{SHORTEST} are needed"):
        draw(parse("gptq-int4@file"), tiny_tokenizer(), None, file=file)
    file.write_text("")
    with pytest.raises(EvaluationFailed, match="is empty"):
        draw(parse("gptq-int4@file"), tiny_tokenizer(), None, file=file)


def test_samples_are_no_longer_than_what_the_model_reads() -> None:
    drawn = draw(parse("gptq-int4"), tiny_tokenizer(), None, context=64)
    assert drawn is not None
    assert drawn.ids.shape[1] == 64


def test_the_calibration_is_part_of_the_precisions_name() -> None:
    assert parse("gptq-int4@retain").calibration == "retain"
    assert parse("gptq-int4@retain").name == "gptq-int4@retain"
    assert parse("gptq-int4@generic") == PRECISIONS["gptq-int4"]
    with pytest.raises(InvalidRequest, match="takes no calibration texts"):
        parse("rtn-int4@retain")
    with pytest.raises(InvalidRequest, match="generic, retain, forget, file"):
        parse("gptq-int4@wikitext")


def test_numbers_do_not_depend_on_what_ran_before(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES", {"gptq": 4, "awq": 2})
    bundle = parse_bundle(bundle_files(3))
    names = ("gptq-int4-g32", "awq-int4-g32@forget", "full", "mxfp4", "rtn-int4", "gguf-q4_0", "bnb-nf4", "nvfp4")

    def scores(name: str) -> dict[str, object]:
        return evaluate(llama, name, bundle, metrics=("privleak", "verbmem")).model_dump(exclude={"seconds"})

    first = {name: scores(name) for name in names}
    assert {name: scores(name) for name in reversed(names)} == first
    report = first["awq-int4-g32@forget"]["precision"]
    assert isinstance(report, dict)
    assert report["name"] == "awq-int4-g32@forget"
    assert report["library"] == "llmcompressor"
    assert report["parameters"]["calibration"] == "forget"


def test_a_gpt2_is_quantized_from_its_files(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES", {"gptq": 4, "awq": 2})
    path = tiny_checkpoint(tmp_path / "gpt2", "gpt2")
    found = evaluate(path, "gptq-int4-channel", bundle, metrics=("privleak",))
    assert found.census is not None
    assert len(found.census.modules) == 8
