"""KnowMem (MUSE, M2 on the forget set, M4 on the retain set): does the model answer questions about it?"""

from collections.abc import Sequence

from app.catalog.metrics import MetricId
from app.evidence.evaluation import GenerationScores
from app.forget_sets.bundle import Bundle
from app.forget_sets.items import QA
from worker.engine.muse.forced import forced, join
from worker.engine.muse.generate import greedy
from worker.engine.muse.rouge import rouge_l
from worker.engine.muse.subject import Progress, Subject

NEW_TOKENS = 32
STOP = ("\n\n", "\nQuestion", "Question:")


def measure(subject: Subject, bundle: Bundle, metric: MetricId, progress: Progress, seed: int) -> GenerationScores:
    """KnowMem on the metric's questions of a bundle; the seed is not used."""
    if metric == "knowmem_forget":
        return knowmem(subject, bundle.forget_qa, bundle.forget_qa_icl, metric, progress)
    return knowmem(subject, bundle.retain_qa, bundle.retain_qa_icl, metric, progress)


def knowmem(
    subject: Subject,
    items: Sequence[QA],
    examples: Sequence[QA],
    stage: MetricId,
    progress: Progress,
) -> GenerationScores:
    """ROUGE-L F1 of the greedy answer (32 new tokens, cut where the next question begins) against the true one.

    Extras: the columns of `forced` for the true answer after the same prompt, and for the perturbed ones, if any.
    Source: muse_bench metrics/knowmem.py.
    """
    new_tokens = subject.new_tokens(NEW_TOKENS)
    asked = [prompt(item.question, examples) for item in items]
    prompts = [subject.encode_prompt(text, new_tokens) for text in asked]
    told = [
        [join(subject, text, answer) for answer in (item.answer, *item.perturbed)]
        for text, item in zip(asked, items, strict=True)
    ]
    total = len(items) + sum(map(len, told))
    outputs = greedy(
        subject,
        [ids for ids, _ in prompts],
        new_tokens,
        stop=STOP,
        tick=lambda done: progress(stage, done, total),
    )
    scores = [
        rouge_l(item.answer, cut(subject.decode(output.ids))) if output.finite else 0.0
        for item, output in zip(items, outputs, strict=True)
    ]
    evidence = forced(subject, told, lambda done: progress(stage, len(items) + done, total))
    flags = {
        "prompt_truncated": [i for i, (_, was_cut) in enumerate(prompts) if was_cut],
        "non_finite": [i for i, output in enumerate(outputs) if not output.finite],
        "new_tokens_reduced": list(range(len(items))) if new_tokens < NEW_TOKENS else [],
        **evidence.flags,
    }
    return GenerationScores(
        scores=scores, flags={flag: found for flag, found in flags.items() if found}, extras=evidence.columns
    )


def prompt(question: str, examples: Sequence[QA]) -> str:
    """The few-shot prompt; it ends with `Answer: `, including the space."""
    shots = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in examples)
    return f"{shots}Question: {question}\nAnswer: "


def cut(text: str) -> str:
    """The text cut at each stop string in turn."""
    for word in STOP:
        text = text.split(word)[0]
    return text
