"""The forget set: a bundle in MUSE's own folder layout, parsed, checked, and addressed by its content.

    knowmem/forget_qa, forget_qa_icl, retain_qa, retain_qa_icl    [{"question", "answer"}]; forget_qa and retain_qa may
                                                                  have "perturbed_answer": ["wrong answer", ...]
    verbmem/forget                                                [{"prompt", "gt"}]
    privleak/forget, holdout, retain                              ["text"] or [{"text"}]
    raw/forget, retain                                            ["text"] or [{"text"}], or one .txt
    bundle.json (optional)                                        {"name", "auc_retrained"}

Each `.json` (a list) or `.jsonl`. A missing file makes its metric unavailable; a malformed one is refused. In MUSE's
own folders raw/retain1 is raw/retain (what unlearning keeps, and what `@retain` calibrates on); `layout` says what else
they hold and why it is ignored. Source of the layout: load_data.py of github.com/swj0419/muse_bench, which fetches
MUSE-News and MUSE-Books: BOOKS' raw texts are whole books (four to forget), and only NEWS has scal/ and sust/.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from app import canonical
from app.catalog.metrics import METRICS, MetricId
from app.errors import ForgetSetRefused
from app.evidence.evaluation import ForgetSetInfo
from app.forget_sets import copies, items, passages
from app.forget_sets.items import PERTURBED, PERTURBED_FIELD, QA, Passage
from app.forget_sets.layout import CONSTANTS, SETS, arrange, read_items, read_object, refused


@dataclass(frozen=True)
class Bundle:
    """A forget set. Empty tuples stand for missing files."""

    forget_qa: tuple[QA, ...] = ()
    forget_qa_icl: tuple[QA, ...] = ()
    retain_qa: tuple[QA, ...] = ()
    retain_qa_icl: tuple[QA, ...] = ()
    verbmem: tuple[Passage, ...] = ()
    privleak_forget: tuple[str, ...] = ()
    privleak_holdout: tuple[str, ...] = ()
    privleak_retain: tuple[str, ...] = ()
    raw_forget: tuple[str, ...] = ()
    raw_retain: tuple[str, ...] = ()
    verbmem_derived: bool = False
    """Whether `verbmem` was cut from `raw_forget` because no verbmem/forget was given."""
    auc_retrained: float | None = None
    """AUC (Min-40%) of a model that never saw the forget set: MUSE's constants are 0.4772 (NEWS) and 0.5393 (BOOKS)."""
    name: str | None = None
    """A label; not part of the digest."""
    ignored: tuple[str, ...] = ()
    """Files that were given but not read, because MUSE's own bundles have them; not part of the digest."""

    @cached_property
    def digest(self) -> str:
        """`sha256:…` over the parsed content: the same for JSON and JSONL, and for any formatting or field order."""
        content = {key: value for key, value in asdict(self).items() if key not in ("name", "ignored")}
        for item in (item for name in SETS if name.startswith("knowmem/") for item in content[_FIELDS[name]]):
            # Keeps the digests of forget sets that were stored before perturbed answers existed.
            if not item["perturbed"]:
                del item["perturbed"]
        return canonical.digest_by_python(content)

    def items(self, name: str) -> Sequence[QA] | Sequence[Passage] | Sequence[str]:
        """The items of a set by its name in the layout, e.g. `knowmem/forget_qa`."""
        found: Sequence[QA] | Sequence[Passage] | Sequence[str] = getattr(self, _FIELDS[name])
        return found

    @property
    def unavailable(self) -> dict[MetricId, str]:
        """Metric -> why it cannot be measured on this bundle."""
        reasons: dict[MetricId, str] = {}
        for metric in METRICS:
            missing = [f"{name}.json" for name in METRICS[metric].needs if not self.items(name)]
            if missing:
                reasons[metric] = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or empty"
        return reasons

    @cached_property
    def duplicates(self) -> dict[str, list[int]]:
        """Set -> indices of the items that no metric counts, because they repeat others (`ForgetSetInfo.duplicates`).

        A question with an answer is compared by its question alone, a passage by its prompt and continuation together.
        """
        questions = {f"knowmem/{name}": _questions(getattr(self, name)) for name in ("forget_qa", "retain_qa")}
        found = {
            name: copies.repeats(asked, _questions(getattr(self, f"{name.removeprefix('knowmem/')}_icl")))
            for name, asked in questions.items()
        }
        found["verbmem/forget"] = copies.repeats([f"{item.prompt} {item.continuation}" for item in self.verbmem])
        found["privleak/forget"] = copies.repeats(self.privleak_forget)
        found["privleak/holdout"] = copies.repeats(self.privleak_holdout, self.privleak_forget)
        return {name: indices for name, indices in found.items() if indices}

    def info(self) -> ForgetSetInfo:
        """Counts and digests, no content."""
        return ForgetSetInfo(
            digest=self.digest,
            counts={name: len(self.items(name)) for name in SETS if self.items(name)} | self._perturbed,
            unavailable={str(metric): reason for metric, reason in self.unavailable.items()},
            derived=dict.fromkeys(("verbmem", "verbmem_sampled"), passages.HOW) if self.verbmem_derived else {},
            duplicates=self.duplicates,
            auc_retrained=self.auc_retrained,
            ignored=list(self.ignored),
        )

    @property
    def _perturbed(self) -> dict[str, int]:
        """`knowmem/forget_qa.perturbed_answer` and its like -> how many items have some; only where any does."""
        found = {name: sum(bool(item.perturbed) for item in getattr(self, _FIELDS[name])) for name in PERTURBED}
        return {f"{name}.{PERTURBED_FIELD}": count for name, count in found.items() if count}


