"""Places on this machine as requests name them."""

from pathlib import Path
from urllib.parse import unquote, urlsplit


def local_path(uri: str) -> Path | None:
    """The path of an absolute path or a file:// URI; None for anything else."""
    if uri.startswith("/"):
        return Path(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return Path(unquote(parts.path))
    return None
