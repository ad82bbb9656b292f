"""How `lethe` ends: exit codes and error messages, the same for the service's commands and the engine's."""

import sys
import traceback

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.text import Text

from app import launch
from app.client import ServiceRefused, ServiceUnreachable
from app.errors import AppError, FieldProblem
from app.judgement.verdict import Outcome

ROBUST, FAILED, INCONCLUSIVE, USAGE, SERVICE = 0, 1, 2, 3, 4

EXIT_CODES: dict[Outcome, int] = {
    "robust": ROBUST,
    "recovered": FAILED,
    "not_forgotten": FAILED,
    "collapsed": FAILED,
    "inconclusive": INCONCLUSIVE,
}

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


def run(app: typer.Typer, name: str = "lethe") -> None:
    """Run a command line to its end; every error becomes a message on stderr and an exit code that is not a verdict's.

    `name` is what the command is called in its help.
    """
    try:
        code = app(prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        _complain(str(error), "usage", hint="see `lethe --help` and `lethe COMMAND --help`")
        code = USAGE
    except ServiceRefused as error:
        problem = error.problem
        _complain(problem.detail, problem.code, problem.errors)
        code = USAGE if problem.status < 500 else SERVICE
    except ServiceUnreachable as error:
        _complain(str(error), "unreachable")
        code = SERVICE
    except AppError as error:
        _complain(error.detail, error.code, error.errors)
        code = USAGE if error.status < 500 else SERVICE
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted")
        code = SERVICE
    except ValidationError as error:
        for place in error.errors():
            name = ".".join(map(str, place["loc"]))
            _complain(f"LETHE_{name.upper()}: {place['msg']}", "settings")
        code = USAGE
    except SettingsError as error:
        _complain(f"{error}; is it the JSON that this setting expects?", "settings")
        code = USAGE
    except (Exception, SystemExit) as error:
        if (failure := launch.import_failure(error)) is not None:
            _complain(failure, "import")
            code = USAGE
        elif _is_of_the_database(error):
            _complain(str(error).splitlines()[0], "database", hint="see LETHE_DATABASE_URL and `lethe doctor`")
            code = SERVICE
        elif isinstance(error, OSError):
            _complain(str(error), "files")
            code = USAGE
        else:
            # A library that exits (uvicorn with 1, for example) says nothing about a model either.
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            code = SERVICE
    sys.exit(code)


def _is_of_the_database(error: BaseException) -> bool:
    # Not imported here: most commands open no database, and start twice as fast without it.
    module = sys.modules.get("sqlalchemy.exc")
    return module is not None and isinstance(error, module.SQLAlchemyError)


def _complain(detail: str, code: str, places: list[FieldProblem] | None = None, hint: str | None = None) -> None:
    err.print(Text.assemble(("error", "bold red"), (f" {code}", "dim"), f": {detail}"))
    for place in places or []:
        where = " ".join(
            part for part in (place.file, f"line {place.line}" if place.line else None, place.field) if part
        )
        if where and place.message not in detail:
            err.print(f"  {where}: {place.message}")
    if hint:
        err.print(f"  {hint}", style="dim")
