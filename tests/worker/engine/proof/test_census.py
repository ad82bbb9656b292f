"""The census trusts no method: it measures errors and their order itself, against the weights as they were before."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from app.catalog.precisions import PRECISIONS, parse
from app.catalog.quantizers import Precision
from app.errors import EvaluationFailed
from tests.support.engine.quantized import ARCHITECTURES, NO_AWQ, TORCHAO, texts
from tests.support.factories import tiny_model
from worker.engine import precisions as registry
from worker.engine.layers.linear import matrix, targets
from worker.engine.proof import compensated, nearest
from worker.engine.proof.evidence import errors
from worker.engine.proof.snapshot import take_snapshot

Lie = Callable[[dict[str, torch.Tensor]], object]
APPLICABLE = [name for name, found in PRECISIONS.items() if found.method != "full"]
if not TORCHAO:
    APPLICABLE = [name for name in APPLICABLE if not name.startswith("torchao")]
FAMILIES = [
    "rtn-int8", "rtn-int8-tensor", "rtn-int4-g32", "rtn-int2", "bnb-nf4", "bnb-fp4-dq", "bnb-int8", "gguf-q4_0",
    "gguf-q8_0", "mxfp4", "nvfp4", "gptq-int8-g32", "gptq-int4-g32", "gptq-int4-channel", "awq-int4-g32", *TORCHAO,
]  # fmt: skip
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
KEYS, VALUES = (f"model.layers.0.self_attn.{one}_proj" for one in "kv")
QUERIES, OUTPUT = (f"model.layers.0.self_attn.{one}_proj" for one in "qo")


def shuffled(size: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))


def swap(weights: dict[str, torch.Tensor], one: str, other: str) -> None:
    first = weights[one].clone()
    weights[one].copy_(weights[other])
    weights[other].copy_(first)


def every_tenth(weights: dict[str, torch.Tensor]) -> None:
    weights[QUERIES][::10] = weights[OUTPUT][::10].clone()


LIES: dict[str, Lie] = {
    "zeros": lambda weights: weights[UP].zero_(),
    "one row of zeros": lambda weights: weights[OUTPUT][5].zero_(),
    "every tenth row of another module": every_tenth,
    "rows in another order": lambda weights: weights[UP].copy_(weights[UP][shuffled(len(weights[UP]))]),
    "columns in another order": lambda weights: weights[DOWN].copy_(weights[DOWN][:, shuffled(128)]),
    "two rows that changed places": lambda weights: weights[KEYS].copy_(weights[KEYS][[1, 0, *range(2, 32)]]),
    "two modules that changed places": lambda weights: swap(weights, KEYS, VALUES),
    "twice as large": lambda weights: weights[UP].mul_(2),
    "three quarters": lambda weights: weights[OUTPUT].mul_(0.75),
    "the other sign": lambda weights: weights[OUTPUT].neg_(),
    "one layer's weights in all": lambda weights: [
        weights[name].copy_(weights[name.replace(".1.", ".0.")]) for name in weights if ".1." in name
    ],
}


def heavy(architecture: str = "llama", **changes: Any) -> Any:
    """A model whose linear weights have outliers larger than trained ones': Student's t, 3 degrees of freedom."""
    model = tiny_model(architecture, **changes)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        draw = torch.distributions.StudentT(3.0)
        for module in targets(model).values():
            matrix(module).copy_(draw.sample(matrix(module).shape) * 0.1)
    return model


def apply(model: Any, name: str) -> Any:
    return registry.apply(model, parse(name), calibration=texts() if parse(name).calibration else None)


def lying(monkeypatch: pytest.MonkeyPatch, precision: Precision, lie: Callable[[Any], object]) -> None:
    """A method of this precision that quantizes other weights than the model's: all that it leaves is on a grid."""
    honest = registry.quantizer(precision).apply

    def method(model: Any, *others: Any) -> None:
        with torch.no_grad():
            lie(model)
        honest(model, *others)

    monkeypatch.setattr(registry.quantizer(precision), "apply", method)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("make", [tiny_model, heavy])
