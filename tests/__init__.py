"""On a machine without an accelerator Triton's kernels are interpreted.

Triton has to be told before it is imported, which transformers does: hence here, before all tests.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
