"""Which of a model's modules take kernels of our own, on a CPU that has what they need."""

from __future__ import annotations

import logging

from torch import nn

from pgmoe.cpu.kernels import reason
from pgmoe.models import decoder_layer, kernel_router, linear, norm, plain_block, self_attention
from pgmoe.models.moe_blocks import router_of

_logger = logging.getLogger(__name__)


def use_kernels(model: nn.Module) -> None:
    """Linear layers, norms, routers, attention, MoE blocks, decoder layers. For models that only answer."""
    if any(not parameter.is_cpu for parameter in model.parameters()):
        return
    if (why := reason()) is not None:
        _logger.info("the CPU computes by torch alone: the kernels for it are missing, %s", why)
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            linear.use_kernel(module)
        elif (found := router_of(module)) is not None and not isinstance(found[1], nn.Linear):
            linear.use_kernel_of(found[1])
            kernel_router.use_kernel(found[1])
        norm.use_kernel(module)
    for module in model.modules():  # which consist of these
        self_attention.use_kernel(module)
        plain_block.use_kernel(module)
    for module in model.modules():
        decoder_layer.use_kernel(module)
