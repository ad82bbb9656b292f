"""Forget sets in MUSE's layout: what is read, what is missing, and where exactly it is malformed."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from app.errors import ForgetSetRefused
from app.forget_sets.bundle import Bundle, parse, read_directory
from app.forget_sets.items import QA, Passage
from app.forget_sets.passages import CONTINUATION, MOST, PROMPT, cut
from tests.support.factories import bundle_content, bundle_files, muse_files, muse_folder, sentences, tiny_bundle
from tests.support.places import MUSE_NEWS


def refusal(files: dict[str, bytes]) -> ForgetSetRefused:
    with pytest.raises(ForgetSetRefused) as refused:
        parse(files)
    return refused.value


def place(files: dict[str, bytes]) -> tuple[str, str | None, int | None, str | None]:
    """(code, file, line, field) of the refusal; the sentence names them too."""
    error = refusal(files)
    assert error.errors
    problem = error.errors[0]
    assert problem.file is not None
    assert problem.file in error.detail
    assert problem.line is None or f"line {problem.line}" in error.detail
    assert problem.field is None or repr(problem.field) in error.detail
    return error.code, problem.file, problem.line, problem.field


def test_every_set_is_read() -> None:
    bundle, content = parse(bundle_files(3)), bundle_content(3)
    assert bundle.forget_qa == tuple(QA(**item) for item in content["knowmem/forget_qa"])
    assert bundle.verbmem == tuple(Passage(item["prompt"], item["gt"]) for item in content["verbmem/forget"])
    assert bundle.privleak_holdout == tuple(content["privleak/holdout"])
    assert bundle.raw_forget == tuple(content["raw/forget"])
    assert bundle.unavailable == {}
    info = bundle.info()
    assert info.counts["knowmem/forget_qa"] == 3
    assert info.counts["knowmem/forget_qa_icl"] == 2
    assert "raw/retain" not in info.counts
    assert info.derived == {}
    with pytest.raises(FrozenInstanceError):
        bundle.name = "other"  # type: ignore[misc]  # it is frozen


def test_the_digest_is_of_the_content_not_of_its_form() -> None:
    digest = parse(bundle_files(3)).digest
    assert digest.startswith("sha256:")
    assert parse(bundle_files(3, jsonl=True)).digest == digest
    assert parse({name: b"\xef\xbb\xbf" + content for name, content in bundle_files(3).items()}).digest == digest
    content = bundle_content(3)
    reordered = {
        f"{name}.json": json.dumps(
            [dict(reversed(item.items())) | {"id": 7} if isinstance(item, dict) else {"text": item} for item in items],
            ensure_ascii=False,
            indent=4,
        ).encode()
        for name, items in content.items()
    }
    assert parse(reordered).digest == digest
    assert parse(bundle_files(3) | {"bundle.json": b'{"name": "a label"}'}).digest == digest
    assert parse(bundle_files(3) | {"bundle.json": b'{"auc_retrained": 0.5}'}).digest != digest
    assert parse(bundle_files(3, seed=1)).digest != digest
    assert parse(bundle_files(4)).digest != digest


def test_a_bundle_without_perturbed_answers_keeps_the_digest_that_it_was_stored_under() -> None:
    assert parse(bundle_files(2)).digest == "sha256:56facab788d6285120c1307bf3fa3a1c42650fd2acbf7d63ab494f6d453e73db"
    pair = {
        "knowmem/forget_qa.json": b'[{"question": "Who?", "answer": "Edda"}]',
        "knowmem/forget_qa_icl.json": b'[{"question": "When?", "answer": "1472"}]',
    }
    assert parse(pair).digest == "sha256:4fa149a27bebe26c5e2f4e38213d018427196e0514e2833566fe9d63a8fe84dd"


def perturbed(answers: object, name: str = "knowmem/forget_qa", at: int = 1) -> dict[str, bytes]:
    """A bundle in which one item has these perturbed answers."""
    items = bundle_content(3)[name]
    items[at] |= {"perturbed_answer": answers}
    return bundle_files(3) | {f"{name}.json": json.dumps(items, indent=1).encode()}


def test_perturbed_answers_are_read_counted_and_part_of_the_digest() -> None:
    bundle = parse(perturbed(["Edda of Nordby", "Falk"]))
    assert [item.perturbed for item in bundle.forget_qa] == [(), ("Edda of Nordby", "Falk"), ()]
    assert bundle.info().counts["knowmem/forget_qa.perturbed_answer"] == 1
    assert "knowmem/retain_qa.perturbed_answer" not in bundle.info().counts
    retain = parse(perturbed(["Falk"], "knowmem/retain_qa"))
    assert retain.retain_qa[1].perturbed == ("Falk",)
    assert retain.info().counts["knowmem/retain_qa.perturbed_answer"] == 1
    others = [perturbed(["Falk"]), perturbed(["Falk", "Edda of Nordby"]), perturbed(["Falk"], at=0), bundle_files(3)]
    assert len({bundle.digest, retain.digest, *(parse(files).digest for files in others)}) == 6
    shown = parse(perturbed(["Falk"], "knowmem/forget_qa_icl"))
    assert shown.digest == parse(bundle_files(3)).digest, "few-shot examples have no use for them"


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ("Falk", "perturbed_answer"),
        ([], "perturbed_answer"),
        (None, "perturbed_answer"),
        (["Falk", 3], "perturbed_answer[1]"),
        (["Falk", " \n"], "perturbed_answer[1]"),
        (["\ud800"], "perturbed_answer[0]"),
    ],
)
@pytest.mark.parametrize("name", ["knowmem/forget_qa", "knowmem/retain_qa"])
def test_malformed_perturbed_answers_are_refused_with_their_place(answers: object, field: str, name: str) -> None:
    files = perturbed(answers, name)
    line = 1 + files[f"{name}.json"].decode().split('"perturbed_answer"')[0].rpartition("{")[0].count("\n")
    assert place(files) == ("forget_set_malformed", f"{name}.json", line, field)


def test_directories_and_uploads_below_an_extra_folder_are_the_same(tmp_path: Path) -> None:
    files = bundle_files(2)
    tiny_bundle(tmp_path, 2)
    for noise in ("README.md", "LICENSE", ".gitattributes", "knowmem/.cache.json", ".git/config"):
        (tmp_path / noise).parent.mkdir(exist_ok=True)
        (tmp_path / noise).write_text("noise")
    digest = parse(files).digest
    assert parse(read_directory(tmp_path)).digest == digest
    assert parse({f"muse/{name}": content for name, content in files.items()}).digest == digest
    assert parse({f"./a/b/{name}": content for name, content in files.items()}).digest == digest
    assert parse({f"muse\\{name}".replace("/", "\\"): content for name, content in files.items()}).digest == digest
    assert (
        parse({f"muse/{n}": c for n, c in files.items()} | {"__MACOSX/._x": b"", "muse/README": b""}).digest == digest
    )


@pytest.mark.parametrize(
    ("missing", "metric"),
    [
        ("verbmem/forget", "verbmem"),
        ("knowmem/forget_qa", "knowmem_forget"),
        ("knowmem/forget_qa_icl", "knowmem_forget"),
        ("knowmem/retain_qa", "knowmem_retain"),
        ("privleak/forget", "privleak"),
        ("privleak/holdout", "privleak"),
    ],
)
def test_a_missing_or_empty_file_makes_its_metric_unavailable(missing: str, metric: str) -> None:
    files = bundle_files(2)
    del files["raw/forget.json"]
    for variant in ({k: v for k, v in files.items() if k != f"{missing}.json"}, files | {f"{missing}.json": b"[]"}):
        bundle = parse(variant)
        assert list(bundle.unavailable) == [metric, *(["verbmem_sampled"] if metric == "verbmem" else [])]
        assert f"{missing}.json" in bundle.info().unavailable[metric]


def test_privleak_needs_no_retain_texts() -> None:
    files = bundle_files(2)
    del files["privleak/retain.json"]
    assert parse(files).unavailable == {}


def test_nothing_usable_is_refused() -> None:
    assert refusal({}).code == "forget_set_empty"
    assert refusal({"README.md": b"hello"}).code == "forget_set_empty"
    assert refusal({"verbmem/forget.json": b" [ ] "}).code == "forget_set_empty"
    assert refusal({"knowmem/forget_qa.json": bundle_files(1)["knowmem/forget_qa.json"]}).code == "forget_set_empty"
    assert refusal({"raw/retain.txt": b"only what is kept"}).code == "forget_set_empty"


VERBMEM = "verbmem/forget.json"
GOOD = b'{"prompt": "a",\n "gt": "b"}'


@pytest.mark.parametrize(
    ("content", "line", "field"),
    [
        (b"", 1, None),
        (b"\n\n{}", 3, None),
        (b"[" + GOOD + b",\n" + GOOD, 4, None),
        (b"[" + GOOD + b"\n\n" + GOOD + b"]", 4, None),
        (b"[" + GOOD + b",]", 2, None),
        (b"[" + GOOD + b"] []", 2, None),
        (b'[\n{"prompt"\n: }]', 3, None),
        (b"[" + GOOD + b',\n"text"]', 3, None),
        (b"[" + GOOD + b",\n\n7]", 4, None),
        (b"[" + GOOD + b',\n{"prompt": "a"}]', 3, "gt"),
        (b'[{"prompt": null, "gt": "b"}]', 1, "prompt"),
        (b'[{"prompt": ["a"], "gt": "b"}]', 1, "prompt"),
        (b'[{"prompt": "a",\n"gt": 3}]', 1, "gt"),
        (b'[\n{"prompt": "a", "gt": ""}]', 2, "gt"),
        (b'[\n{"prompt": " \\n\\t\\u00a0", "gt": "b"}]', 2, "prompt"),
        (b'[{"prompt": "\\ud83d", "gt": "b"}]', 1, "prompt"),
        (b"[" * 200_000, 1, None),
        (b"[" + b"9" * 5000 + b"]", 1, None),
        (b"[NaN]", 1, None),
    ],
)
def test_malformed_json_is_refused_with_its_place(content: bytes, line: int, field: str | None) -> None:
    assert place({VERBMEM: content}) == ("forget_set_malformed", VERBMEM, line, field)


def test_malformed_jsonl_is_refused_with_its_line() -> None:
    name = "knowmem/forget_qa.jsonl"
    good = b'{"question": "q", "answer": "a"}\n'
    for content, line, field in (
        (good + b"\n" + b'{"question": "q"}\n', 3, "answer"),
        (good + b"{oops}\n", 2, None),
        (good + good.strip() + good, 2, None),
        (b'[{"question": "q", "answer": "a"}]', 1, None),
    ):
        assert place({name: content}) == ("forget_set_malformed", name, line, field)
    with_separators = '{"question": "q\u2028r", "answer": "a\u0085b"}\r\n'.encode()
    files = {name: with_separators * 2, "knowmem/forget_qa_icl.jsonl": good}
    assert parse(files).forget_qa == (QA("q\u2028r", "a\u0085b"),) * 2


def test_text_that_is_not_utf8_is_refused_with_its_line() -> None:
    assert place({VERBMEM: b'[\n{"prompt": "caf\xe9", "gt": "b"}]'}) == ("forget_set_not_utf8", VERBMEM, 2, None)
    utf16 = json.dumps([{"prompt": "a", "gt": "b"}]).encode("utf-16")
    assert place({VERBMEM: utf16})[0] == "forget_set_not_utf8"
    assert place({"raw/forget.txt": b"one\ntwo \xff"}) == ("forget_set_not_utf8", "raw/forget.txt", 2, None)


def test_unknown_files_are_refused_naming_the_accepted_ones() -> None:
    for name in ("knowmem/forget-qa.json", "verbmem/retain.json", "notes.json", "privleak/other.txt", "a/b/c.parquet"):
        error = refusal(bundle_files(1) | {name: b"[]"})
        assert error.code == "forget_set_unknown_file"
        assert name in error.detail
        assert "knowmem/forget_qa_icl.json" in error.detail
    assert refusal({"../knowmem/forget_qa.json": b"[]", "raw/forget.json": b"[]"}).code == "forget_set_unknown_file"


def test_a_set_given_twice_is_refused() -> None:
    files = bundle_files(1)
    error = refusal(files | {"verbmem/forget.jsonl": b""})
    assert error.code == "forget_set_malformed"
    assert "given twice" in error.detail


def test_constants_of_a_corpus_travel_in_bundle_json() -> None:
    bundle = parse(bundle_files(1) | {"bundle.json": b'{"auc_retrained": 0.4772, "name": "MUSE-News"}'})
    assert (bundle.auc_retrained, bundle.name) == (0.4772, "MUSE-News")
    assert bundle.info().auc_retrained == 0.4772
    for content, field in (
        (b'{"auc_retrained": "0.5"}', "auc_retrained"),
        (b'{"auc_retrained": 0}', "auc_retrained"),
        (b'{"auc_retrained": true}', "auc_retrained"),
        (b'{"auc_retrained": NaN}', "auc_retrained"),
        (b'{"name": 3}', "name"),
        (b'{"auc": 0.5}', "auc"),
        (b"[]", None),
        (b"{} {}", None),
        (b"", None),
    ):
        found = place(bundle_files(1) | {"bundle.json": content})
        assert (found[0], found[1], found[3]) == ("forget_set_malformed", "bundle.json", field)


def test_raw_text_comes_as_lists_objects_or_plain_text_and_blank_documents_are_left_out() -> None:
    texts = ["one " * 80, "", "  \n", "two " * 80]
    for files in (
        {"raw/forget.json": json.dumps(texts).encode()},
        {"raw/forget.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()},
    ):
        assert parse(files).raw_forget == (texts[0], texts[3])
    assert parse({"raw/forget.txt": ("one " * 80).encode()}).raw_forget == (texts[0],)


def test_verbmem_is_derived_from_raw_text_alone_and_says_so() -> None:
    documents = [" ".join(sentences(n, seed=n)) for n in (1, 6, 20, 120)]
    bundle = parse({"raw/forget.json": json.dumps(documents).encode()})
    assert bundle.verbmem_derived
    assert "1200 + 800 characters" in bundle.info().derived["verbmem"]
    assert set(bundle.unavailable) == {"knowmem_forget", "knowmem_retain", "privleak"}
    for passage in bundle.verbmem:
        assert any(" ".join((passage.prompt, passage.continuation)) in document for document in documents)
        assert len(passage.prompt) <= PROMPT + 40
        assert len(passage.continuation) <= CONTINUATION + 40
    assert bundle.verbmem[0].prompt == documents[1][: len(bundle.verbmem[0].prompt)]
    given = parse(bundle_files(2))
    assert not given.verbmem_derived
    assert Bundle(raw_forget=tuple(documents)).digest != bundle.digest


def test_passages_are_spread_over_all_documents_and_the_same_every_time() -> None:
    documents = [" ".join(sentences(20, seed=n)) for n in range(300)]
    passages = cut(documents)
    assert len(passages) == MOST
    assert cut(documents) == passages
    assert passages[-1][0] in documents[-3] + documents[-2] + documents[-1]
    assert cut(["short"]) == []
    unbroken = cut(["字" * 3000])
    assert [len(a) + len(b) for a, b in unbroken] == [2000, 1000]


def test_a_directory_is_read_within_its_roots_only(tmp_path: Path) -> None:
    def code(path: Path, roots: list[Path] | None = None) -> str:
        with pytest.raises(ForgetSetRefused) as refused:
            read_directory(path, roots)
        return refused.value.code

    root = tmp_path / "root"
    folder = tiny_bundle(root / "set", 1)
    assert parse(read_directory(folder, [root]))
    assert code(folder, [tmp_path / "other"]) == "forget_set_outside_roots"
    assert code(folder, []) == "forget_set_outside_roots"
    assert code(root / "nowhere") == "forget_set_missing"
    assert code(folder / "raw" / "forget.json") == "forget_set_missing"
    assert code(Path("a\0b")) == "forget_set_missing"
    secret = tmp_path / "secret.json"
    secret.write_text("[]")
    (folder / "raw" / "retain.json").symlink_to(secret)
    assert code(folder, [root]) == "forget_set_outside_roots"
    (folder / "model.safetensors").write_bytes(b"x")
    assert code(folder) == "forget_set_unknown_file"


@pytest.mark.parametrize(("corpus", "files", "ignored"), [("news", 32, 22), ("books", 16, 6)])
def test_muses_folders_load_as_its_own_script_writes_them(
    corpus: str, files: int, ignored: int, tmp_path: Path
) -> None:
    written = muse_files(corpus)
    assert len(written) == files
    uploaded = parse({f"data/{corpus}/{name}": content for name, content in written.items()})
    read = read_directory(muse_folder(tmp_path, corpus))
    for bundle in (uploaded, parse(read)):
        assert bundle.unavailable == {}
        assert list(bundle.raw_forget) == json.loads(written["raw/forget.json"])
        assert list(bundle.raw_retain) == json.loads(written["raw/retain1.json"])
        info = bundle.info()
        assert info.counts["raw/retain"] == 4
        assert len(info.ignored) == ignored
        assert {"raw/retain2.json", "raw/holdout.txt", "raw/forget.txt", "raw/retain1.txt"} <= set(info.ignored)
        assert ("scal/forget_4.txt" in info.ignored) == (corpus == "news")
        assert set(info.ignored) < set(written)
    assert {name for name, content in read.items() if not content} == set(uploaded.ignored), "is not even read"
    used = {name: content for name, content in written.items() if name not in uploaded.ignored}
    assert parse(used).digest == uploaded.digest
    assert parse(used).info().ignored == []


def test_the_names_of_muses_first_edition_are_known_and_give_way_to_the_later_ones() -> None:
    later = bundle_files(2)
    names = {"knowmem/retain_qa": "knowmem/retain2_qa", "knowmem/retain_qa_icl": "knowmem/retain2_qa_icl"}
    names |= {"privleak/retain": "privleak/retain2"}
    first = {next((f"{new}.json" for old, new in names.items() if n == f"{old}.json"), n): c for n, c in later.items()}
    assert set(first) != set(later)
    assert parse(first).digest == parse(later).digest
    both = parse(later | {f"{new}.json": b"is not read" for new in names.values()})
    assert both.digest == parse(later).digest
    assert set(both.ignored) == {f"{new}.json" for new in names.values()}
    own = parse(later | {"raw/retain.jsonl": b'"mine"', "raw/retain1.json": b'["MUSE"]'})
    assert (own.raw_retain, own.ignored) == (("mine",), ("raw/retain1.json",))
    assert place(later | {"raw/retain1.json": b"["})[1] == "raw/retain1.json"


@pytest.mark.parametrize(
    "name",
    [
        "raw/retain3.json", "raw/holdouts.txt", "raw/forget2.json", "scal/forget.json", "scal/forget_5.json",
        "sust/retain_1.json", "train/forget.parquet", "train/holdout.json", "knowmem/retain1_qa.json",
        "knowmem/forget_qa.txt.json", "privleak/retain1.json", "scale/forget_1.json",
    ],
)  # fmt: skip
def test_a_name_that_nobody_knows_is_refused_beside_muses_too(name: str) -> None:
    error = refusal(muse_files("news") | {name: b"[]"})
    assert (error.code, name in error.detail) == ("forget_set_unknown_file", True)


def test_a_text_counts_where_no_json_holds_the_same() -> None:
    files = {name: content for name, content in muse_files("books").items() if name != "raw/forget.json"}
    assert parse(files).raw_forget == (files["raw/forget.txt"].decode(),)
    assert refusal(bundle_files(1) | {"verbmem/other.txt": b""}).code == "forget_set_unknown_file"
    assert parse(bundle_files(1) | {"verbmem/forget.txt": b"the same"}).ignored == ("verbmem/forget.txt",)


@pytest.mark.skipif(not MUSE_NEWS.exists(), reason="the real MUSE-News evaluation set is not on this machine")
def test_the_real_muse_news_set_loads_as_it_is() -> None:
    bundle = parse(read_directory(MUSE_NEWS))
    assert bundle.unavailable == {}
    assert bundle.info().counts == {
        "knowmem/forget_qa": 100,
        "knowmem/forget_qa_icl": 10,
        "knowmem/retain_qa": 100,
        "knowmem/retain_qa_icl": 10,
        "verbmem/forget": 100,
        "privleak/forget": 100,
        "privleak/holdout": 100,
        "privleak/retain": 100,
        "raw/forget": 888,
    }
    assert not bundle.verbmem_derived
    raw = {"raw/forget.json": (MUSE_NEWS / "raw" / "forget.json").read_bytes()}
    assert len(parse(raw).verbmem) == MOST
