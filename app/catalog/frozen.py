"""The base of all plain data: immutable and strict."""

from pydantic import BaseModel, ConfigDict

Scalar = str | int | float | bool | None


class Frozen(BaseModel):
    """Immutable, and refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
