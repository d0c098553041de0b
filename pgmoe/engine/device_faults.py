"""Telling a device that has failed for good from a computation that has failed."""

from __future__ import annotations

import torch

from pgmoe.errors import DeviceLost

_LOST = ("CUDA error", "HIP error", "XPU error", "device-side assert", "uncorrectable ECC")


def check_device(error: Exception) -> None:
    """Raise DeviceLost if nothing will run on the device any more; running out of its memory is not that."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return
    if isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _LOST):
        raise DeviceLost(f"the device has failed: {error}; restart the engine") from error
