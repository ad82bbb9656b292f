"""Checkpoints as requests and responses show them."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.evidence.quantization import Quantization
from app.http.request_types import Name, Reference, RequestModel


class NewCheckpoint(RequestModel):
    """A checkpoint to register."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"uri": "/models/llama-2-7b-news-npo", "name": "NPO, retain 0.1"}]}
    )

    uri: Reference = Field(description="An absolute path or a file:// URI below one of the service's allowed folders.")
    name: Name | None = Field(default=None, description="The folder's name when left out.")


class CheckpointOut(BaseModel):
    """A registered checkpoint."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11",
                    "name": "NPO, retain 0.1",
                    "uri": "/models/llama-2-7b-news-npo",
                    "digest": "sha256:9f2feb0f1ef425b292f2f94bc8e6b1a2bd2ba0a4b5ab7b5a1f0f5c7e4d5a0c11",
                    "tensors": "sha256:0b1f3c0f6b6e1f0a3f7d1a2d4f6c8e9b7a5c3d1e2f4a6b8c0d2e4f6a8b0c2d4e",
                    "architecture": "LlamaForCausalLM",
                    "parameters": 6738415616,
                    "dtype": "BF16",
                    "quantization": None,
                    "created_at": "2026-03-02T09:30:00Z",
                }
            ]
        },
    )

    id: str
    name: str
    uri: str = Field(description="The real path of its directory.")
    digest: str = Field(description="Identifies it, wherever it is: SHA-256 over its tensors, config and tokenizer.")
    tensors: str | None = Field(
        description="SHA-256 over its tensors alone, however they are cut into files; null in rows of earlier versions."
    )
    architecture: str
    parameters: int
    dtype: str = Field(description="The dtype of the stored weights.")
    quantization: Quantization | None = Field(description="How it is quantized already; null when it is not.")
    created_at: datetime


class CheckpointRef(BaseModel):
    """A checkpoint of an audit or diagnosis."""

    id: str
    name: str
    uri: str
    digest: str
