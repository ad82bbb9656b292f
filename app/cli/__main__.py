"""`python -m app.cli` is `lethe`."""

from app.cli import main

main()
