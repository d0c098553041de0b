"""The loss of a pass: cross-entropy, a teacher's predictions, and what a family adds for balanced experts.

Shape letters: B batch, S sequence, T labelled tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from pgmoe.training.tokens import UNLABELLED

_AUXILIARY = {
    "aux_loss": "router_aux_loss_coef",
    "encoder_aux_loss": "router_aux_loss_coef",
    "decoder_aux_loss": "router_aux_loss_coef",
    "encoder_z_loss": "router_z_loss_coef",
    "decoder_z_loss": "router_z_loss_coef",
}
"""An output of transformers' MoE models -> the config's option that weights it in the family's own loss."""


@dataclass(frozen=True)
class Loss:
    """The parts of one pass, scalars; `total` alone has a gradient to follow."""

    total: Tensor
    ce: Tensor
    """Sum over labelled tokens over the number that was given, usually that of the whole step."""
    kl: Tensor | None
    """Likewise; None without a teacher."""
    aux: Tensor
    """Mean over passes of what the family adds, already weighted; 0 where it adds nothing."""


@dataclass(frozen=True)
class Objective:
    """total = (1 - w) CE + w t^2 KL(teacher || student at temperature t) + aux (Hinton, arXiv 1503.02531)."""

    shift: bool
    """Whether logits predict the next label, as in decoder-only models, or the one in their own place."""
    distil_weight: float = 0.0
    temperature: float = 1.0

    def of(
        self,
        logits_BSV: Tensor,
        labels_BS: Tensor,
        num_tokens: Tensor | int,
        *,
        aux: Tensor,
        teacher_BSV: Tensor | None = None,
    ) -> Loss:
        """`num_tokens`: labelled tokens to divide the sums by; `aux`: as `auxiliary` gives it."""
        target, place = _labelled(labels_BS, self.shift)
        logits_TV = logits_BSV[place].float()
        ce = functional.cross_entropy(logits_TV, target, reduction="sum") / num_tokens
        if teacher_BSV is None:
            return Loss(ce + aux, ce.detach(), None, aux.detach())
        kl = self._divergence(logits_TV, teacher_BSV[place].float()) / num_tokens
        total = (1 - self.distil_weight) * ce + self.distil_weight * self.temperature**2 * kl + aux
        return Loss(total, ce.detach(), kl.detach(), aux.detach())

    def _divergence(self, student_TV: Tensor, teacher_TV: Tensor) -> Tensor:
        """Summed over tokens. Logits beyond the narrower vocabulary are padding, and left out."""
        width = min(student_TV.shape[-1], teacher_TV.shape[-1])
        student = functional.log_softmax(student_TV[:, :width] / self.temperature, -1)
        teacher = functional.log_softmax(teacher_TV[:, :width] / self.temperature, -1)
        return functional.kl_div(student, teacher, reduction="sum", log_target=True)


def auxiliary(model: PreTrainedModel, output: Any) -> Tensor:
    """What the family's own loss adds to cross-entropy: load balance, Switch's z-loss. Weighted, scalar."""
    terms = [
        getattr(model.config, option, 0.0) * found
        for name, option in _AUXILIARY.items()
        if isinstance(found := getattr(output, name, None), Tensor)
    ]
    return sum(terms, torch.zeros((), device=output.logits.device))


def num_labelled(labels_BS: Tensor, *, shift: bool) -> int:
    """Tokens whose prediction is scored."""
    return int((labels_BS[:, 1:] if shift else labels_BS).ne(UNLABELLED).sum())


def _labelled(labels_BS: Tensor, shift: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Labels (T) and where the logits that predict them are."""
    if shift:
        labels_BS = functional.pad(labels_BS[:, 1:], (0, 1), value=UNLABELLED)
    place = labels_BS.ne(UNLABELLED).nonzero(as_tuple=True)
    return labels_BS[place], place
