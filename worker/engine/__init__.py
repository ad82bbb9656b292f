"""Pure science: usable as a library with no service, database or broker around it."""

import logging

# gptqmodel brings torchao, which transformers imports wherever it is there; it warns of CUDA libraries that it lacks.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
