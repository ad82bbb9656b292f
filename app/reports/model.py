"""The report: verdict, evidence, what was tested and what was not. Anyone can judge its evidence again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import product

from pydantic import Field

from app import __version__, canonical
from app.catalog.frozen import Frozen
from app.catalog.metrics import FORGET_METRICS, METRIC_NAMES, METRICS, MetricId
from app.catalog.plans import Plan
from app.catalog.precisions import PRECISIONS
from app.evidence.artifacts import Named, Of, shipped
from app.evidence.diagnosis import Diagnosis
from app.evidence.evaluation import ROLES, CheckpointInfo, Evaluation, ForgetSetInfo, Role
from app.evidence.quantization import Quantization
from app.judgement import alarms as alarm
from app.judgement import missed, weights
from app.judgement.alarms import Alarm
from app.judgement.corroboration import CORROBORATED
from app.judgement.judge import judge
from app.judgement.policy import Policy, StoredPolicy
from app.judgement.verdict import FULL, Failure, Judgement, Outcome, PrecisionJudgement, Reason, Tests
from app.reports import provenance

SCHEMA = "lethe-report-1"

VERDICT_SENTENCES: dict[Outcome, str] = {
    "robust": "At every precision of the plan these items show the forget set as forgotten, and no recovery beyond the "
    "policy's margin was found; what size of recovery is excluded is stated below.",
    "recovered": "Quantized, the unlearned model knows more of the forget set than in full precision.",
    "not_forgotten": "The unlearned model keeps more of the forget set than the policy allows.",
    "collapsed": "The unlearned model lost its utility, so low scores on the forget set do not show that it was "
    "forgotten.",
    "inconclusive": "The audit cannot tell; the reasons say why.",
}

NEVER_TESTED = (
    "Quantized embeddings and lm_head: here they stay unquantized, while llama.cpp's files (GGUF) and EXL2 quantize "
    "some of them.",
    "Quantization of activations or of the KV cache (except by bnb-int8, which quantizes activations too).",
    "Prompts other than the forget set's: paraphrases, translations, jailbreaks; answers sampled at a temperature.",
    "Relearning: whether a little fine-tuning brings the knowledge back.",
    "Erasure: measuring these items does not prove it; 'certified unlearning' is a different, formal promise.",
)


class AuditInfo(Frozen):
    """Which audit this is."""

    id: str | None = Field(description="Null for an audit that ran without the service.")
    name: str
    created_at: datetime
    finished_at: datetime


class ArtifactInfo(Frozen):
    """An already quantized checkpoint that was audited as it is."""

    name: str
    of: Of
    checkpoint: CheckpointInfo
    quantization: Quantization


class Evidence(Frozen):
    """One evaluation: the scores and the proof, or why there are none."""

    role: Role
    precision: str
    evaluation_id: str | None = None
    reused: bool = Field(default=False, description="It existed before this audit asked for it.")
    evaluation: Evaluation | None = None
    failure: Failure | None = None

    @property
    def result(self) -> Evaluation | Failure:
        """What `judge` takes."""
        return self.evaluation or self.failure or Failure(code="engine_error", detail="no result")


class JudgedAgain(Frozen):
    """The report whose stored evidence was judged again."""

    report: str = Field(description="The digest of that report: SHA-256 over its canonical bytes.")
    audit: str | None = Field(description="Its audit; null for one that ran without the service.")
    lethe: str = Field(description="The version that wrote it.")
    policy_digest: str = Field(description="The policy that it was judged by.")


class AuditReport(Frozen):
    """An audit's outcome."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    lethe: str
    audit: AuditInfo
    verdict: Outcome
    sentence: str = Field(description="The verdict in words.")
    alarms: list[Alarm] = Field(default=[], description="What to check before believing the verdict.")
    reasons: list[Reason]
    missed: list[str] = Field(
        default=[],
        description="What the audit could have missed: the smallest recovery that is excluded, the tests made.",
    )
    tests: Tests | None = Field(
        default=None, description="How many tests were made, by kind of bad outcome; null in older reports."
    )
    precisions: list[PrecisionJudgement]
    not_tested: list[str] = Field(description="What was not tested, so that the report says nothing about it.")
    checkpoints: dict[Role, CheckpointInfo]
    forget_set: ForgetSetInfo
    plan: Plan
    policy: StoredPolicy
    policy_digest: str = Field(description="Fixed before the run.")
    evidence: list[Evidence]
    artifacts: list[ArtifactInfo] = Field(default=[], description="The quantized files that were audited as they are.")
    notes: list[str] = Field(
        default=[],
        description="How to read the figures: the denominators of artifacts, and what these were made from.",
    )
    judged_again: JudgedAgain | None = Field(
        default=None, description="Where the evidence comes from, if this judges an earlier report's evidence again."
    )
    diagnosis: Diagnosis | Failure | None = Field(
        default=None,
        description="What the weights alone show, or why they were not compared. Only whether anything was unlearned "
        "at all affects the verdict.",
    )

    def canonical(self) -> bytes:
        """RFC 8785 canonical JSON: the bytes that are stored, hashed and served."""
        return canonical.dumps(self.model_dump(mode="json", by_alias=True))


