"""`lethe run`: what is fixed before it runs, and what of a forget set's folder it does not use."""

import os
import threading
from pathlib import Path

from app.judgement.policy import Policy
from app.reports.model import AuditReport
from tests.support.commands import installed
from tests.support.factories import muse_folder, tiny_checkpoint


def test_the_policy_is_read_once_and_hashed_before_anything_runs(tmp_path: Path) -> None:
    policy = Policy(utility_floor=0.4)
    # A second reader of a FIFO would wait for ever.
    os.mkfifo(tmp_path / "policy.json")
    writer = threading.Thread(
        target=(tmp_path / "policy.json").write_text, args=(policy.model_dump_json(),), daemon=True
    )
    writer.start()
    for seed, name in enumerate(("original", "unlearned")):
        tiny_checkpoint(tmp_path / name, seed=seed)
    done = installed(
        "run", "--original", tmp_path / "original", "--unlearned", tmp_path / "unlearned", "--threads", 1,
        "--forget-set", muse_folder(tmp_path / "news", "news"), "--policy", tmp_path / "policy.json",
        "--out", tmp_path / "report.json", "--plan", "full", "--metrics", "knowmem-forget,verbmem-sampled",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    first, second = done.stderr.splitlines()[:2]
    assert first == f"policy: {policy.digest()}"
    found = AuditReport.model_validate_json((tmp_path / "report.json").read_bytes())
    assert (found.policy, found.policy_digest) == (policy, policy.digest())
    assert found.plan.metrics == ["knowmem_forget", "verbmem_sampled"]
    assert all(one.evaluation and one.evaluation.scores("verbmem_sampled") for one in found.evidence)
    assert "raw/holdout.json" in found.forget_set.ignored
    assert second == f"not used of the forget set: {', '.join(found.forget_set.ignored)}"


def test_its_digest_is_said_though_the_run_ends_at_once(tmp_path: Path) -> None:
    books, missing = muse_folder(tmp_path / "books", "books"), tmp_path / "missing"
    done = installed("run", "--original", missing, "--unlearned", missing, "--forget-set", books)
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, f"policy: {Policy().digest()}")