def test_other_weights_on_a_valid_grid_are_not_those_that_had_to_be_quantized(
    make: Callable[[], Any], lie: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying(
        monkeypatch,
        parse(name),
        lambda model: LIES[lie]({key: matrix(module).data for key, module in targets(model).items()}),
    )
    with pytest.raises(EvaluationFailed, match=r"of 14 modules.*model\.layers\.\d\..*explain") as failed:
        apply(make(), name)
    assert failed.value.code == "not_quantized"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("parameter", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
                                       "model.layers.0.input_layernorm.weight"])  # fmt: skip
def test_what_is_not_quantized_must_be_there_bit_for_bit(
    parameter: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying(monkeypatch, parse(name), lambda model: model.get_parameter(parameter).view(-1)[3].mul_(0.5))
    with pytest.raises(EvaluationFailed, match=r"which it does not quantize, has changed|explain"):
        apply(tiny_model(), name)


def test_a_method_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry.quantizer(parse("rtn-int4")), "apply", lambda model, precision, ticks, calibration: None
    )
    with pytest.raises(EvaluationFailed, match=r"14 of 14 modules.*off the grid"):
        apply(tiny_model(), "rtn-int4")


def test_an_unquantized_layer_that_was_not_there_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(model: Any) -> None:
        model.model.layers[0].extra = torch.nn.Linear(64, 64)

    lying(monkeypatch, parse("rtn-int4"), add)
    with pytest.raises(EvaluationFailed, match=r"model\.layers\.0\.extra is an unquantized layer"):
        apply(tiny_model(), "rtn-int4")


