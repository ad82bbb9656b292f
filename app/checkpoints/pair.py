"""Whether checkpoints are the same model with other weights: tensors, and every field of config and tokenizer.

Other differences could hide what a model knows: end tokens that end every answer, a window that cuts the prompts,
another tokenizer. Every role is run with the original's tokenizer, end tokens, window and attention anyway
(`worker.engine.checkpoint`). A difference is still refused, or, where the policy allows it by name, reported on the
report's first screen, because it will take effect when the model is deployed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from app.checkpoints.format import configs, content, quantization
from app.checkpoints.format.files import BUFFERS, OUTPUT, CheckpointFiles, Tensor
from app.errors import CheckpointRefused, FieldProblem, InvalidRequest

_SHOWN = 5
_LENGTH = 60

_CONFIG = frozenset(
    {
        # Compared elsewhere, or as the loader understands it.
        "architectures", "vocab_size", "quantization_config", "eos_token_id",
        # Padding is masked, nothing is generated from a BOS, and how the model was or will be trained does not matter.
        "pad_token_id", "bos_token_id", "use_cache", "initializer_range", "initializer_factor", "pretraining_tp",
        "attention_dropout", "hidden_dropout", "classifier_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop",
        "attention_probs_dropout_prob", "hidden_dropout_prob", "summary_first_dropout", "task_specific_params",
        "gradient_checkpointing", "unsloth_version", "unsloth_fixed", "output_attentions", "output_hidden_states",
        "return_dict", "max_length", "id2label", "label2id", "problem_type",
    }
)  # fmt: skip
"""Fields of config.json that may differ."""
_GENERATION = frozenset(
    {
        "transformers_version", "_from_model_config", "eos_token_id", "bos_token_id", "pad_token_id", "do_sample",
        "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams", "max_length", "max_new_tokens", "use_cache",
        "cache_implementation", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
        "return_dict_in_generate", "num_return_sequences",
    }
)  # fmt: skip
"""Fields of generation_config.json that may differ: sampling, lengths; end tokens are compared as they take effect."""
_TOKENIZER = frozenset(
    {
        "name_or_path", "transformers_version", "model_max_length", "padding_side", "truncation_side", "padding",
        "truncation", "max_length", "stride", "pad_token", "pad_token_type_id", "pad_to_multiple_of", "chat_template",
        "special_tokens_map_file", "tokenizer_file", "processor_class", "backend", "is_local", "use_fast", "legacy",
        "clean_up_tokenization_spaces", "add_prefix_space", "added_tokens_decoder", "model_input_names",
        "local_files_only", "_commit_hash",
    }
)  # fmt: skip
"""Fields of tokenizer_config.json that may differ: padding, truncation, chat, and what tokenizer.json says too."""
_SAVED_BY_USE = ("truncation", "padding", "version")
"""Fields of tokenizer.json that using a tokenizer changes."""


class Difference(NamedTuple):
    """A field in which two checkpoints differ."""

    field: str
    """`config.rope_theta`, `generation_config.suppress_tokens`, `tokenizer_config.bos_token`, `tokenizer.json`, …"""
    message: str


def check_pair(a: CheckpointFiles, b: CheckpointFiles, allowed: Collection[str] = ()) -> None:
    """Raise unless two checkpoints are the same model with other weights.

    Architecture, vocabulary size, and the names and shapes of all tensors must agree; dtypes may differ. So must every
    field of configs and tokenizers except those that change nothing (above) and those in `allowed`. A field that only
    one side has is left to the engine, which knows what its absence means (`differing`).

    Raises:
        InvalidRequest: `pair_mismatch`, listing the first differences.
    """
    structure = _structure(a, b)
    refused = [difference for difference in differences(a, b) if difference.field not in allowed]
    if structure or refused:
        raise mismatch(a, b, structure, refused)


def check_structure(a: CheckpointFiles, b: CheckpointFiles) -> None:
    """Raise unless two checkpoints have the same architecture, vocabulary size, and names and shapes of tensors.

    The second may be quantized: then its tensors count as what they unpack to.

    Raises:
        InvalidRequest: `pair_mismatch`, listing the first differences.
    """
    if structure := _structure(a, b):
        raise mismatch(a, b, structure)


def mismatch(
    a: CheckpointFiles, b: CheckpointFiles, structure: Sequence[Difference], fields: Sequence[Difference] = ()
) -> InvalidRequest:
    """The refusal of a pair with these differences."""
    problems = [FieldProblem(field=one.field, message=one.message) for one in (*structure, *fields)]
    advice = ""
    if not structure:
        advice = (
            f". Copy the file from the original, or, if {fields[0].field} is meant to differ, name it in the policy's"
            " allowed_differences"
        )
    shown = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return InvalidRequest(
        "pair_mismatch",
        f"{a.path} and {b.path} are not the same model with other weights: {shown}{more}{advice}",
        errors=problems[:20],
    )


def check_artifact(model: CheckpointFiles, artifact: CheckpointFiles, allowed: Collection[str] = ()) -> None:
    """Raise unless the artifact can be a quantized copy of the model: as `check_pair`, with packed tensors unpacked.

    Raises:
        CheckpointRefused: `checkpoint_unsupported` when it is not quantized.
        InvalidRequest: `pair_mismatch`, listing the first differences.
    """
    if artifact.quantization is None:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{artifact.path} is not quantized (its config.json has no quantization_config), so it is not an artifact;"
            " name a precision in the plan, or audit it as the unlearned checkpoint",
        )
    check_pair(model, artifact, allowed)


def differences(a: CheckpointFiles, b: CheckpointFiles) -> list[Difference]:
    """The fields of configs and tokenizers that both have and that differ, except those that change nothing."""
    found = differing("config", configs.cleaned(a.json(content.CONFIG)), configs.cleaned(b.json(content.CONFIG)))
    if (a.end_tokens and list(a.end_tokens)) != (b.end_tokens and list(b.end_tokens)):
        found.append(Difference("eos_token_id", f"{_short(a.end_tokens)} against {_short(b.end_tokens)}"))
    mine, theirs = a.json(content.GENERATION), b.json(content.GENERATION)
    found += differing("generation_config", mine, theirs, both=False)
    for name in (content.TOKENIZER_CONFIG, content.SPECIAL_TOKENS):
        found += differing(name.removesuffix(".json"), _tokens(a.json(name)), _tokens(b.json(name)))
    names = [name for name in (*content.TOKENIZER,) if name not in (content.TOKENIZER_CONFIG, content.SPECIAL_TOKENS)]
    common = [name for name in names if name in a.contents and name in b.contents]
    if not common:
        vocabularies = [", ".join(name for name in names if name in one.contents) for one in (a, b)]
        found.append(Difference("tokenizer", " against ".join(vocabularies)))
    found += [
        Difference(f"tokenizer.{name}", "its content differs")
        for name in common
        if _meaning(a, name) != _meaning(b, name)
    ]
    return found


def differing(file: str, a: Mapping[str, Any], b: Mapping[str, Any], *, both: bool = True) -> list[Difference]:
    """The fields of two configs that differ.

    Args:
        file: `config`, `generation_config`, `tokenizer_config` or `special_tokens_map`.
        a, b: What the files say, or how the loader understands them.
        both: Compare only the fields that both have; otherwise an absent one counts as null.
    """
    may_differ = {"config": _CONFIG, "generation_config": _GENERATION}.get(file, _TOKENIZER)
    names = a.keys() & b.keys() if both else a.keys() | b.keys()
    return [
        Difference(f"{file}.{_short(name)}", f"{_short(a.get(name))} against {_short(b.get(name))}")
        for name in sorted(names)
        if name not in may_differ and a.get(name) != b.get(name)
    ]


def _structure(a: CheckpointFiles, b: CheckpointFiles) -> list[Difference]:
    if b.quantization is not None:
        shapes = {name: tensor.shape for name, tensor in a.tensors.items()}
        b = replace(b, tensors=quantization.unpacked(b.tensors, b.quantization.bits, shapes))
    found: list[Difference] = []
    if a.architecture != b.architecture:
        found.append(Difference("architecture", f"{a.architecture} against {b.architecture}"))
    if a.vocab_size != b.vocab_size:
        found.append(Difference("vocab_size", f"{a.vocab_size} against {b.vocab_size}"))
    ours, theirs = _comparable(a, b), _comparable(b, a)
    for name in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            found.append(Difference(f"tensors.{name}", f"only in the {'second' if left is None else 'first'}"))
        elif left.shape != right.shape:
            found.append(Difference(f"tensors.{name}", f"{list(left.shape)} against {list(right.shape)}"))
    return found


def _comparable(files: CheckpointFiles, other: CheckpointFiles) -> dict[str, Tensor]:
    """The tensors that both must have: without recomputed buffers, and without a tied output that only one saved."""
    tied = files.may_tie and other.may_tie
    return {
        name: tensor
        for name, tensor in files.tensors.items()
        if not name.endswith(BUFFERS) and not (tied and name in OUTPUT and name not in other.tensors)
    }


def _tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its special tokens as texts: some versions also write how they strip spaces."""
    return {
        key: value["content"] if isinstance(value, dict) and isinstance(value.get("content"), str) else value
        for key, value in config.items()
    }


def _meaning(files: CheckpointFiles, name: str) -> bytes:
    """A tokenizer's file, however it was written."""
    if not name.endswith(".json"):
        return files.contents[name]
    return configs.canonical({key: value for key, value in files.json(name).items() if key not in _SAVED_BY_USE})


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    # JSON may hold half a surrogate pair, which neither a database nor a response can.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _LENGTH else text[:_LENGTH] + "…"
