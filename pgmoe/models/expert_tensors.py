"""From the pieces of every expert's tensors to the layer's layout and extents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pgmoe.encodings import SCALE, Encoding
from pgmoe.errors import CorruptCheckpoint, UnsupportedModel
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertLayer, Extent
from pgmoe.models.checkpoint import StoredTensor
from pgmoe.models.quantised_tensor import Weight
from pgmoe.models.socket import ExpertSocket

_COMPUTED = {torch.float32, torch.bfloat16, torch.float16}


def lay_out(
    socket: ExpertSocket,
    experts: Sequence[dict[str, list[Weight]]],
    encoding: Encoding,
    expanded: torch.dtype,
) -> ExpertLayer:
    """`experts` has each one's tensors by name, a tensor in pieces of rows where it is stored in several.

    The pieces' shapes are those that the model asks for. Encoded experts are to be computed in `expanded`.
    Raises UnsupportedModel for types that are not served, CorruptCheckpoint for pieces of unequal shapes.
    """
    parts = [_parts(pieces) for pieces in experts]
    shapes = {name: _region_shape(name, pieces, encoding) for name, pieces in parts[0].items()}
    dtypes = _one_dtype(socket, parts) if encoding == "plain" else _own_dtypes(socket, parts)
    return ExpertLayer(
        name=socket.name,
        layout=BlobLayout.pack(shapes, dtypes),
        ffn=ffn_of(socket, encoding),
        extents=tuple(tuple(_extents(of_expert)) for of_expert in parts),
        top_k=socket.top_k,
        encoding=encoding,
        expanded=None if encoding == "plain" else expanded,
    )


def ffn_of(socket: ExpertSocket, encoding: Encoding) -> ExpertFFN:
    """How the socket's experts are computed: from mxfp4, all matrices are (outputs, inputs)."""
    return replace(socket.ffn, transposed=False) if encoding == "mxfp4" else socket.ffn


def _parts(pieces: dict[str, list[Weight]]) -> dict[str, list[StoredTensor]]:
    """One expert's tensors as they are stored, scales apart."""
    return {
        name + behind: [piece.parts[behind] for piece in weights]
        for name, weights in pieces.items()
        for behind in weights[0].parts
    }


def _region_shape(name: str, pieces: list[StoredTensor], encoding: Encoding) -> tuple[int, ...]:
    """Pieces lie one below the other; each has a grid of fp8 scales of its own."""
    rows, *rest = pieces[0].shape
    if any(piece.shape != pieces[0].shape for piece in pieces):
        raise CorruptCheckpoint(
            f"{pieces[0].path}: {' and '.join(p.key for p in pieces)} are {[p.shape for p in pieces]}; "
            "they must be of one shape; config.json and weights are not of the same model"
        )
    grids = encoding == "fp8_block" and name.endswith(SCALE)
    return (len(pieces), rows, *rest) if grids else (len(pieces) * rows, *rest)


def _one_dtype(socket: ExpertSocket, parts: list[dict[str, list[StoredTensor]]]) -> torch.dtype:
    stored = [piece for of_expert in parts for pieces in of_expert.values() for piece in pieces]
    dtypes = {piece.dtype for piece in stored}
    if len(dtypes) > 1 or not dtypes <= _COMPUTED:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise UnsupportedModel(
            f"{stored[0].path}: {socket.name} stored as {names}; all experts must be of one type, float32, "
            "bfloat16 or float16: convert the checkpoint"
        )
    return dtypes.pop()


def _own_dtypes(socket: ExpertSocket, parts: list[dict[str, list[StoredTensor]]]) -> dict[str, torch.dtype]:
    """Values, scales and biases may differ, but each must be of one type in all experts."""
    found = {}
    for name in parts[0]:
        dtypes = {piece.dtype for of_expert in parts for piece in of_expert[name]}
        encoded = name.endswith(SCALE) or name + SCALE in parts[0]
        if len(dtypes) > 1 or not (encoded or dtypes <= _COMPUTED):
            names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
            raise UnsupportedModel(
                f"{parts[0][name][0].path}: {name} of {socket.name} stored as {names}; it must be of "
                "one type in all experts: convert the checkpoint"
            )
        (found[name],) = dtypes
    return found


def _extents(of_expert: dict[str, list[StoredTensor]]) -> list[Extent]:
    extents = []
    for name, pieces in of_expert.items():
        place = 0
        for piece in pieces:
            extents.append(Extent(piece.path, piece.offset, piece.nbytes, name, place))
            place += piece.nbytes
    return extents
