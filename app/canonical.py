"""JSON in one form, and digests as they are written everywhere: `sha256:` and 64 hex digits."""

import hashlib
import json
from typing import Any

import rfc8785


def dumps(content: Any) -> bytes:
    """RFC 8785 canonical JSON.

    Raises:
        rfc8785.CanonicalizationError: for what it cannot hold (NaN, integers beyond 2^53, lone surrogates).
    """
    return rfc8785.dumps(content)


def sha256(data: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest(content: Any) -> str:
    """The digest of JSON content: SHA-256 over its RFC 8785 form."""
    return sha256(dumps(content))


def digest_by_python(content: Any) -> str:
    """The digest of JSON content with sorted keys and with floats as Python writes them: 1.0 where RFC 8785 has 1.

    Forget sets and the bodies of requests are stored under such digests, which must stay what they are.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode())
