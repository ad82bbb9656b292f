"""The settings of every process: environment variables `LETHE_*`."""

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/lethe`, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "lethe"


class Settings(BaseSettings):
    """The settings of API, worker and CLI; each field is an environment variable with the prefix `LETHE_`."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", extra="ignore")

    data_dir: Path = Field(default_factory=default_data_dir, description="Database, broker folders, caches.")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data directory.")
    broker_url: str = Field(
        default="", description="Celery broker URL; empty: the filesystem broker in the data directory."
    )
    roots: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Directories that checkpoints and forget sets may be read from, separated like PATH.",
    )

    host: str = "127.0.0.1"
    port: int = 8321
    max_body_bytes: int = Field(
        default=256 * 2**20,
        gt=0,
        description="The largest request, and the largest archive in one once unpacked. MUSE's NEWS folder, as its"
        " download script writes it, has about 150 MB.",
    )

    lease_seconds: float = Field(default=60.0, gt=0)
    beat_seconds: float = Field(default=10.0, gt=0)
    reconcile_seconds: float = Field(default=15.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    stall_seconds: float = Field(
        default=1800.0, gt=0, description="An attempt without progress for this long is ended."
    )
    stop_seconds: float = Field(
        default=5.0,
        gt=0,
        description="A process whose evaluation continues for this long after it was told to stop is ended.",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="The same for API and all workers. Evaluations are shared by this name, not by the device that was"
        " used: if some workers have a GPU (bfloat16) and others do not (float32), set cpu or cuda; otherwise a pair"
        " may be compared across both.",
    )
    worker_concurrency: int = Field(default=1, ge=1, description="Evaluations at once per worker; one per GPU.")
    torch_threads: int | None = Field(default=None, ge=1)

    calibration_file: Path | None = Field(
        default=None,
        description="Texts, UTF-8, that precisions ending in @file are calibrated on; the same for API and workers.",
    )

    model_store_url: str = Field(
        default="",
        description="Where remediations store their checkpoints: a folder, or any fsspec URL (s3://bucket/prefix needs"
        " lethe-audit[s3]; its credentials and endpoint come from AWS_*). The same for API and workers; empty: the"
        " folder models in the data directory.",
    )
    model_store_quota: int | None = Field(
        default=None, gt=0, description="Bytes that all models together may take; one that would not fit is refused."
    )
    model_store_keep_days: float | None = Field(
        default=None, gt=0, description="Days after the end of its trial at which a model is deleted; empty: never."
    )
    remediation_ladder: list[dict[str, Any]] | None = Field(
        default=None,
        min_length=1,
        max_length=50,
        description='What "method": "auto" tries, in order: a JSON list of {"method", "loss"?, "hyperparameters"?};'
        " empty: `app.catalog.ladder`'s.",
    )

    url: str = Field(default="", description="Where the CLI finds the service; empty: http://host:port.")
    api_key: str = Field(default="", description="The CLI's key; empty: the one that `lethe dev` wrote.")

    log_format: Literal["console", "json"] = "console"

    @field_validator("roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if isinstance(value, str):
            return [part for part in value.split(os.pathsep) if part]
        return value

    @property
    def resolved_database_url(self) -> str:
        """The URL of the database in use; a plain postgresql:// URL gets psycopg 3 as its driver."""
        url = self.database_url or f"sqlite:///{self.data_dir.resolve() / 'lethe.db'}"
        for bare in ("postgresql://", "postgres://"):
            if url.startswith(bare):
                return "postgresql+psycopg://" + url.removeprefix(bare)
        return url

    @property
    def resolved_broker_url(self) -> str:
        """The URL of the broker in use."""
        return self.broker_url or "filesystem://"

    @property
    def resolved_model_store_url(self) -> str:
        """The model store in use: an absolute path or an fsspec URL."""
        if self.model_store_url:
            return self.model_store_url.rstrip("/")
        # An earlier version's name of the folder, kept because rows name the models in it by their whole path.
        earlier = self.data_dir.resolve() / "artifacts"
        return str(earlier if earlier.is_dir() else self.data_dir.resolve() / "models")

    @property
    def resolved_url(self) -> str:
        """The service's base URL for clients."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def key_file(self) -> Path:
        """Where `lethe dev` stores its API key for the CLI."""
        return self.data_dir / "api-key"


@cache
def settings() -> Settings:
    """The process's settings, read once; `settings.cache_clear()` reads them again."""
    return Settings()
