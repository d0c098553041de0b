"""Guessing experts by asking routers early: how often that is right, the further ahead the less.

Shape letters: N tokens, D model width, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pgmoe.bench.arms.engine import EngineArm, LoadedEngine
from pgmoe.bench.compare import Progress
from pgmoe.bench.guesses_result import GuessesResult, Recall
from pgmoe.bench.job import Place
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.result import current_commit, now
from pgmoe.errors import ConfigError
from pgmoe.layout import ExpertLayer
from pgmoe.models.moe import RoutedExperts
from pgmoe.models.routers import look_aheads
from pgmoe.models.tokenizer import load_tokenizer

LENGTH = 256
"""Tokens of a document that are read, in one pass."""


@dataclass
class _Seen:
    """What one layer was given in one pass."""

    hidden: Tensor
    """(N, D)."""
    chosen: Tensor
    """(N, K)."""


class _Watched:
    """In place of a layer's experts: computes with them, and keeps what they were given."""

    def __init__(self, index: int, inner: RoutedExperts, seen: dict[int, _Seen]) -> None:
        self._index, self._inner, self._seen = index, inner, seen

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See RoutedExperts."""
        self._seen[self._index] = _Seen(hidden.clone(), top_k_index.clone())
        return self._inner(hidden, top_k_index, top_k_weights)


class WatchedModel:
    """An engine's model that tells what each of its MoE layers saw."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._seen: dict[int, _Seen] = {}
        engine.wrap(self._watch)
        self._engine = engine

    def _watch(self, index: int, layer: ExpertLayer, inner: RoutedExperts) -> RoutedExperts:
        return _Watched(index, inner, self._seen)

    @torch.inference_mode()
    def run(self, token_ids: Sequence[int]) -> list[_Seen]:
        """One pass over a document; what every layer saw."""
        self._seen.clear()
        self._engine.model(input_ids=torch.tensor([list(token_ids)], device=self._engine.model.device))
        return [self._seen[layer] for layer in sorted(self._seen)]


class _Shares:
    """Means of shares, by layer."""

    def __init__(self, name: str, num_layers: int) -> None:
        self._name = name
        self._known, self._all = [0] * num_layers, [0] * num_layers

    def add(self, layer: int, chosen_NK: Tensor, known_NK: Tensor) -> None:
        """Of these tokens' choices, those that were known."""
        self._known[layer] += int((chosen_NK[:, :, None] == known_NK[:, None, :]).any(-1).sum())
        self._all[layer] += chosen_NK.numel()

    def recall(self) -> Recall:
        """The means."""
        pairs = zip(self._known, self._all, strict=True)
        return Recall(self._name, tuple(known / count if count else None for known, count in pairs))


def measure_guesses(
    place: Place,
    documents: Sequence[str],
    distances: Iterable[int],
    pre_gated: str | None,
    progress: Progress,
) -> GuessesResult:
    """Ask each router early on these documents; compare a pre-gated twin's choices on the same tokens.

    Raises ConfigError for a model without a tokenizer or that encodes and decodes, and as engines do.
    """
    token_ids = _tokens(place.model, documents)
    arm = EngineArm("watched", options=(("gating", "on_demand"),))
    chosen, shares, chance = _guess(arm, place, token_ids, distances, progress)
    committed = None
    if pre_gated is not None:
        committed = _agreement(arm, replace(place, model=pre_gated), token_ids, chosen, progress)
    return GuessesResult(
        name=f"guesses-{Path(place.model).name}",
        date=now(),
        commit=current_commit(),
        machine=describe_machine(weight_files(Path(place.model))),
        conditions={
            "text": f"{len(token_ids)} documents, {LENGTH} tokens of each at most, each in one pass",
            "guess": "a later layer's router on this layer's input, rescaled between their norms' weights",
        },
        num_tokens=sum(map(len, token_ids)),
        chance=chance,
        recalls=tuple(share.recall() for share in shares),
        pre_gated=committed,
    )


def _guess(
    arm: EngineArm,
    place: Place,
    token_ids: Sequence[Sequence[int]],
    distances: Iterable[int],
    progress: Progress,
) -> tuple[list[list[Tensor]], list[_Shares], float]:
    """Every document's choices by layer, how often each distance's guesses were right, and by chance."""
    with closing(arm.open(place)) as engine:
        sockets = engine.sockets
        if engine.model.config.is_encoder_decoder:
            raise ConfigError(f"{place.model} encodes and decodes; guesses are measured of decoders")
        asked = {d: look_aheads(engine.model, sockets, d) for d in distances}
        for distance, routers in asked.items():
            if not any(routers):
                raise ConfigError(
                    f"{place.model}: no router can be asked {distance} layers ahead; it has {len(sockets)} "
                    "MoE layers, and where gates select ahead there is nothing to guess (name a "
                    "conventional twin)"
                )
        shares = {d: _Shares(_ahead(d), len(sockets)) for d in asked}
        watched, chosen = WatchedModel(engine), []
        for number, ids in enumerate(token_ids):
            progress(f"guessing, document {number + 1}", number, len(token_ids))
            seen = watched.run(ids)
            chosen.append([one.chosen for one in seen])
            for distance, routers in asked.items():
                for layer, ask in enumerate(routers):
                    if ask is not None:
                        with torch.inference_mode():
                            known = ask(seen[layer].hidden)
                        shares[distance].add(layer + distance, seen[layer + distance].chosen, known)
        progress("guessed", len(token_ids), len(token_ids))
        return chosen, list(shares.values()), sockets[0].top_k / sockets[0].num_experts


def _agreement(
    arm: EngineArm,
    place: Place,
    token_ids: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[Tensor]],
    progress: Progress,
) -> Recall:
    """How much of the conventional model's choices the pre-gated one makes, too."""
    with closing(arm.open(place)) as engine:
        if len(engine.sockets) != len(chosen[0]):
            raise ConfigError(f"{place.model} has {len(engine.sockets)} MoE layers, not {len(chosen[0])}")
        watched, shares = WatchedModel(engine), _Shares("pre-gated twin", len(chosen[0]))
        for number, (ids, before) in enumerate(zip(token_ids, chosen, strict=True)):
            progress(f"pre-gated, document {number + 1}", number, len(token_ids))
            for layer, one in enumerate(watched.run(ids)):
                shares.add(layer, before[layer], one.chosen)
        progress("compared", len(token_ids), len(token_ids))
        return shares.recall()


def _tokens(model: str, documents: Sequence[str]) -> list[list[int]]:
    tokenizer = load_tokenizer(Path(model))
    if tokenizer is None:
        raise ConfigError(f"{model} has no tokenizer; copy its files there")
    found = [tokenizer(document)["input_ids"][:LENGTH] for document in documents]
    return [ids for ids in found if ids]


def _ahead(distance: int) -> str:
    return f"guessed {distance} layer{'s' if distance > 1 else ''} ahead"
