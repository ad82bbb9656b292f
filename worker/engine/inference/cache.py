"""Keys and values of a batch in storage that is allocated once, where transformers' own cache is copied at every token.

Rows are right-aligned: whatever follows is written in the same columns for all of them. The columns to the left of a
row's first token hold zeros, and are masked.
"""

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def is_attention_only(model: PreTrainedModel) -> bool:
    """Whether keys and values are all that the model keeps of the tokens before, so that this cache can hold them."""
    own = DynamicCache(config=model.config)
    layers = getattr(own, "layers", [])
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class RowCache(Cache):
    """A batch's keys and values; layers join as the model reaches them."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        self.rows, self.columns = rows, columns

    @property
    def own(self) -> "list[_Layer]":
        """The layers."""
        return cast("list[_Layer]", self.layers)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write new columns; returns all so far, as views."""
        while len(self.layers) <= layer_idx:
            self.layers.append(_Layer(self.rows, self.columns))
        return self.own[layer_idx].update(key_states, value_states)

    @classmethod
    def after(cls, beginning: "RowCache", rows: int, columns: int) -> "RowCache":
        """A cache all of whose rows begin with the only row of another."""
        made = cls(rows, columns)
        for theirs in beginning.own:
            made.layers.append(_Layer(rows, columns))
            made.own[-1].begin(theirs)
        return made

    def put(self, row: int, other: "RowCache", other_row: int, tokens: int, end: int) -> None:
        """Copy a row's first tokens from another cache, to end before a column."""
        for place, theirs in enumerate(other.own):
            if len(self.layers) <= place:
                self.layers.append(_Layer(self.rows, self.columns))
            self.own[place].put(row, theirs, other_row, tokens, end)

    def cut(self, columns: int) -> None:
        """Forget all but the first columns."""
        for layer in self.own:
            layer.length = columns

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self.rows = len(rows)
        for layer in self.own:
            layer.keep(rows)


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's storage: [rows, heads, columns, size of a head]."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.columns, self.length = rows, columns, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_empty(self.rows, states.shape[1], self.columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def put(self, row: int, other: "_Layer", other_row: int, tokens: int, end: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
        for own, theirs in ((self.keys, other.keys), (self.values, other.values)):
            # Zeros before it, not whatever was there: what is masked has no weight, but nothing times a NaN is a NaN.
            own[row, :, : end - tokens] = 0
            own[row, :, end - tokens : end] = theirs[other_row, :, :tokens]
        self.length = max(self.length, end)

    def begin(self, other: "_Layer") -> None:
        """Begin every row with all of the only row of another cache."""
        self.lazy_initialization(other.keys, other.values)
        self.length = other.length
        self.keys[:, :, : self.length] = other.keys[:, :, : self.length]
        self.values[:, :, : self.length] = other.values[:, :, : self.length]

    def keep(self, rows: Tensor) -> None:
        for name in ("keys", "values"):
            before = getattr(self, name)
            after = before.new_empty(len(rows), *before.shape[1:])
            after[:, :, : self.length] = before[rows, :, : self.length]
            setattr(self, name, after)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1
