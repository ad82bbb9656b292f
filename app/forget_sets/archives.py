"""Archives of a bundle's folder: a `.zip` or tar file as `relative path -> content`, never written to disk."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from app.errors import ForgetSetRefused, TooLarge
from app.forget_sets.layout import refused

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_FILES = 1000
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, NotImplementedError)


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


def unpack(name: str, content: bytes, limit: int) -> dict[str, bytes]:
    """The regular files of an archive.

    Args:
        limit: The most bytes that all files may have once unpacked; counted while reading, whatever the headers say.

    Raises:
        ForgetSetRefused: `forget_set_malformed` for broken or encrypted archives, and names that leave the archive.
        TooLarge: over the limit, or more than a thousand files.
    """
    found: dict[str, bytes] = {}
    left = limit
    try:
        for path, stream in _members(name, content):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
                raise refused("forget_set_malformed", f"holds the path {path!r}, which leaves the archive", file=name)
            if path in found:
                raise refused("forget_set_malformed", f"holds {path!r} twice", file=name)
            data = stream.read(left + 1)
            left -= len(data)
            if left < 0 or len(found) >= MAX_FILES:
                raise TooLarge(
                    "too_large", f"{name} unpacks to more than {limit} bytes or {MAX_FILES} files; leave out what does"
                    " not belong to the forget set"
                )  # fmt: skip
            found[path] = data
    except (ForgetSetRefused, TooLarge):
        raise
    except (*_BROKEN, RuntimeError) as error:  # zipfile raises RuntimeError for encrypted members
        raise refused("forget_set_malformed", f"cannot be unpacked: {error}", file=name) from error
    return found


def _members(name: str, content: bytes) -> Iterator[tuple[str, IO[bytes]]]:
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as stream:
                        yield entry.filename, stream
        return
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as tar:
        for member in tar:
            # Links and devices have no content of their own, and a link to a file outside is never followed.
            if member.isfile() and (extracted := tar.extractfile(member)) is not None:
                with extracted:
                    yield member.name, extracted
