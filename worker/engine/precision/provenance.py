"""Whether an artifact was made from the checkpoint that it is said to be of, told from both files' weights.

Two things must hold. What a quantizer leaves alone (embeddings, norms, output layer) equals the base's, rounded to the
artifact's dtype. And of the quantized layers at most half are further from the base's than their bits can explain:

    error = ||W - W_base||_F / ||W_base||_F,    W as the live layer computes with it

Formats of 4 bits give 0.09 to 0.15, of 8 bits 0.006 to 0.025; unrelated weights of one scale give sqrt(2).

AWQ and SmoothQuant multiply a layer's columns (and, before another linear layer, its rows) by factors that they divide
out of the norm or layer in front, so that W is near diag(r) W_base diag(c). There r and c are fitted by least squares
and undone first: the error is that of diag(1/r) W diag(1/c).

Tensors of the base are read one at a time. Rotations (QuaRot, SpinQuant) change embeddings too, and are refused.
"""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from app.checkpoints.files import BUFFERS, CheckpointFiles
from app.errors import EvaluationFailed
from app.reports.schemas import ModuleCensus, Provenance
from worker.engine.precision import stored

_LIMITS = ((8, 0.25), (4, 0.7), (0, 0.98))
"""(at least so many bits, the largest error that they explain).

Rounding to nearest never loses more than the weights themselves (1.0); unrelated weights do. Drawn from Student's t
with 3 degrees of freedom, whose outliers are larger than trained weights', rounding gave 0.20 at 8 bits per tensor, and
per channel 0.50 at 4 bits, 0.70 at 3, 0.85 at 2. GPTQ's errors are somewhat larger.
"""
_RESCALE = ("awq", "compressed-tensors")
"""quant_methods that may hold rescaled weights."""
_FITS = 3


class Comparison:
    """An artifact beside its base; asked for each quantized module once, then for what follows."""

    def __init__(self, base: CheckpointFiles, artifact: CheckpointFiles, alive: Callable[[], None]) -> None:
        """Compares what the artifact holds unquantized.

        Args:
            base: The checkpoint that it is said to be of; tensors of the same names and shapes (`check_artifact`).
            artifact: The artifact.
            alive: Called now and then; may raise to stop.

        Raises:
            EvaluationFailed: `artifact_not_of_pair`.
        """
        assert artifact.quantization is not None
        self._base, self._artifact = base, artifact
        self._why: dict[str, str] = {}
        differ, self._identical = _untouched(base, artifact, alive)
        self._rescaled = artifact.quantization.method == "awq" or bool(differ)
        for name in differ:
            within_layer = artifact.quantization.method in _RESCALE and stored.LAYER.search(name)
            if not within_layer or not self._only_rescaled(name):
                raise self._refused(
                    f"its {name}, which is not quantized, does not equal that of {base.path} in"
                    f" {artifact.tensors[name].dtype}"
                )

    def error(self, module: str, weight: Tensor) -> float | None:
        """The relative error of a live weight [out, in]; None where the base has none to compare it with."""
        linear = stored.linear(self._base, module)
        if linear is None:
            self._why[module] = f"{self._base.path} stores no {module}.weight as plain floating-point numbers"
            return None
        found = _error(weight, linear.read(0, linear.shape[0]).to(weight.device), self._rescaled)
        if found is None:
            self._why[module] = f"{module}.weight of {self._base.path} is all zeros"
        return found

    def conclude(self, modules: list[ModuleCensus], digest: str) -> Provenance:
        """The finding over all modules.

        Raises:
            EvaluationFailed: `artifact_not_of_pair`.
        """
        known = [(one.relative_error, one) for one in modules if one.relative_error is not None]
        if not known:
            raise self._refused(f"none of its modules can be compared: {next(iter(self._why.values()))}")
        typical = median(error for error, _ in known)
        if median(error / _limit(one.bits) for error, one in known) > 1:
            bits = " and ".join(str(bits) for bits in sorted({one.bits for _, one in known}))
            raise self._refused(
                f"the median relative error of its {len(known)} modules is {typical:.3g}, more than {bits} bits"
                f" explain (at most {max(_limit(one.bits) for _, one in known):g})"
            )
        return Provenance(
            base=digest,
            median_error=typical,
            rescaled=self._rescaled,
            identical=self._identical,
            not_compared=self._why,
        )

    def _only_rescaled(self, name: str) -> bool:
        """Whether a tensor inside a rescaled layer, which no quantizer touched otherwise, is the base's."""
        if len(self._base.tensors[name].shape) != 2:
            return True
        ours, theirs = (torch.cat(list(stored.chunks(files, name))).float() for files in (self._artifact, self._base))
        error = _error(ours, theirs, rescaled=True)
        return error is not None and error <= _limit(8)

    def _refused(self, why: str) -> EvaluationFailed:
        return EvaluationFailed(
            "artifact_not_of_pair",
            f"{self._artifact.path} was not made from {self._base.path}: {why}; name the checkpoint that was quantized,"
            " or quantize this one anew",
        )


def _untouched(base: CheckpointFiles, artifact: CheckpointFiles, alive: Callable[[], None]) -> tuple[list[str], int]:
    """Of the tensors that the artifact holds as the base does: the names of those that differ, how many are equal."""
    differ: list[str] = []
    same = 0
    for name, tensor in artifact.tensors.items():
        other = base.tensors.get(name)
        if other is None or other.shape != tensor.shape or name.endswith(BUFFERS):
            continue
        if not stored.DTYPES.keys() >= {tensor.dtype, other.dtype}:
            continue
        equal = True
        for ours, theirs in zip(stored.chunks(artifact, name), stored.chunks(base, name), strict=True):
            alive()
            equal = equal and _rounded(ours, theirs)
        same += equal
        differ += [] if equal else [name]
    return differ, same


def _rounded(ours: Tensor, theirs: Tensor) -> bool:
    """Whether these are the base's numbers in our dtype, perhaps by way of the 16 bits that a quantizer computed in."""
    ours = ours.nan_to_num()
    ways = (theirs.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(ours, theirs.to(way).to(ours.dtype).nan_to_num()) for way in ways)


def _error(weight: Tensor, base: Tensor, rescaled: bool) -> float | None:
    """||W - W_base||_F / ||W_base||_F, with factors per row and column undone first where those were `rescaled`."""
    w, b = (x.float().nan_to_num(0.0, 0.0, 0.0) for x in (weight, base))
    size = _norm(b)
    if not size:
        return None
    if rescaled:
        rows, columns = _factors(w, b)
        w = (w / (rows * columns)).nan_to_num(0.0, 0.0, 0.0)
    return _norm(w - b) / size


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _factors(w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """r [out, 1] and c [1, in] that bring diag(r) b diag(c) near w, by least squares in turns."""

    def ratio(fitted: Tensor, dim: int) -> Tensor:
        return ((w * fitted).sum(dim, keepdim=True) / (fitted * fitted).sum(dim, keepdim=True)).nan_to_num(1.0)

    rows = torch.ones(w.shape[0], 1, device=w.device)
    for _ in range(_FITS):
        columns = ratio(rows * b, 0)
        rows = ratio(b * columns, 1)
    return rows, columns


def _limit(bits: int) -> float:
    return next(limit for least, limit in _LIMITS if bits >= least)
