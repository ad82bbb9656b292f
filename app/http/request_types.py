"""Kinds of text that requests carry."""

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Reference = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096, pattern=r"^[^\x00]*$")
]
Id = Annotated[str, Path(max_length=100, pattern="^[0-9A-Za-z-]+$", examples=["01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"])]


class RequestModel(BaseModel):
    """A request body that refuses unknown fields, so that a misspelt field is not silently ignored."""

    model_config = ConfigDict(extra="forbid")
