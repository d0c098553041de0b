"""By how soon and how surely an expert is used again. The default.

Shape letters: L layers, E experts of the largest layer.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from pgmoe.layout import ExpertId

LONG_RATE, SHORT_RATE = 0.02, 0.3
"""How much one turn of its layer weighs in an expert's long and short memory (of some 50 and 3 turns)."""
SHORT_SHARE = 0.2
"""Of the short memory in an expert's chance."""
GUESS_CHANCE = 0.5
"""Of an expert that came unasked, until its layer's turn shows whether it is used."""


class Prospect:
    """Evicts the expert with the smallest chance / wait.

    chance: of being used when its layer's turn comes, from two exponentially decayed means of its uses. They
    are kept for experts without a slot too, so what was evicted comes back with its past. wait: turns of
    layers until then, counted forward from the layer of the last use, 1 to L. The ratio is how many reads the
    slot saves in the time until then, each read costing the same.

    It starts from MoE-APEX's priority, use count / tokens + [used last] / distance: the first is our long
    memory, the second our short one, and the distance, forward (what comes next stays), divides both. The
    constants are chosen on half of the prompts of a result in benchmarks/results/policies, which reports on
    the other half, though its form was chosen while some of those were seen. Halving or doubling a constant
    changes the misses by about one per cent.
    """

    def __init__(self, experts_per_layer: Sequence[int]) -> None:
        num_layers, widest = len(experts_per_layer), max(experts_per_layer)
        shape = (num_layers, widest)
        self._long_LE, self._short_LE = np.zeros(shape), np.zeros(shape)
        self._chance_LE = np.zeros(shape)
        self._guess_LE = np.zeros(shape)
        self._absent_LE = np.full(shape, np.inf)  # 0 for who holds a slot
        steps_LL = (np.arange(num_layers) - np.arange(num_layers)[:, None] - 1) % num_layers + 1
        self._per_wait_LL1 = 1 / steps_LL[:, :, None]
        self._layer = -1  # before the first turn
        self._used: set[ExpertId] = set()

    def insert(self, expert: ExpertId) -> None:
        """A guess, until it is touched."""
        self._absent_LE[expert] = 0
        self._guess_LE[expert] = GUESS_CHANCE

    def touch(self, expert: ExpertId) -> None:
        """A use in this turn of its layer. Another layer, or the same expert again, begins the next turn."""
        if expert.layer != self._layer or expert in self._used:
            self._begin_turn(expert.layer)
        self._used.add(expert)
        self._guess_LE[expert] = 0
        self._long_LE[expert] += LONG_RATE
        self._short_LE[expert] += SHORT_RATE
        self._chance_LE[expert] += SHORT_SHARE * SHORT_RATE + (1 - SHORT_SHARE) * LONG_RATE

    def remove(self, expert: ExpertId) -> None:
        """It waits without a slot; its memory stays."""
        self._absent_LE[expert] = np.inf
        self._guess_LE[expert] = 0

    def victim(self, protected: Container[ExpertId]) -> ExpertId | None:
        """The one with the least prospect that is not protected; of equals, the first by layer and index."""
        chance_LE = np.maximum(self._chance_LE, self._guess_LE)
        prospect = ((chance_LE + self._absent_LE) * self._per_wait_LL1[self._layer]).ravel()
        while True:
            least = int(prospect.argmin())
            if prospect[least] == np.inf:
                return None
            expert = ExpertId(*divmod(least, chance_LE.shape[1]))
            if expert not in protected:
                return expert
            prospect[least] = np.inf

    def _begin_turn(self, layer: int) -> None:
        """Layers passed over since the last turn had theirs, too, and used nothing."""
        num_layers = len(self._chance_LE)
        turns = (layer - self._layer - 1) % num_layers + 1
        for turn in range(1, turns + 1):
            passed = (self._layer + turn) % num_layers
            long_E, short_E = self._long_LE[passed], self._short_LE[passed]
            long_E *= 1 - LONG_RATE
            short_E *= 1 - SHORT_RATE
            self._chance_LE[passed] = SHORT_SHARE * short_E + (1 - SHORT_SHARE) * long_E
            self._guess_LE[passed] = 0
        self._layer = layer
        self._used.clear()
