"""Triton's interpreter, as the kernels need it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def mend_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps bfloat16 as 16-bit integers, and `tl.dot` multiplies these as if they were the numbers."""
    plain_dot = InterpreterBuilder.create_dot

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: Any) -> TensorHandle:
        return plain_dot(self, _as_floats(a), _as_floats(b), *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def _as_floats(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