@pytest.mark.parametrize("name", APPLICABLE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_honest_weights_pass_on_every_layout_with_outliers(architecture: str, name: str) -> None:
    if name.startswith("awq") and architecture in NO_AWQ:
        return
    model = heavy(architecture, hidden_size=128, num_hidden_layers=1, initializer_range=0.02)
    before = {key: matrix(module).detach().clone() for key, module in targets(model).items()}
    proof = apply(model, name)
    assert list(before) == [module.module for module in proof.modules]
    for module in proof.modules:
        assert 0 < module.relative_error <= module.explained_error
        assert module.largest_row_error >= module.relative_error


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_honest_weights_pass_in_16_bits(dtype: torch.dtype, name: str) -> None:
    assert apply(heavy(initializer_range=0.02).to(dtype), name) is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_are_zero_alike_or_tiny_are_no_lie(name: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        weights = {key: module.weight for key, module in targets(model).items()}
        weights[KEYS][:4] = 0
        weights[UP][:, :32] = 0
        weights[OUTPUT][1] = weights[OUTPUT][0]
        weights[QUERIES][2] = 0.999 * weights[QUERIES][3]
        weights[DOWN][7] *= 1e-4
        weights[VALUES][1] *= 1e-3
    assert apply(model, name) is not None


@pytest.mark.parametrize("name", ["gptq-int4-g32", "gptq-int8-g64", "awq-int4-g32"])
def test_neurons_that_no_text_wakes_are_no_lie(name: str) -> None:
    """GPTQ zeroes the columns that read them."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(f"{UP}.weight")[[5, 50]] = 0
    assert apply(model, name) is not None
    if name.startswith("gptq"):
        assert not model.get_parameter(f"{DOWN}.weight")[:, [5, 50]].any()


@pytest.mark.parametrize("name", ["rtn-int8", "rtn-int4-tensor", "bnb-nf4", "bnb-int8", "gguf-q4_0", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_scored(what: float, name: str) -> None:
    """A collapsed model is judged by what it says, not refused."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(f"{UP}.weight")[3, 5] = what
    assert apply(model, name) is not None


def test_the_copies_hold_every_number_in_as_few_bits_as_that_takes() -> None:
    model = tiny_model()
    with torch.no_grad():
        for key, dtype in ((KEYS, torch.bfloat16), (VALUES, torch.float16)):
            model.get_parameter(f"{key}.weight").copy_(model.get_parameter(f"{key}.weight").to(dtype))
        model.get_parameter(f"{UP}.weight")[0, 0] = float("nan")
    kept = take_snapshot(model)
    assert [kept.weights[key].dtype for key in (KEYS, VALUES, QUERIES)] == [
        torch.bfloat16, torch.float16, torch.float32,
    ]  # fmt: skip
    for key, module in targets(model).items():
        assert torch.equal(kept.weights[key].float().nan_to_num(7.0), module.weight.nan_to_num(7.0))
    assert "lm_head.weight" in kept.rest
    assert f"{UP}.weight" not in kept.rest


def test_the_figures_are_their_formulas() -> None:
    torch.manual_seed(0)
    w, q = torch.randn(40, 64), torch.randn(40, 64)
    whole, row = errors(q, w)
    assert whole == pytest.approx(float((q - w).norm() / w.norm()), rel=1e-5)
    assert row == pytest.approx(float(((q - w).norm(dim=1) / w.norm(dim=1)).max()), rel=1e-5)
    assert errors(q, torch.zeros_like(w))[0] == float("inf")
    assert errors(q * 0, w * 0) == (0.0, 0.0)
    by_hand = torch.minimum(w.abs(), w.abs().amax(1, keepdim=True) / 15).norm() / w.norm()
    found = compensated.measure(q, w, 64, compensated.integers(4), 4)
    assert found.explained_error == pytest.approx(5 * float(by_hand), rel=1e-5)
    low, high = nearest.around(torch.tensor([[2.0, 0.0]]), 0.1)
    assert nearest.scale_reason(torch.tensor([[-2.1, 9.0]]), low, high) is None
    assert "has the scale 2.3" in str(nearest.scale_reason(torch.tensor([[2.3, 9.0]]), low, high))


def off(change: Callable[[torch.Tensor], object], bits: int, size: int) -> str | None:
    """What is said of 256 rows of 256 weights that were rounded to nearest, and then changed."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(256, 256, generator=generator)
    groups = w.view(256, -1, size)
    step = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    q = ((groups / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step).view(256, 256)
    change(q)
    return compensated.measure(q, w, size, compensated.integers(bits), bits).reason


def one_small_weight(q: torch.Tensor) -> None:
    place = q[7].abs().argmin()
    q[7, place] += 3 * q[7].abs().max()


def noise(q: torch.Tensor) -> None:
    steps = q.abs().amax(1, keepdim=True) / 127.5
    q += 4 * steps * torch.randn(q.shape, generator=torch.Generator().manual_seed(1))


def a_tenth_of_the_groups(q: torch.Tensor) -> None:
    q.view(-1, 16)[torch.rand(4096, generator=torch.Generator().manual_seed(1)) < 0.1] = 0


@pytest.mark.parametrize(
    ("bits", "size", "change", "said"),
    [
        (8, 256, one_small_weight, "has a row that is .* times as far from the unquantized weights"),
        (4, 256, lambda q: q[7].mul_(0.2), "has a row that keeps 0.2"),
        (4, 256, lambda q: q[:, ::32].zero_(), r"has 8 of 256 columns that do not keep 0\.25 to 1\.75"),
        (8, 256, noise, "^is .* times as far from the unquantized weights"),
        (4, 256, lambda q: q.mul_(0.75), "^keeps 0.7"),
        (4, 16, a_tenth_of_the_groups, "has 4.. of 4096 groups"),
    ],
)  # fmt: skip
def test_each_limit_of_compensated_weights_is_kept_by_itself(
    bits: int, size: int, change: Callable[[torch.Tensor], object], said: str
) -> None:
    assert off(lambda q: None, bits, size) is None
    assert re.search(said, str(off(change, bits, size)))
