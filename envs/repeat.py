"""Card recall: name the first suit of a deck again and again, or the suit dealt k cards ago."""

import abc
from typing import NamedTuple

import gymnasium
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.envs.vector import BatchedEnv, Step
from engram.kernels.errors import InvalidValueError

SUITS = 4
DECK = 52
"""Cards in a deck, as many of each suit."""


class Deal(NamedTuple):
    """A shuffled deck and how far it is dealt."""

    suit: Int[Tensor, "N cards"]
    """Suits in the order of dealing, int64."""
    dealt: Int[Tensor, " N"]
    """Cards dealt after the first, which is also the number of steps taken, int64."""
    right: Float[Tensor, " N"]
    """Right answers so far."""


class CardRecall(BatchedEnv[Deal]):
    """Deals a card per step; every scored answer is worth one share of a return in [-1, 1].

    A right answer earns 1/S and a wrong one -1/S, where S answers of the episode are scored. The
    episode terminates when the deck is dealt. `info["accuracy"]` is the share of right answers.

    Args:
        num_envs: Number of worlds N.
        decks: Decks shuffled together; an episode has 52 decks - 1 steps.
        scored: Answers S that are scored in an episode.
        device: Where every tensor lives.
        seed: Seed of the generator.
    """

    chance = -0.5
    """Any constant answer; one that reacts to the card in sight gains less than 0.01 on it."""
    optimum = 1.0

    def __init__(
        self, num_envs: int, *, decks: int, scored: int, device: torch.device | str, seed: int
    ):
        if decks < 1:
            raise InvalidValueError("decks", decks, "1 or more")
        self.cards = DECK * decks
        self.scored = scored
        space = gymnasium.spaces.Discrete(SUITS)
        super().__init__(num_envs, space, space, device=device, seed=seed)

    @abc.abstractmethod
    def recall(self) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """Return the right answer now, and which worlds score one now (all of them if None)."""

    def draw(self, count: int) -> Deal:
        """Shuffle the decks and deal the first card."""
        order = self.random_orders(count, self.cards)
        dealt = torch.zeros(count, dtype=torch.int64, device=self.device)
        return Deal(order % SUITS, dealt, torch.zeros(count, device=self.device))

    def observe(self) -> Int[Tensor, " N"]:
        """Return the suit of the card just dealt."""
        return self.worlds.suit.gather(1, self.worlds.dealt[:, None]).squeeze(1)

    def advance(self, action: Tensor) -> Step:
        """Score the answer, then deal a card."""
        answer, scores = self.recall()
        right = (action == answer).float()
        reward = (right * 2 - 1) / self.scored
        if scores is not None:
            right, reward = right * scores, reward * scores
        dealt = self.worlds.dealt + 1
        self.worlds = Deal(self.worlds.suit, dealt, self.worlds.right + right)
        info = {"accuracy": self.worlds.right / self.scored}
        never = torch.zeros_like(dealt, dtype=torch.bool)
        return Step(self.observe(), reward, dealt == self.cards - 1, never, info)


class RepeatFirst(CardRecall):
    """Name the suit of the first card at every step (POPGym's RepeatFirst, Morad et al. 2023).

    Nothing marks the first card but `start`. All 52 decks - 1 answers are scored; the first one
    has the card in sight.

    Args:
        num_envs: Number of worlds N.
        decks: 1, 8 and 16 are POPGym's Easy, Medium and Hard (51, 415 and 831 steps).
        device: Where every tensor lives.
        seed: Seed of the generator.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        decks: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        scored = DECK * decks - 1
        super().__init__(num_envs, decks=decks, scored=scored, device=device, seed=seed)

    def recall(self) -> tuple[Int[Tensor, " N"], None]:
        """Return the first suit; every world scores."""
        return self.worlds.suit[:, 0], None


class RepeatPrevious(CardRecall):
    """Name the suit dealt k cards ago (POPGym's RepeatPrevious, Morad et al. 2023).

    `k` counts the card in sight: k=1 asks for that one, k=4 for the one three steps before it.
    Answers before k cards are dealt score zero, the 52 decks - k others are scored.

    Args:
        num_envs: Number of worlds N.
        k: Cards to look back, the one in sight included.
        decks: (k=4, decks=1), (32, 2) and (64, 3) are POPGym's Easy, Medium and Hard.
        device: Where every tensor lives.
        seed: Seed of the generator.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        k: int = 4,
        decks: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if not 1 <= k < DECK * max(decks, 1):
            raise InvalidValueError("k", k, f"1 to {DECK * max(decks, 1) - 1} (cards less one)")
        self.k = k
        if k == 1:
            self.chance = 1.0  # the answer is in sight
        scored = DECK * decks - k
        super().__init__(num_envs, decks=decks, scored=scored, device=device, seed=seed)

    def recall(self) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
        """Return the suit k cards back; worlds that have dealt k cards score."""
        asked = self.worlds.dealt - (self.k - 1)
        answer = self.worlds.suit.gather(1, asked.clamp(min=0)[:, None]).squeeze(1)
        return answer, asked >= 0
