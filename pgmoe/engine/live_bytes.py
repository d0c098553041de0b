"""Counts the bytes of tensors that live at once while code runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Forms = dict[object, "Form"]
"""Of what calls return, by all that it depends on."""
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with`: every new tensor's storage counts from its making to its end; views count once.

    On the meta device it finds, without computing, what a computation would hold. Attention counts as torch
    computes it: fused, with no scores in memory, but by plain operations where the value's width is not the
    key's.
    """

    def __init__(
        self, known: Iterable[Tensor] = (), constant: Iterable[Tensor] = (), forms: Forms | None = None
    ) -> None:
        """`known` tensors count 0 while they live and less afterwards; `constant` ones never count.
        `forms`: what earlier runs found, and this one adds to.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes now, less those that were `known`."""
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any] | None] = {t.untyped_storage()._cdata: None for t in constant}
        self._forms = {} if forms is None else forms
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
        made = self._made(func, args, options)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.live += self._watch(leaf)
        self.peak = max(self.peak, self.live)
        return made

    def _made(self, func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """What `func` returns. torch takes a millisecond to find its form: once for all layers."""
        call = None if func._schema.is_mutable else _call(func, args, options)
        if call is not None and call in self._forms:
            return self._forms[call].empty()
        made = func(*args, **options)
        form = Form.of_new(made, (args, options)) if isinstance(made, Tensor) else None
        if call is not None and form is not None:
            self._forms[call] = form
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


@dataclass(frozen=True)
class Form:
    """All there is to a new tensor on the meta device."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of_new(cls, made: Tensor, args: Any) -> Form | None:
        """None for one on another device, or that shares an argument's storage or uses its own in part."""
        form = cls(made.shape, made.stride(), made.dtype)
        storage = made.untyped_storage()
        shared = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor)}
        if not made.is_meta or storage._cdata in shared:
            return None
        return form if form.empty().untyped_storage().nbytes() == storage.nbytes() else None

    def empty(self) -> Tensor:
        """Another like it."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


def _call(func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> object:
    """What the form of a result depends on; None where there is an argument that this does not know."""
    try:
        return func, _known(args), tuple((name, _known(value)) for name, value in sorted(options.items()))
    except TypeError:
        return None


def _known(value: Any) -> object:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError(value.device)
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return type(value), *map(_known, value)
    hash(value)
    return type(value), value
