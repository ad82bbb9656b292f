"""`python -m app.cli` is `lethe`."""

from app import launch

launch.start("app.cli")
