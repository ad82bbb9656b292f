"""Whether an artifact was made from the checkpoint that it is said to be made from, by comparing their weights.

Two things must hold. What a quantizer leaves alone (embeddings, norms, output layer) equals the base's, rounded to the
artifact's dtype. And every quantized layer is as close to the base's as its bits explain, by the census' own bounds:
`nearest` for bitsandbytes, `compensated` for what GPTQ, AWQ and others may have made, where the median over all modules
is bounded too. A layer for which the base stores no weight cannot be compared, so it is refused.

AWQ and SmoothQuant multiply a layer's columns (and, before another linear layer, its rows) by factors that they divide
out of the norm or layer in front. No factor is accepted unchecked: see `rescaling`.

Tensors of the base are read one at a time. Rotations (QuaRot, SpinQuant) change embeddings too, and are refused.
"""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.checkpoints.format.files import BUFFERS, OUTPUT, CheckpointFiles
from app.errors import EvaluationFailed
from app.evidence.evaluation import ModuleCensus, Provenance
from worker.engine import stored
from worker.engine.artifacts.quantized_module import QuantizedModule
from worker.engine.proof import compensated, nearest
from worker.engine.proof.compensated import TYPICAL
from worker.engine.proof.evidence import Evidence, errors
from worker.engine.proof.rescaling import Rescaling
from worker.engine.quantizers.bnb import bnb, eight_bit, four_bit, int8_state

_RESCALE = ("awq", "compressed-tensors")
"""quant_methods that may hold rescaled weights."""
_UNQUANTIZED = 0.05
"""The relative error of a rescaled layer that stayed in 16 bits: its rounding, and factors fitted to 4-bit layers."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_BY_WAY = 2.0**-8
"""How much bitsandbytes' weights may differ because they were held in bfloat16 before."""


