"""Forget sets in folders that this service may read."""

from app.errors import ForgetSetRefused
from app.forget_sets import bundle
from app.settings import settings
from app.storage.paths import local_path


def read_forget_set(uri: str) -> tuple[str, dict[str, bytes]]:
    """The real path and the files of the bundle in a directory under the allowed roots.

    Raises:
        ForgetSetRefused: `forget_set_missing`, `forget_set_outside_roots`, `forget_set_unknown_file`.
    """
    path = local_path(uri)
    if path is None:
        raise ForgetSetRefused(
            "forget_set_missing", f"{uri}: give an absolute path or a file:// URI, or upload the files themselves"
        )
    return str(path), bundle.read_directory(path, settings().roots)
