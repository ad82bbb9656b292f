"""The front end: HTTP API, CLI, database. Importing it never imports torch, transformers or worker."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lethe-audit")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+source"
