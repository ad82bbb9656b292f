"""Items that repeat others: a question asked eight times is one question, and counts as one.

Two texts are the same when they are equal once NFKC-normalised, case-folded and stripped of all but letters and digits;
nearly the same when the Jaccard index of their sets of words is at least 0.9. In MUSE-News the nearest distinct items
have 0.81 (passages) and 0.75 (questions), in the demo's formulaic questions 0.82.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_array

SHORTEST = 8
"""A text with fewer words is never nearly the same as another: one differing word would be a tenth or more of it."""
_WORD = re.compile(r"[^\W_]+")
_AT_ONCE = 256
"""How many texts are compared at once with all before them."""


def repeats(texts: Sequence[str], others: Iterable[str] = ()) -> list[int]:
    """The indices of the texts that repeat, or nearly repeat, an earlier one or one of `others`."""
    known = list(others)
    words = [_words(text) for text in (*known, *texts)]
    first: dict[str, int] = {}
    for index, (text, found) in enumerate(zip((*known, *texts), words, strict=True)):
        first.setdefault("".join(found) or text.strip(), index)
    distinct = sorted(first.values())
    long = [index for index in distinct if len(words[index]) >= SHORTEST]
    near = {long[at] for at in _near([set(words[index]) for index in long])}
    kept = set(distinct) - near
    return [index for index in range(len(texts)) if len(known) + index not in kept]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _near(sets: Sequence[set[str]]) -> set[int]:
    """The indices of the sets whose Jaccard index with an earlier one is at least 0.9."""
    columns: dict[str, int] = {}
    places = [[columns.setdefault(word, len(columns)) for word in words] for words in sets]
    sizes = np.array([len(words) for words in sets], dtype=np.int64)
    indices = np.array([place for row in places for place in row], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_array((np.ones(len(indices), dtype=np.int64), indices, starts), shape=(len(sets), len(columns)))
    found: set[int] = set()
    for start in range(0, len(sets), _AT_ONCE):
        stop = start + _AT_ONCE
        shared = (matrix[start:stop] @ matrix[:stop].T).tocoo()
        rows, earlier = shared.row + start, shared.col
        union = sizes[rows] + sizes[earlier] - shared.data
        found.update(rows[(earlier < rows) & (10 * shared.data >= 9 * union)].tolist())
    return found
