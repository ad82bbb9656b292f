"""VerbMem items from raw text alone: passages cut into a prompt and its continuation.

Passages are cut by characters, because there is no tokenizer here and the same items must serve every model. A prompt
of 1,200 characters is about 280 English tokens, a continuation of 800 about 190: more than the 128 that VerbMem
generates.
"""

from collections.abc import Iterator, Sequence

PROMPT = 1200
CONTINUATION = 800
SHORTEST = 200
MOST = 100
_REACH = 40

HOW = (
    f"passages of {PROMPT} + {CONTINUATION} characters (prompt + continuation) cut at word ends from raw/forget"
    f" in order; a shorter rest of at least {SHORTEST} is cut in the same proportion; at most {MOST}, spread evenly"
)


def cut(documents: Sequence[str]) -> list[tuple[str, str]]:
    """(prompt, continuation) pairs, at most `MOST`, spread evenly over the documents. Deterministic."""
    passages = [passage for document in documents for passage in _passages(document)]
    if len(passages) <= MOST:
        return passages
    return [passages[i * len(passages) // MOST] for i in range(MOST)]


def _passages(document: str) -> Iterator[tuple[str, str]]:
    text = document.strip()
    at = 0
    while len(text) - at >= SHORTEST:
        length = min(PROMPT + CONTINUATION, len(text) - at)
        end = _word_end(text, at + length)
        middle = _word_end(text, at + length * PROMPT // (PROMPT + CONTINUATION))
        prompt, continuation = text[at:middle].strip(), text[middle:end].strip()
        if prompt and continuation:
            yield prompt, continuation
        at = end


def _word_end(text: str, at: int) -> int:
    """The end of the word around `at`, or `at` itself where words are longer than any (scripts without spaces)."""
    for end in range(at, min(at + _REACH, len(text)) + 1):
        if end == len(text) or text[end].isspace():
            return end
    return at
