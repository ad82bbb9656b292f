"""From what a request names (a path or a file:// URI) to a checkpoint that this service may read."""

from dataclasses import dataclass
from pathlib import Path

from app.checkpoints.format import digests, files
from app.checkpoints.format.digests import Identity
from app.checkpoints.format.files import CheckpointFiles
from app.errors import CheckpointRefused
from app.settings import settings
from app.storage import model_store
from app.storage.paths import local_path


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found, checked and digested."""

    uri: str
    """The real path, or the URI of a model in a remote store: what workers open."""
    identity: Identity
    files: CheckpointFiles

    @property
    def digest(self) -> str:
        """The digest that identifies it."""
        return self.identity.digest


def open_checkpoint(uri: str, *, quantized: bool = False) -> Source:
    """The checkpoint at a URI. Reads all its files once (later calls use the cached digests); needs no database.

    Args:
        uri: A path or a file:// URI.
        quantized: Whether it may be quantized already.

    Raises:
        CheckpointRefused: for everything that keeps it from being audited, with what to do.
    """
    remote = "://" in uri and model_store.owns(uri)
    path = model_store.local_path(uri) if remote else _inside(_checkpoint_path(uri))
    found = files.inspect(path, quantized=quantized)
    # Workers hash what they measure themselves; here a file that the kernel calls unchanged need not be read again.
    own = digests.identity(found, cache=settings().data_dir / "digests.sqlite")
    return Source(uri if remote else str(path), own, found)


def _inside(path: Path) -> Path:
    """The path, if it lies within the allowed roots or the model store."""
    store = model_store.folder()
    if store is not None and path.is_relative_to(store):
        return files.resolve_inside(path, [store])
    return files.resolve_inside(path, settings().roots)


def _checkpoint_path(uri: str) -> Path:
    if (path := local_path(uri)) is not None:
        return path
    if ":" not in uri:
        # Or a name on the hub, which looks the same.
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{uri} is a relative path; give the absolute path of a folder on the service's own machine"
            " (a model of the Hugging Face hub must be downloaded first: hf download … --local-dir /an/allowed/folder)",
        )
    if uri.startswith(("hf://", "hub://", "https://")):
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{uri} names a hub repository, which this version does not fetch; download it"
            " (hf download … --local-dir /an/allowed/folder) and give that folder's path",
        )
    raise CheckpointRefused(
        "checkpoint_unsupported", f"{uri}: give an absolute path or a file:// URI on the service's own machine"
    )