class Comparison:
    """An artifact compared with its base: call it for every linear layer in `ordered`'s order, then for the finding."""

    def __init__(
        self,
        base: CheckpointFiles,
        artifact: CheckpointFiles,
        model: PreTrainedModel,
        shapes: Mapping[str, tuple[int, int]],
        alive: Callable[[], None],
    ) -> None:
        """Compares what the artifact holds unquantized.

        Args:
            base: The checkpoint that it is said to be made from; its tensors have the same names and shapes
                (`check_artifact`).
            artifact: The artifact.
            model: The artifact as it was opened.
            shapes: Its linear layers, [out, in].
            alive: Called from time to time; may raise to stop.

        Raises:
            EvaluationFailed: `artifact_not_of_pair`.
        """
        assert artifact.quantization is not None
        self._base, self._artifact, self._shapes = base, artifact, shapes
        self._names = [*(name for name, _ in model.named_parameters()), *(f"{name}.weight" for name in shapes)]
        self._used: list[float] = []
        self._differ, self._identical = _untouched(base, artifact, alive)
        self._method = artifact.quantization.method
        self._rescaled = self._method == "awq" or bool(self._differ)
        self._rescaling = _rescaling(base, model, shapes) if self._rescaled else None
        for name in self._differ:
            within = self._method in _RESCALE and stored.LAYER.search(name)
            if not within or self._rescaling is None or not self._rescaling.known:
                raise self._unequal(name)

    def ordered(self) -> list[str]:
        """The linear layers, in the order in which they must be asked for."""
        return self._rescaling.ordered() if self._rescaling else list(self._shapes)

    def evidence(self, module: str, live: Any, quantized: QuantizedModule) -> Evidence:
        """The figures of a quantized layer.

        Raises:
            EvaluationFailed: `artifact_not_of_pair` when its bits do not explain the figures, or there are none.
        """
        original = self._original(module).to(quantized.weight.device)
        if isinstance(live, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            found = _bitsandbytes(live, quantized, original)
        else:
            found = self._compensated(module, quantized, original)
            self._used.append(found.used)
        if found.reason is not None:
            raise self._refused(f"its {module} {found.refusal}")
        return found

    def _compensated(self, module: str, quantized: QuantizedModule, original: Tensor) -> Evidence:
        weight, columns = quantized.weight, original.shape[1]
        factors = self._rescaling.factors(module, weight, original) if self._rescaling else None
        if quantized.order is not None:
            order = quantized.order.to(weight.device)
            weight, original = weight[:, order], original[:, order]
            factors = factors and (factors[0], factors[1][:, order])
        size = quantized.group_size if quantized.group_size and columns % quantized.group_size == 0 else columns
        shared = quantized.granularity not in ("channel", "group")
        peak = float(original.nan_to_num(0.0, 0.0, 0.0).abs().max()) if shared else None
        steps = (compensated.floats if quantized.floating else compensated.integers)(quantized.bits, peak)
        clipped = factors is not None and self._method == "awq"
        limits = compensated.CLIPPED if clipped else None
        return compensated.measure(weight, original, size, steps, quantized.bits, factors, limits)

    def unquantized(self, module: str, live: Any) -> None:
        """Compares a linear layer that the artifact leaves in 16 bits but may have rescaled.

        Raises:
            EvaluationFailed: `artifact_not_of_pair`.
        """
        if self._rescaling is None:
            return
        weight = live.weight.detach()
        original = self._original(module).to(weight.device)
        error, row = errors(weight, original, self._rescaling.factors(module, weight, original))
        if not max(error, row / 4) <= _UNQUANTIZED:
            raise self._unequal(f"{module}.weight")

    def conclude(self, modules: list[ModuleCensus], digest: str) -> Provenance:
        """The finding over all modules.

        Raises:
            EvaluationFailed: `artifact_not_of_pair`.
        """
        for name in self._differ:
            live = next((one for one in self._names if name in (one, one.partition(".")[2])), name)
            asked = live.removesuffix(".weight") in self._shapes
            if not (asked or (self._rescaling is not None and self._rescaling.explains(live))):
                raise self._unequal(name)
        if self._used and median(self._used) > TYPICAL:
            raise self._refused(
                f"the median over its {len(self._used)} modules is {median(self._used) / TYPICAL:.3g} times as far from"
                " that checkpoint's weights as its bits explain"
            )
        return Provenance(
            base=digest,
            median_error=median(one.relative_error for one in modules if one.relative_error is not None),
            rescaled=self._rescaled,
            identical=self._identical,
        )

    def _original(self, module: str) -> Tensor:
        linear = stored.linear(self._base, module)
        if linear is None:
            raise self._refused(
                f"its {module} cannot be compared, because {self._base.path} stores no {module}.weight as plain"
                " floating-point numbers"
            )
        return linear.read(0, linear.shape[0])

    def _unequal(self, name: str) -> EvaluationFailed:
        files = self._artifact.tensors
        dtype = f" in {files[name].dtype}" if name in files else ""
        return self._refused(f"its {name}, which is not quantized, does not equal that of {self._base.path}{dtype}")

    def _refused(self, why: str) -> EvaluationFailed:
        return EvaluationFailed(
            "artifact_not_of_pair",
            f"{self._artifact.path} was not made from {self._base.path}: {why}; give the checkpoint that was quantized,"
            " or quantize this one again",
        )


def _bitsandbytes(live: Any, quantized: QuantizedModule, original: Tensor) -> Evidence:
    if quantized.bits == 4:
        grid, (low, high) = four_bit(live.weight.quant_state, original, _BY_WAY)
    else:
        grid, (low, high) = eight_bit(int8_state(live)[1], original, _BY_WAY)
    found = nearest.measure(quantized.weight, original, grid)
    return found._replace(reason=nearest.scale_reason(grid.scale, low, high) or found.reason)


def _rescaling(base: CheckpointFiles, model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]]) -> Rescaling:
    parameters = dict(model.named_parameters())

    def before(name: str) -> Tensor | None:
        for stem in (name, name.partition(".")[2]):
            if stem in base.tensors and base.tensors[stem].dtype in stored.DTYPES:
                return torch.cat(list(stored.chunks(base, stem)))
        return None

    def now(name: str) -> Tensor | None:
        return parameters[name].detach().cpu() if name in parameters else None

    return Rescaling(model, shapes, before, now)


def _untouched(base: CheckpointFiles, artifact: CheckpointFiles, alive: Callable[[], None]) -> tuple[list[str], int]:
    """Of the tensors that the artifact leaves unquantized: the names of those that differ, and how many are equal."""
    differ: list[str] = []
    same = 0
    for name, tensor in artifact.tensors.items():
        counterpart = _counterpart(base, name)
        other = base.tensors.get(counterpart)
        if other is None or other.shape != tensor.shape or name.endswith(BUFFERS):
            continue
        if not stored.DTYPES.keys() >= {tensor.dtype, other.dtype}:
            continue
        equal = True
        for ours, theirs in zip(stored.chunks(artifact, name), stored.chunks(base, counterpart), strict=True):
            alive()
            equal = equal and _rounded(ours, theirs)
        same += equal
        differ += [] if equal else [name]
    return differ, same


def _rounded(ours: Tensor, theirs: Tensor) -> bool:
    """Whether these are the base's numbers in this dtype, perhaps via the 16-bit dtype that a quantizer computed in."""
    ours = ours.nan_to_num()
    ways = (theirs.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(ours, theirs.to(way).to(ours.dtype).nan_to_num()) for way in ways)


def _counterpart(base: CheckpointFiles, name: str) -> str:
    """The base's tensor that one of the artifact's must equal; for a tied output layer, the embeddings."""
    if name in OUTPUT and name not in base.tensors:
        return next((other for other in base.tensors if other.endswith(_EMBEDDINGS)), name)
    return name