def make_report(
    audit: AuditInfo,
    checkpoints: Mapping[Role, CheckpointInfo],
    forget_set: ForgetSetInfo,
    plan: Plan,
    policy: Policy,
    evidence: Sequence[Evidence],
    diagnosis: Diagnosis | Failure | None = None,
    artifacts: Sequence[ArtifactInfo] = (),
    alarms: Sequence[Alarm] = (),
    judged_again: JudgedAgain | None = None,
) -> AuditReport:
    """Judge the evidence and write the report.

    At an artifact's precision, models without an artifact in its format are taken in full precision.

    Args:
        plan: What was requested; a metric of it that was not measured counts as missing.
        diagnosis: Without one the weights were not compared, and no audit is robust.
        alarms: Alarms that do not follow from the evidence; they come first.
        judged_again: The report that the evidence was taken from, if it was.
    """
    results: dict[tuple[Role, str], Evaluation | Failure] = {(e.role, e.precision): e.result for e in evidence}
    pairs = shipped([Named(one.name, one.of, one.quantization) for one in artifacts])
    for pair, role in product(pairs, ROLES):
        if (role, pair.precision) not in results and (role, FULL) in results:
            results[role, pair.precision] = results[role, FULL]
    compared = weights.compare(diagnosis, results, policy)
    judgement = judge(results, plan.precisions, plan.metrics, policy, references(forget_set), weights=compared)
    return AuditReport(
        lethe=__version__,
        audit=audit,
        verdict=judgement.verdict,
        sentence=VERDICT_SENTENCES[judgement.verdict],
        alarms=[*alarms, *alarm.alarms(results, compared), *alarm.disagreements(judgement)],
        reasons=judgement.reasons,
        missed=judgement.missed,
        tests=judgement.tests,
        precisions=judgement.precisions,
        not_tested=_not_tested(judgement, plan, forget_set, retrained="retrained" in checkpoints),
        checkpoints=dict(checkpoints),
        forget_set=forget_set,
        plan=plan,
        policy=policy,
        policy_digest=policy.digest(),
        evidence=list(evidence),
        diagnosis=diagnosis,
        artifacts=list(artifacts),
        notes=[
            *(pair.note for pair in pairs),
            *provenance.notes(pairs, results, diagnosis),
            *missed.over_unlearned(judgement.precisions, policy),
        ],
        judged_again=judged_again,
    )


def references(forget_set: ForgetSetInfo) -> dict[MetricId, float]:
    """The constants of a retrained model that came with the forget set, as `judge` takes them."""
    return {} if forget_set.auc_retrained is None else {"privleak": forget_set.auc_retrained}


def _not_corroborated(judgement: Judgement, plan: Plan) -> list[str]:
    """The metrics that no column could corroborate at some precision."""
    found: dict[str, list[str]] = {}
    for metric in plan.metrics:
        if metric in CORROBORATED:
            for judged in judgement.precisions:
                columns = [column for column in judged.corroboration if column.metric == metric]
                if judged.metrics and all(column.finding == "says_nothing" for column in columns):
                    found.setdefault(METRIC_NAMES[metric], []).append(judged.precision)
    return [
        f"{name} at {', '.join(precisions)}: nothing corroborates its one greedy answer, because no teacher-forced "
        "column that could tell was measured there."
        for name, precisions in found.items()
    ]


def _not_tested(judgement: Judgement, plan: Plan, forget_set: ForgetSetInfo, *, retrained: bool) -> list[str]:
    missing: list[str] = []
    for metric in METRICS:
        name = METRIC_NAMES[metric]
        if metric in forget_set.unavailable:
            missing.append(f"{name}: {forget_set.unavailable[metric]}.")
        elif metric not in plan.metrics:
            missing.append(f"{name}: not in the plan.")
        elif metric not in FORGET_METRICS:
            continue
        elif not any(m.metric == metric and m.outcome for p in judgement.precisions for m in p.metrics):
            why = {r.sentence for p in judgement.precisions for r in p.reasons if r.metric == metric}
            missing.append(f"{name} counted at no precision: {' '.join(sorted(why)) or 'no evaluation measured it.'}")
    missing += _not_corroborated(judgement, plan)
    # Not `parse`: a report is written whatever an older plan may have named.
    tested = {name.partition("@")[0] for name in plan.precisions}
    for method in dict.fromkeys(p.method for p in PRECISIONS.values()):
        names = [p.name for p in PRECISIONS.values() if p.method == method and p.name not in tested]
        if names:
            missing.append(f"Precisions of the method {method} that were not in the plan: {', '.join(names)}.")
    missing.append("Quantizers that this version does not have: GGUF's K-quants and I-quants.")
    if not retrained:
        missing.append(
            "No retrained checkpoint was given. With one, retention would be judged beyond what a model that never saw "
            "the forget set scores, and PrivLeak would have its own reference at every precision."
        )
    return [*missing, *NEVER_TESTED]
