"""Where a checkpoint may lie."""

import shutil
from pathlib import Path

import pytest

from app.checkpoints.format.digests import digest
from app.checkpoints.format.files import inspect, resolve_inside
from app.checkpoints.pair import check_pair
from app.errors import CheckpointRefused


def test_paths_outside_the_allowed_folders_are_refused_also_through_links(copy: Path, tmp_path: Path) -> None:
    root = copy.parent / "root"
    inside = Path(shutil.copytree(copy, root / "models" / "a"))
    assert resolve_inside(inside, [root]) == inside.resolve()
    assert resolve_inside(root / "models" / ".." / "models" / "a", [tmp_path / "x", root]) == inside.resolve()

    def code(path: Path, roots: list[Path]) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            resolve_inside(path, roots)
        return refused.value.code

    assert code(copy, [root]) == "checkpoint_outside_roots"
    assert code(root / "models" / ".." / ".." / "checkpoint", [root]) == "checkpoint_outside_roots"
    assert code(inside, []) == "checkpoint_outside_roots"
    assert code(root.parent / "root-of-another", [root]) == "checkpoint_outside_roots"
    assert code(root / "nowhere", [root]) == "checkpoint_missing"
    assert code(Path("/tmp/\0"), [root]) == "checkpoint_missing"
    (root / "link").symlink_to(copy)
    assert code(root / "link", [root]) == "checkpoint_outside_roots"
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(copy / "model.safetensors")
    assert code(inside, [root]) == "checkpoint_outside_roots"


def test_links_that_stay_inside_as_in_the_hugging_face_cache_are_fine(copy: Path) -> None:
    root = copy.parent / "hub"
    blobs, snapshot = root / "blobs", root / "snapshots" / "abc"
    shutil.copytree(copy, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert resolve_inside(snapshot, [root]) == snapshot.resolve()
    assert digest(snapshot) == digest(copy)
    check_pair(inspect(snapshot), inspect(copy))
