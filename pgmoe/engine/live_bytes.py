"""Counts the bytes of tensors that live at once while code runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with`: every new tensor's storage counts from its making to its end; views count once.

    On the meta device it finds, without computing, what a computation would hold. Attention counts as torch
    computes it: fused, with no scores in memory, but by plain operations where the value's width is not the
    key's.
    """

    def __init__(self, known: Iterable[Tensor] = (), constant: Iterable[Tensor] = ()) -> None:
        """`known` tensors count 0 while they live and less afterwards; `constant` ones never count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes now, less those that were `known`."""
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any] | None] = {t.untyped_storage()._cdata: None for t in constant}
        for tensor in known:
            self._watch(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is _ATTENTION and args[0].shape[-1] != args[2].shape[-1]:
            with self:
                return func.decompose(*args, **options)
        made = func(*args, **options)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.live += self._watch(leaf)
        self.peak = max(self.peak, self.live)
        return made

    def _watch(self, tensor: Tensor) -> int:
        """Bytes of its storage, if that is new here."""
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._alive:
            return 0

        def gone(_: object) -> None:
            self.live -= num_bytes
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        return num_bytes
