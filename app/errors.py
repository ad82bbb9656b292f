"""The one tree of errors.

Every refusal that a user can meet is an `AppError`. Its `code` is stable (clients branch on it), its `detail` says what
to do. `app.http.problems` turns it into RFC 9457 problem+json, `app.cli` into a line on stderr and an exit code, the
worker into an evaluation's `error_code`.
"""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """An error as `application/problem+json` (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "The checkpoint is refused",
                    "status": 422,
                    "detail": "model.bin is a pickle; convert it: save_pretrained(..., safe_serialization=True)",
                    "code": "checkpoint_pickle",
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str = Field(description="The same for every error of this class.")
    status: int = Field(description="The HTTP status, repeated.")
    detail: str = Field(description="What was wrong this time, and what to do.")
    code: str = Field(description="Stable; branch on this.")
    errors: list["FieldProblem"] | None = Field(default=None, description="Which parts of the input are wrong.")


class FieldProblem(BaseModel):
    """One place in the input that is wrong."""

    file: str | None = None
    line: int | None = Field(default=None, description="1-based.")
    field: str | None = None
    message: str


class AppError(Exception):
    """Something went wrong inside Lethe; the server's log has the details"""

    status: ClassVar[int] = 500
    codes: ClassVar[tuple[str, ...]] = ("internal",)

    def __init__(self, code: str, detail: str, *, errors: list[FieldProblem] | None = None) -> None:
        if code not in self.codes:
            raise ValueError(f"{type(self).__name__} has no code {code!r}; it has {self.codes}")
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors

    @classmethod
    def title(cls) -> str:
        """The class docstring's first line: the same sentence in code, HTTP and docs."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]

    def problem(self) -> Problem:
        """This error as a response body."""
        return Problem(title=self.title(), status=self.status, detail=self.detail, code=self.code, errors=self.errors)


class InvalidRequest(AppError):
    """The request is not valid"""

    status = 422
    codes = (
        "invalid_request",
        "unknown_precision",
        "unknown_metric",
        "pair_mismatch",
        "idempotency_key_reused",
        "nothing_to_measure",
        "precision_unavailable",
        "unknown_method",
        "unknown_loss",
        "forget_set_incomplete",
        "state_mismatch",
    )


class MalformedRequest(AppError):
    """The request cannot be read"""

    status = 400
    codes = ("malformed_request",)


class UnsupportedMediaType(AppError):
    """This route does not accept the request's content type"""

    status = 415
    codes = ("unsupported_media_type",)


class MethodNotAllowed(AppError):
    """This path does not support this method"""

    status = 405
    codes = ("method_not_allowed",)


class TooLarge(AppError):
    """The request is larger than this service accepts"""

    status = 413
    codes = ("too_large",)


class NotAuthenticated(AppError):
    """An API key is needed"""

    status = 401
    codes = ("key_missing", "key_invalid", "key_revoked")


class NotAllowed(AppError):
    """The API key does not allow this"""

    status = 403
    codes = ("scope_missing",)


class NotFound(AppError):
    """It does not exist"""

    status = 404
    codes = ("not_found", "report_not_ready")


class Gone(AppError):
    """It existed and has been removed"""

    status = 410
    codes = ("forget_set_purged",)


class Conflict(AppError):
    """Its current state does not allow this"""

    status = 409
    codes = ("conflict",)


class NotAcceptable(AppError):
    """It is not available in any of the requested formats"""

    status = 406
    codes = ("not_acceptable",)


class Unavailable(AppError):
    """A part of the service cannot be reached"""

    status = 503
    codes = (
        "database_unavailable",
        "no_worker",
        "api_ended",
        "port_in_use",
        "model_store_unavailable",
        "remediation_failed",
    )


class CheckpointRefused(AppError):
    """The checkpoint is refused"""

    status = 422
    codes = (
        "checkpoint_missing",
        "checkpoint_unreadable",
        "checkpoint_outside_roots",
        "checkpoint_pickle",
        "checkpoint_truncated",
        "checkpoint_no_weights",
        "checkpoint_no_config",
        "checkpoint_no_tokenizer",
        "checkpoint_remote_code",
        "checkpoint_unsupported",
        "checkpoint_quantized",
        "checkpoint_changed",
    )


class ForgetSetRefused(AppError):
    """The forget set is refused"""

    status = 422
    codes = (
        "forget_set_missing",
        "forget_set_outside_roots",
        "forget_set_malformed",
        "forget_set_not_utf8",
        "forget_set_empty",
        "forget_set_unknown_file",
    )


class ReportRefused(AppError):
    """The report is refused"""

    status = 422
    codes = ("report_malformed", "report_inconsistent")


class StorageFull(AppError):
    """The model store's quota is used up"""

    status = 507
    codes = ("model_store_full",)


class EvaluationFailed(AppError):
    """The evaluation failed"""

    codes = (
        "not_quantized",
        "artifact_not_of_pair",
        "precision_unavailable",
        "out_of_memory",
        "worker_lost",
        "engine_error",
        "too_slow",
    )


class EvaluationCancelled(AppError):
    """The evaluation was cancelled"""

    status = 409
    codes = ("cancelled",)


class UnlearningFailed(AppError):
    """The model could not be made to forget"""

    codes = (
        "non_finite",
        "runaway",
        "utility_floor",
        "nothing_to_forget",
        "nothing_salient",
        "adapters_unmoved",
        "out_of_memory",
    )
