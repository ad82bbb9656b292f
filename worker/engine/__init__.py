"""Pure science: usable as a library, without a service, database or broker."""

import logging

# gptqmodel installs torchao, which transformers imports if it is there; it warns of CUDA libraries that it lacks.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
