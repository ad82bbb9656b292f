"""Whether two models compute the same, on whatever CPU."""

from typing import Any

import torch


def agree(one: Any, other: Any, ids: torch.Tensor) -> bool:
    """Whether their logits are the same but for the order in which a kernel adds, and where it rounds.

    By the norm of the difference, within 8 of the type's epsilon, and 1e-5 in float32: gptqmodel's kernels and torch's
    were 0.8 of float16's apart on an AMD CPU with AVX512-BF16. The weights before quantization, or misread ones, are
    0.4 and more apart (at 4 bits).
    """
    with torch.inference_mode():
        ours, theirs = one(ids).logits, other(ids).logits
    allowed = max(8 * torch.finfo(ours.dtype).eps, 1e-5)
    return bool((ours.float() - theirs.float()).norm() <= allowed * theirs.float().norm())
