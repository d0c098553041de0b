from __future__ import annotations

import pytest
import torch

from pgmoe.engine.device_faults import check_device
from pgmoe.errors import DeviceLost


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("an illegal memory access was encountered"),
    ],
)
def test_a_device_that_is_lost_is_told_from_what_merely_failed(error: Exception) -> None:
    with pytest.raises(DeviceLost, match="restart the engine") as caught:
        check_device(error)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error"),
    ],
)
def test_what_merely_failed_is_not(error: Exception) -> None:
    check_device(error)
