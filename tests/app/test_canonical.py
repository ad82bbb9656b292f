"""Digests: the same content has the same one, and what rows are stored under stays what it was."""

import hashlib
import math

import pytest
import rfc8785

from app import canonical
from app.http import idempotency
from app.http.request_types import RequestModel

CONTENT = {"tensors": "ö\u2028\x7f\n", "metrics": ["verbmem", "privleak"], "seed": 0, "base": None, "own": True}


class Body(RequestModel):
    """A request."""

    margin: float = 1.0
    name: str = "ö"


def test_the_digest_of_bytes_names_its_algorithm() -> None:
    assert canonical.sha256(b"one") == f"sha256:{hashlib.sha256(b'one').hexdigest()}"


def test_the_order_of_fields_does_not_change_a_digest() -> None:
    other = dict(reversed(CONTENT.items()))
    assert canonical.digest(CONTENT) == canonical.digest(other)
    assert canonical.digest_by_python(CONTENT) == canonical.digest_by_python(other)


def test_only_floats_tell_the_two_forms_apart() -> None:
    assert canonical.digest_by_python(CONTENT) == canonical.digest(CONTENT)
    assert canonical.digest({"margin": 1.0}) == canonical.sha256(b'{"margin":1}')
    assert canonical.digest_by_python({"margin": 1.0}) == canonical.sha256(b'{"margin":1.0}')


def test_what_json_has_no_word_for_has_no_canonical_form() -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        canonical.dumps({"score": math.nan})


def test_a_request_has_the_digest_that_earlier_versions_stored_it_under() -> None:
    assert idempotency.digest(Body()) == canonical.sha256('{"margin":1.0,"name":"ö"}'.encode())
    assert idempotency.digest(Body(), audit="17") == canonical.sha256('{"audit":"17","margin":1.0,"name":"ö"}'.encode())
