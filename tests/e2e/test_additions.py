"""What is added as one file and one entry is there for everyone: HTTP, the workers, ranking, the report and `lethe`.

The additions are made to a copy of the product: a file for each, and its entry, nothing else.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.embedded import free_port
from tests.support.factories import tiny_bundle, tiny_checkpoint
from tests.support.places import REPOSITORY
from tests.support.worker_service import until

pytestmark = pytest.mark.timeout(600)

FILES = {
    "worker/engine/quantizers/toy.py": """
from worker.engine.quantizers import rtn

apply, live, evidence = rtn.apply, rtn.live, rtn.evidence


def parameters(precision):
    return {"toy": True}
""",
    "worker/engine/muse/toy.py": """
from app.evidence.evaluation import GenerationScores

SETTINGS = {"toy_words": 1}


def measure(subject, bundle, metric, progress, seed):
    progress(metric, 0, len(bundle.verbmem))
    first = [subject.encode_prompt(item.prompt, 1)[0][0] for item in bundle.verbmem]
    column = [float(seed == 0) for _ in first]
    return GenerationScores(scores=[0.25 for _ in first], extras={"probability": column})
""",
    "worker/engine/unlearning/methods/toy.py": """
from worker.engine.unlearning.trainable import train_only


def make_trainable(model, chosen, objective, work, progress):
    progress("saliency", 1, 1)
    return train_only(model, {name: p for name, p in model.named_parameters() if name.endswith("norm.weight")})
""",
    "app/reports/rendering/toy.py": """
def toy(report):
    return f"toy: {report.verdict}".encode()
