"""What `lethe` needs before it knows which command it is to run."""

import subprocess
import sys


def test_it_starts_without_what_only_some_commands_need() -> None:
    heavy = ("sqlalchemy", "fastapi", "uvicorn", "alembic", "scipy", "torch")
    script = f"import sys, app.cli\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
