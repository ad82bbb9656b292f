"""`lethe doctor`: what is installed, what works, and what to do about what doesn't."""

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import httpx
import typer
from rich.text import Text

from app import __version__, launch
from app.catalog.methods import UNLEARNING_METHODS
from app.cli import exit_codes
from app.errors import Unavailable
from app.settings import settings

LIBRARIES = (
    *("torch", "transformers", "bitsandbytes", "celery", "sqlalchemy", "fastapi"),
    *dict.fromkeys(one.library for one in UNLEARNING_METHODS.values() if one.library is not None),
)


def doctor() -> None:
    """Check libraries, device, database, broker, stores and service; exit code 4 when something needed is broken."""
    checks: list[tuple[str, Callable[[], tuple[bool | None, str]]]] = [
        ("lethe", lambda: (True, f"{__version__}, Python {platform.python_version()}")),
        ("libraries", _libraries),
        ("device", _device),
        ("database", _database),
        ("broker", _broker),
        ("roots", _roots),
        ("model store", _model_store),
        ("service", _service),
    ]
    broken = False
    for name, check in checks:
        ok, text = check()
        broken |= ok is False
        mark = {True: ("ok  ", "green"), False: ("bad ", "red"), None: ("note", "yellow")}[ok]
        exit_codes.out.print(Text.assemble(mark, f" {name:10} {text}"), soft_wrap=True)
    raise typer.Exit(exit_codes.SERVICE if broken else exit_codes.ROBUST)


def _libraries() -> tuple[bool | None, str]:
    found = []
    missing = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return None, f"{', '.join(found)}; not installed: {', '.join(missing)} (workers need lethe-audit[worker])"
    return True, ", ".join(found)


def _device() -> tuple[bool | None, str]:
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed: this machine can serve, but not evaluate"
    # In a process of its own: this one never imports torch.
    code = (
        "import torch; c = torch.cuda; "
        "print(', '.join(c.get_device_name(i) for i in range(c.device_count())) or 'CPU only', "
        "'|', torch.get_num_threads(), 'threads')"
    )
    line = [sys.executable, "-P", "-c", code]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        line, env=launch.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        return False, f"torch cannot be imported: {done.stderr.strip().splitlines()[-1]}"
    return True, done.stdout.strip()


def _database() -> tuple[bool | None, str]:
    import sqlalchemy as sa

    from app.http import health

    shown = sa.make_url(settings().resolved_database_url).render_as_string()
    state = health.database_state()
    if state == "unreachable":
        return False, f"{shown} cannot be reached"
    if state == "not_migrated":
        return None, f"{shown}: the schema is not up to date; `lethe dev` and `lethe serve` bring it up to date"
    return True, shown


def _broker() -> tuple[bool | None, str]:
    import sqlalchemy as sa

    from app.http import health

    url = settings().broker_url
    shown = sa.make_url(url).render_as_string() if url else f"the filesystem, in {settings().data_dir / 'broker'}"
    if not health.broker_reachable():
        return None, f"{shown} cannot be reached; workers look for work every {settings().reconcile_seconds:g} s anyway"
    return True, shown


def _roots() -> tuple[bool | None, str]:
    roots = settings().roots
    if not roots:
        return None, "LETHE_ROOTS is empty: no checkpoint can be read (`lethe dev` uses the current directory)"
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing:
        return False, f"not a directory: {', '.join(missing)}"
    return True, ", ".join(str(root) for root in roots)


def _model_store() -> tuple[bool | None, str]:
    from app.storage import model_store

    quota = settings().model_store_quota
    shown = f"{model_store.root()}, {'no quota' if quota is None else f'{quota:,} bytes'}"
    try:
        model_store.check_reachable()
    except Unavailable as error:
        return None, error.detail
    return True, shown


def _service() -> tuple[bool | None, str]:
    url = settings().resolved_url
    try:
        answer = httpx.get(f"{url}/readyz", timeout=3)
    except httpx.HTTPError:
        return None, f"nothing answers at {url} (`lethe dev` starts a service)"
    return answer.is_success, f"{url} answers {answer.status_code} {answer.text[:200]}"
