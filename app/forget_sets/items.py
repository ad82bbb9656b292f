"""The items of a forget set's files, as they are written in the files and as they are used."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from app.errors import ForgetSetRefused
from app.forget_sets.layout import Item, refused

PERTURBED_FIELD = "perturbed_answer"
PERTURBED = ("knowmem/forget_qa", "knowmem/retain_qa")
"""The files whose items may have that field; elsewhere it is ignored, like any other that Lethe does not know."""


_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class QA:
    """A question and the answer that counts as knowing."""

    question: str
    answer: str
    perturbed: tuple[str, ...] = ()
    """Answers that look like the right one but are wrong (TOFU: `perturbed_answer`); only the truth ratio uses them."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt and the true continuation (MUSE: `gt`)."""

    prompt: str
    continuation: str


def _whole(text: str) -> str:
    if _SURROGATE.search(text):
        raise PydanticCustomError("surrogate", "holds half a surrogate pair (\\ud800 to \\udfff), which is not text")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "is blank")
    return text


_Whole = Annotated[str, AfterValidator(_whole)]
_Text = Annotated[_Whole, AfterValidator(_not_blank)]


class _Item(BaseModel):
    model_config = ConfigDict(strict=True)


class _Example(_Item):
    question: _Text
    answer: _Text


class _Question(_Example):
    perturbed_answer: list[_Text] = Field(default=[], min_length=1)


class _Continuation(_Item):
    prompt: _Text
    gt: _Text


class _Document(_Item):
    text: _Text


class _RawDocument(_Item):
    text: _Whole


class _Constants(_Item):
    model_config = ConfigDict(extra="forbid")

    auc_retrained: float | None = Field(default=None, gt=0, le=1)
    name: _Whole | None = None


_Form = TypeVar("_Form", bound=_Item)


def read(name: str, file: str, items: Iterable[Item]) -> tuple[QA, ...] | tuple[Passage, ...] | tuple[str, ...]:
    """The checked items of a file.

    Args:
        name: The file's name in the layout, e.g. `knowmem/forget_qa`.
        file: The name that it was given under.

    Raises:
        ForgetSetRefused: `forget_set_malformed`, with file, line and field.
    """
    if name in PERTURBED:
        asked = [_checked(_Question, item.value, file, item.line) for item in items]
        return tuple(QA(one.question, one.answer, tuple(one.perturbed_answer)) for one in asked)
    if name.startswith("knowmem/"):
        shown = [_checked(_Example, item.value, file, item.line) for item in items]
        return tuple(QA(one.question, one.answer) for one in shown)
    if name.startswith("verbmem/"):
        passages = [_checked(_Continuation, item.value, file, item.line) for item in items]
        return tuple(Passage(one.prompt, one.gt) for one in passages)
    # Blank raw documents are skipped, not refused: MUSE-News' own raw/forget.json has one.
    form: type[_Document | _RawDocument] = _RawDocument if name.startswith("raw/") else _Document
    texts = [_checked(form, _as_document(item.value), file, item.line).text for item in items]
    return tuple(text for text in texts if text.strip())


def constants(file: str, content: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """(AUC of a retrained model, label) from `bundle.json`.

    Raises:
        ForgetSetRefused: `forget_set_malformed`, with the field.
    """
    found = _checked(_Constants, content, file, None)
    return found.auc_retrained, found.name


def _as_document(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


def _checked(form: type[_Form], value: object, file: str, line: int | None) -> _Form:
    if not isinstance(value, dict):
        fields = " and ".join(name for name, field in form.model_fields.items() if field.is_required())
        raise refused("forget_set_malformed", f"expected an object with {fields}", file=file, line=line)
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise _refused(error, file, line) from error


def _refused(error: ValidationError, file: str, line: int | None) -> ForgetSetRefused:
    first = error.errors(include_url=False, include_input=False)[0]
    field, *places = map(str, first["loc"]) if first["loc"] else [""]
    message = first["msg"][:1].lower() + first["msg"][1:]
    name = field + "".join(f"[{place}]" for place in places)
    return refused("forget_set_malformed", message, file=file, line=line, field=name or None)