""",
}
ENTRIES = {
    "app/catalog/quantizers.py": (
        '            Quantizer("bnb", ',
        '            Quantizer("toy", "toy", None, "worker", 0, (Precision("toy-int3", "toy", 3, "channel"),)),\n',
    ),
    "app/catalog/metrics.py": (
        '            Metric(\n                "privleak",',
        '            Metric("toy", "Toy", "toy", ("verbmem/forget",), by_default=False,\n'
        "                   judged=Thresholds(slack=0.125, excluded=0.375),\n"
        '                   columns=(Column("probability", "toy probability"),)),\n',
    ),
    "app/catalog/methods.py": (
        '            UnlearningMethod(\n                "control",',
        '            UnlearningMethod("toy", "Toy", "toy", "the norms, nothing else", {"learning_rate": 0.01},\n'
        '                             "nowhere", needs_retain=True, library="toylib", ladder=({"max_steps": 2},)),\n',
    ),
    "app/reports/rendering/formats.py": (
        '        Format(\n            "markdown",',
        '        Format("toy", "text/x-toy", ".toy", toy, "toy: robust"),\n',
    ),
}
"""File -> (what an entry is written in front of, the entry)."""
IMPORTS = {"app/reports/rendering/formats.py": "from app.reports.rendering.toy import toy\n"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product with the additions."""
    root = tmp_path_factory.mktemp("tree")
    for package in ("app", "worker", "migrations"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in FILES.items():
        assert not (root / name).exists()
        (root / name).write_text(content)
    for name, (before, entry) in ENTRIES.items():
        text = (root / name).read_text()
        assert text.count(before) == 1, f"{name} has no place for {entry}"
        text = text.replace(before, entry + before)
        (root / name).write_text(text.replace("\nfrom app.", "\n" + IMPORTS.get(name, "") + "from app.", 1))
    return root


class Lethe:
    """`lethe dev` of a tree, and its command line."""

    def __init__(self, tree: Path, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
        self.command = [sys.executable, "-m", "app.cli"]
        self.environment = clean | {
            "PYTHONPATH": str(tree),
            "LETHE_DATA_DIR": str(folder / "data"),
            "LETHE_PORT": str(free_port()),
            "LETHE_ROOTS": str(folder),
            "LETHE_TORCH_THREADS": "1",
            "COLUMNS": "200",
        }
        self.tree, self.log = tree, folder / "dev.log"

    def __enter__(self) -> "Lethe":
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                [*self.command, "dev"], stdout=log, stderr=log, env=self.environment, cwd=self.tree
            )
        until(lambda: "Lethe is up" in self.log.read_text() or self.child.poll() is not None, 90)
        assert self.child.poll() is None, self.log.read_text()
        key = (Path(self.environment["LETHE_DATA_DIR"]) / "api-key").read_text().strip()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.environment['LETHE_PORT']}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        self.child.send_signal(signal.SIGTERM)
        assert self.child.wait(60) == 0

    def run(self, *args: object, code: int = 0) -> str:
        """What the command prints, results before messages."""
        done = subprocess.run(
            [*self.command, *map(str, args)], capture_output=True, text=True, env=self.environment, cwd=self.tree
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        """GET with the service's key."""
        return self.http.get(path, **kwargs).raise_for_status()


@pytest.fixture(scope="module")
def lethe(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lethe]:
    with Lethe(tree, tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture(scope="module")
def audit(lethe: Lethe) -> Any:
    """A finished audit that uses a quantizer and a metric which are additions."""
    folder = lethe.log.parent
    for seed, name in enumerate(("original", "unlearned")):
        tiny_checkpoint(folder / name, seed=seed)
    raw = tiny_bundle(folder / "bundle", n=6) / "raw"
    shutil.copy(raw / "forget.json", raw / "retain.json")
    forget_set = lethe.run("forget-set", "add", folder / "bundle").split()[0]
    body = {
        "name": "additions",
        "original": str(folder / "original"),
        "unlearned": str(folder / "unlearned"),
        "forget_set": forget_set,
        "plan": {"precisions": ["full", "rtn-int4", "toy-int3"], "metrics": ["knowmem_forget", "toy"]},
    }
    made = lethe.http.post("/v1/audits", json=body)
    assert made.status_code == 202, made.text
    lethe.run("audit", "wait", made.json()["id"], code=2)  # too few items: inconclusive
    return lethe.get(made.json()["links"]["self"]).json()


def test_a_quantizer_and_a_metric_are_one_file_and_one_entry_each(lethe: Lethe, audit: Any) -> None:
    report = lethe.get(audit["links"]["report"]).json()
    assert report["plan"] == {"precisions": ["full", "rtn-int4", "toy-int3"], "metrics": ["knowmem_forget", "toy"]}
    evaluation = next(e["evaluation"] for e in report["evidence"] if e["precision"] == "toy-int3")
    assert evaluation["precision"]["parameters"] == {"toy": True}
    assert {module["bits"] for module in evaluation["census"]["modules"]} == {3}
    assert evaluation["toy"]["scores"] == [0.25] * 6
    assert evaluation["engine"]["settings"]["toy_words"] == 1
    assert report["policy"]["limit_slack"]["toy"] == 0.125
    assert report["policy"]["excluded_recovery"]["toy"] == 0.375
    at = next(one for one in report["precisions"] if one["precision"] == "toy-int3")
    assert [one["metric"] for one in at["metrics"]] == ["knowmem_forget", "toy"]
    assert ("toy", "probability") in {(one["metric"], one["column"]) for one in at["corroboration"]}
    assert any("Toy has 6 distinct items" in reason["sentence"] for reason in at["reasons"])


def test_what_was_not_asked_of_them_is_not_tested(lethe: Lethe, audit: Any) -> None:
    folder = lethe.log.parent
    pair = ("--original", folder / "original", "--unlearned", folder / "unlearned", "--forget-set", folder / "bundle")
    lethe.run("run", *pair, "--plan", "rtn-int4", "--metrics", "knowmem-forget", "--out", folder / "local.json", code=2)
    report = json.loads((folder / "local.json").read_text())
    assert "Toy: not in the plan." in report["not_tested"]
    assert "Precisions of the method toy that were not in the plan: toy-int3." in report["not_tested"]


def test_the_command_line_and_the_api_name_them(lethe: Lethe, audit: Any) -> None:
    folder = lethe.log.parent
    pair = ("--original", folder / "original", "--unlearned", folder / "unlearned", "--forget-set", folder / "bundle")
    assert "toy-int3" in lethe.run("precisions")
    assert "toy" in lethe.run("run", "--help")
    schemas = lethe.get("/openapi.json").json()["components"]["schemas"]
    assert "toy" in schemas["Evaluation"]["properties"]
    refused = lethe.run("run", *pair, "--metrics", "tyo", code=3)
    assert re.search(r"There is no metric 'tyo'. Known: .*\btoy\b", refused)


def test_a_remediation_looks_where_it_is_cheapest(lethe: Lethe, audit: Any) -> None:
    own = ("--set", "max_steps=2", "--set", "stop=null", "--set", "saliency_percentile=50")
    lethe.run("remediate", audit["id"], "--method", "auto", "--loss", "npo", "--trials", 2, *own, "--wait", code=2)
    (made,) = lethe.get("/v1/remediations", params={"audit": audit["id"]}).json()["items"]
    first = lethe.get(f"/v1/remediations/{made['id']}").json()["trials"][0]
    screening = lethe.get(f"/v1/audits/{first['screening']['id']}").json()
    assert screening["plan"]["precisions"] == ["full", "toy-int3"]


def test_a_report_format_is_one_file_and_one_entry(lethe: Lethe, audit: Any) -> None:
    path, said = audit["links"]["report"], f"toy: {audit['verdict']}"
    by_name = lethe.get(path, params={"format": "toy"})
    by_accept = lethe.get(path, headers={"Accept": "text/x-toy"})
    assert (by_name.text, by_accept.text) == (said, said)
    assert by_accept.headers["content-type"].startswith("text/x-toy")
    assert by_accept.headers["ETag"].endswith('-toy"')
    again = lethe.http.get(path, headers={"If-None-Match": by_accept.headers["ETag"], "Accept": "text/x-toy"})
    assert again.status_code == 304
    problem = lethe.http.get(path, params={"format": "docx"})
    assert (problem.status_code, "json, toy, markdown" in problem.text) == (422, True)
    problem = lethe.http.get(path, headers={"Accept": "image/png"})
    assert (problem.status_code, "text/x-toy" in problem.text) == (406, True)
    lethe.run("report", "get", audit["id"], "--format", "toy", "--out", lethe.log.parent / "report.toy")
    assert (lethe.log.parent / "report.toy").read_text() == said


TOY = ("--method", "toy", "--loss", "npo", "--set", "max_steps=2")


def test_an_unlearning_method_is_one_file_and_one_entry(lethe: Lethe, audit: Any) -> None:
    wanted = {"method": "toy", "loss": "npo", "hyperparameters": {"max_steps": 2}}
    made = lethe.http.post(f"/v1/audits/{audit['id']}/remediations", json=wanted)
    assert made.status_code == 202, made.text
    lethe.run("remediation", "wait", made.json()["id"], code=2)
    ended = lethe.get(made.json()["links"]["self"]).json()
    assert (ended["method"], ended["state"]) == ("toy", "finished")
    report = lethe.get(f"{made.json()['links']['self']}/report").json()
    assert report["recipe"]["method"] == "toy"
    assert report["recipe"]["hyperparameters"]["learning_rate"] == 0.01
    assert report["sentence"].startswith("toy over npo (max_steps 2).")
    assert 0 < report["parameters_changed"] <= 5 * 64
    card = next(Path(report["checkpoints"]["new"]["uri"]).glob("README.md")).read_text()
    assert "unlearned by Toy over npo" in card
    assert "the norms, nothing else" in card


def test_lethe_unlearns_by_it_and_tells_of_it(lethe: Lethe, audit: Any) -> None:
    folder = lethe.log.parent
    given = ("unlearn", folder / "original", "--forget-set", folder / "bundle", *TOY)
    assert "toy over npo" in lethe.run(*given, "--out", folder / "by-toy")
    record = json.loads((folder / "by-toy/unlearning.json").read_text())
    assert record["recipe"]["method"] == "toy"
    assert 0 < record["parameters_changed"] <= record["parameters_trained"] < record["parameters_total"]
    assert "toy: the norms, nothing else" in lethe.run("unlearn", "--help")
    assert "toy: the norms, nothing else" in lethe.run("remediate", "--help")
    assert "toylib" in lethe.run("doctor")
    assert "toy" in lethe.run("remediation", "ladder")
    refused = lethe.run("unlearn", *given[1:4], "--out", folder / "none", "--method", "tyo", code=3)
    assert re.search(r"There is no method 'tyo'. Known: .*\btoy\b", refused)
    (folder / "bundle/raw/retain.json").unlink()
    assert "toy reads raw texts that must be kept" in lethe.run(*given, "--out", folder / "none", code=3)


def test_the_api_names_it_in_its_lists(lethe: Lethe) -> None:
    schemas = lethe.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["NewRemediation"]["properties"]["method"]["enum"] == [
        "plain",
        "sure",
        "lora",
        "toy",
        "control",
        "auto",
    ]
    assert "toy" in schemas["Recipe"]["properties"]["method"]["enum"]
    assert "toy: the norms, nothing else" in schemas["NewRemediation"]["properties"]["method"]["description"]
    steps = lethe.get("/v1/remediations/ladder").json()["steps"]
    assert [step["hyperparameters"] for step in steps if step["method"] == "toy"] == [{"max_steps": 2}]
