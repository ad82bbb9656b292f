"""Which weights a precision quantizes: every linear layer of the decoder, but not embeddings or the output layer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.catalog.quantizers import QUANTIZERS, Precision
from app.errors import EvaluationFailed

Linear = nn.Linear | Conv1D
_TOLERATED = 0.02


@dataclass(frozen=True)
class Survey:
    """An unquantized model's parameters, by what a precision does with them."""

    shapes: Mapping[str, tuple[int, int]]
    """Module -> (out_features, in_features), for every module that is to be quantized."""
    left_out: Mapping[str, int]
    """What stays unquantized -> parameters."""

    @property
    def quantized(self) -> int:
        """Parameters that are to be quantized."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    @property
    def total(self) -> int:
        """Parameters of the model; shared ones count once."""
        return self.quantized + sum(self.left_out.values())


def matrix(module: Linear) -> Tensor:
    """The weight as [out_features, in_features], a view: GPT-2's Conv1D stores it transposed."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def targets(model: PreTrainedModel) -> dict[str, Linear]:
    """The linear layers that a precision quantizes, by name. A weight that two modules share is named once."""
    output = _output(model)
    kept = {id(module.weight) for module in (output, model.get_input_embeddings()) if module is not None}
    found: dict[str, Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output and id(module.weight) not in kept:
            kept.add(id(module.weight))
            found[name] = module
    return found


def _output(model: PreTrainedModel) -> nn.Module | None:
    module: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return module


def survey(model: PreTrainedModel) -> Survey:
    """Which weights of an unquantized model are to be quantized, and which stay.

    Raises:
        EvaluationFailed: `precision_unavailable` when weights of some size would silently stay because they are not
            linear layers (experts held as one 3-dimensional parameter).
    """
    linear = targets(model)
    names = {id(module): name for name, module in model.named_modules()}
    quantized = {id(module.weight) for module in linear.values()}
    outer = {
        id(module.weight): names[id(module)]
        for module in (_output(model), model.get_input_embeddings())
        if module is not None
    }
    left: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if id(parameter) in quantized:
            continue
        module_name = name.rpartition(".")[0]
        is_embedding = isinstance(model.get_submodule(module_name), nn.Embedding)
        if id(parameter) in outer or is_embedding:
            left[outer.get(id(parameter), module_name)] += parameter.numel()
        elif parameter.ndim < 2:
            left["norms and biases"] += parameter.numel()
        else:
            left[name] += parameter.numel()
            missed[name] += parameter.numel()
    shapes = {name: (matrix(module).shape[0], matrix(module).shape[1]) for name, module in linear.items()}
    found = Survey(shapes, dict(left))
    if missed.total() > _TOLERATED * (found.quantized + missed.total()):
        worst, size = missed.most_common(1)[0]
        raise EvaluationFailed(
            "precision_unavailable",
            f"{len(missed)} weights ({worst}: {size} parameters, ...) are not linear layers and would stay unquantized;"
            f" {type(model).__name__} can be evaluated at 'full' only",
        )
    return found


def check_groups(found: Survey, precision: Precision) -> None:
    """Raise unless the group size divides every weight's columns (engine/README.md, "Uneven groups").

    Otherwise one library refuses, and another quantizes silently and fails later. Blocks that may cross rows
    (bitsandbytes') are checked where they are applied.

    Raises:
        EvaluationFailed: `precision_unavailable`, saying which precision to use.
    """
    size, quantizer = precision.group_size, QUANTIZERS[precision.method]
    if size is None or quantizer.blocks_cross_rows:
        return
    for name, (_, columns) in found.shapes.items():
        if columns % size:
            instead = quantizer.uneven.format(method=precision.method, bits=precision.bits)
            raise EvaluationFailed(
                "precision_unavailable",
                f"{precision.name}: groups of {size} do not divide the {columns} columns of {name}; {instead}",
            )
