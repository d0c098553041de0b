"""An input embedding that stays in its file: a token needs one row of it, and nothing is multiplied by it."""

from __future__ import annotations

import os
import weakref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgmoe.errors import CorruptCheckpoint, WeightReadError
from pgmoe.file_stamp import FileStamp
from pgmoe.models.checkpoint import Checkpoint, StoredTensor


class StoredEmbedding(nn.Module):
    """Gives the rows that `nn.Embedding` would, read when they are asked for; the kernel keeps those in use.

    They are read and not mapped: a file that is cut short while serving is an error of one request, not the
    end of the process.
    """

    def __init__(self, stored: StoredTensor, dtype: torch.dtype) -> None:
        """`stored` is (V, D) of any type; rows come out in `dtype`. Raises CorruptCheckpoint."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = stored.shape
        self._stored = stored
        self._dtype = dtype
        try:
            self._file = os.open(stored.path, os.O_RDONLY)
            self._stamp = FileStamp(self._file)
        except OSError as error:
            raise CorruptCheckpoint(f"{stored.path}: {error.strerror}; copy the file again") from error
        os.posix_fadvise(self._file, stored.offset, stored.nbytes, os.POSIX_FADV_RANDOM)
        self._closer = weakref.finalize(self, os.close, self._file)

    def close(self) -> None:
        """Give back the file, as the end of the model would. Nothing is looked up after it."""
        self._closer()
        self._file = -1

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids of any shape, on the CPU -> (..., D). Raises IndexError, WeightReadError."""
        tokens, places = torch.unique(ids, return_inverse=True)
        if len(tokens) and not 0 <= int(tokens[0]) <= int(tokens[-1]) < self.num_embeddings:
            raise IndexError(
                f"token ids {int(tokens[0])} to {int(tokens[-1])}: there are {self.num_embeddings} rows"
            )
        rows = torch.empty(len(tokens), self.embedding_dim, dtype=self._stored.dtype)
        for row, token in zip(rows.view(torch.uint8).numpy(), tokens.tolist(), strict=True):
            self._read(row.data, token)
        change = self._stamp.change()
        if change is not None:
            raise WeightReadError(f"{self._stored.key}: {self._stored.path}: {change}")
        return rows[places].to(self._dtype)

    def _read(self, row: memoryview, token: int) -> None:
        begin, done = self._stored.offset + token * len(row), 0
        while done < len(row):
            try:
                count = os.preadv(self._file, [row[done:]], begin + done)
            except OSError as error:
                raise WeightReadError(f"{self._stored.key}: {self._stored.path}: {error.strerror}") from error
            if not count:
                raise WeightReadError(
                    f"{self._stored.key}: {self._stored.path} ends inside it: truncated; copy the file again"
                )
            done += count


def find_embedding(model: PreTrainedModel, checkpoint: Checkpoint) -> StoredTensor | None:
    """The input embedding of `model` in its checkpoint, if it can stay there.

    None where other layers use the same weights, where it does more than look up, or where it is quantised or
    stored under another name.
    """
    embedding = model.get_input_embeddings()
    if model.config.is_encoder_decoder or type(embedding) is not nn.Embedding:
        return None
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is embedding.weight]
    if len(names) > 1:  # tied, to the output layer for one
        return None
    stored = checkpoint.tensors.get(names[0])
    if stored is None or stored.shape != tuple(embedding.weight.shape):
        return None
    return None if stored.dtype == torch.float8_e4m3fn else stored  # rows of blocks that share scales
