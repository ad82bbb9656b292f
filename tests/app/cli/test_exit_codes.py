"""No error may end with an exit code that means a verdict."""

import pytest
import typer
from pydantic_settings import SettingsError

from app.cli import exit_codes
from app.errors import InvalidRequest, Unavailable


def code_of(error: Exception) -> int:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        exit_codes.run(app)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("invalid_request", "[/] markup is text"), exit_codes.USAGE),
        (Unavailable("no_worker", "x"), exit_codes.SERVICE),
        (SettingsError("LETHE_X is no JSON"), exit_codes.USAGE),
        (FileNotFoundError("no such folder"), exit_codes.USAGE),
        (RuntimeError("unforeseen"), exit_codes.SERVICE),
        (KeyError("unforeseen"), exit_codes.SERVICE),
        (typer.BadParameter("x"), exit_codes.USAGE),
        (typer.Exit(2), 2),
    ],
)
def test_errors_end_with_usage_or_service_error(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lethe"])
    assert code_of(error) == code