def _questions(items: Sequence[QA]) -> list[str]:
    return [item.question for item in items]


_FIELDS = {
    **{name: name.removeprefix("knowmem/") for name in SETS if name.startswith("knowmem/")},
    **{name: name.replace("/", "_") for name in SETS if name.startswith(("privleak/", "raw/"))},
    "verbmem/forget": "verbmem",
}


def parse(files: Mapping[str, bytes]) -> Bundle:
    """Parse and check the files of a bundle.

    Args:
        files: Relative POSIX path -> content. Everything may be below one extra top folder, as in uploads. The content
            of ignored files is not read.

    Raises:
        ForgetSetRefused: `forget_set_malformed`, `forget_set_not_utf8` (both naming file, line and field),
            `forget_set_unknown_file`, or `forget_set_empty` when no metric can be measured on what is there.
    """
    sets: dict[str, tuple[QA, ...] | tuple[Passage, ...] | tuple[str, ...]] = {}
    auc, label = None, None
    arranged = arrange(list(files))
    for given, file in arranged.files.items():
        if file.name == CONSTANTS:
            auc, label = items.constants(file.name, read_object(file.name, files[given]))
        else:
            name = file.name.rpartition(".")[0]
            sets[_FIELDS[name]] = items.read(name, file.shown, read_items(file.shown, files[given]))
    ignored = tuple(arranged.ignored.values())
    bundle = Bundle(**sets, auc_retrained=auc, name=label, ignored=ignored)  # type: ignore[arg-type]
    if not bundle.verbmem and bundle.raw_forget:
        derived = tuple(Passage(*pair) for pair in passages.cut(bundle.raw_forget))
        bundle = replace(bundle, verbmem=derived, verbmem_derived=bool(derived))
    if len(bundle.unavailable) == len(METRICS):
        reasons = "; ".join(f"{metric}: {reason}" for metric, reason in bundle.unavailable.items())
        raise ForgetSetRefused("forget_set_empty", f"no metric can be measured on this forget set ({reasons})")
    return bundle


def read_directory(path: Path, roots: Sequence[Path] | None = None) -> dict[str, bytes]:
    """The files of a bundle directory, as `parse` takes them. Names are checked before anything is read. Ignored files
    are not read: their content is empty here.

    Args:
        path: The bundle's directory.
        roots: When given, the real path of every file must lie below one of these folders.

    Raises:
        ForgetSetRefused: `forget_set_missing`, `forget_set_outside_roots`, `forget_set_unknown_file`,
            `forget_set_malformed` for what is not a regular file.
    """
    allowed = None if roots is None else [os.path.realpath(root) for root in roots]

    def check(file: Path) -> None:
        real = Path(os.path.realpath(file))
        if allowed is not None and not any(real.is_relative_to(root) for root in allowed):
            raise ForgetSetRefused(
                "forget_set_outside_roots",
                f"{file} is not below an allowed folder ({', '.join(allowed) or 'none is allowed'})",
            )

    if "\0" in str(path):
        raise ForgetSetRefused("forget_set_missing", "a path cannot contain a NUL character")
    check(path)
    if not path.is_dir():
        raise ForgetSetRefused("forget_set_missing", f"{path} is not a directory")
    found: dict[str, bytes] = {}
    try:
        names = sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*") if not entry.is_dir())
        arranged = arrange(names)
        for name, file in arranged.files.items():
            check(path / name)
            if (path / name).exists() and not (path / name).is_file():
                # Opening a FIFO would block forever.
                raise refused("forget_set_malformed", "is not a regular file", file=file.shown)
            found[name] = (path / name).read_bytes()
        found |= dict.fromkeys(arranged.ignored, b"")
    except OSError as error:
        raise ForgetSetRefused("forget_set_missing", f"{error.filename} cannot be read: {error.strerror}") from error
    return found
