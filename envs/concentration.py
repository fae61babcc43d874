"""Concentration: find pairs of cards by turning over two at a time."""

import math
from typing import NamedTuple

import gymnasium
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from engram.envs.vector import BatchedEnv, Step
from engram.kernels.errors import InvalidValueError

DECK = 52
NONE = -1


class Table(NamedTuple):
    """The cards on the table, the pairs found and the card turned first."""

    value: Int[Tensor, "N cards"]
    """Colour or rank of the card at each place, int64."""
    found: Bool[Tensor, "N cards"]
    """Cards of pairs already found, which stay face up."""
    shown: Bool[Tensor, "N cards"]
    """Cards face up after the last action."""
    first: Int[Tensor, " N"]
    """Place of the card turned first, -1 where the next one is the first, int64."""
    time: Int[Tensor, " N"]
    """Steps taken, int64."""


class Concentration(BatchedEnv[Table]):
    """Turn over cards to find pairs (POPGym's Concentration, Morad et al. 2023).

    An action turns the card at one place; the observation is the value at every place, with the
    number of values standing for a card face down. A pair of equal values stays face up and earns
    2 / cards, so that finding all earns 1. Two cards that differ (or one card turned twice) cost
    2 / L and turn back at the next action. Choosing a card of a found pair costs 1 / L for every
    card in play and ends the turn. An episode terminates with the last pair and is truncated after
    L = ceil(2 n - n / (2 n - 1)) steps for n cards, the most a perfect memory needs on average.

    Terminated and truncated are both true where the last pair is found at step L, as in POPGym.
    `info["success"]` says whether every pair is found, `info["found"]` which share of the cards.

    Args:
        num_envs: Number of worlds N.
        decks: Decks of 52 cards on the table.
        match: What makes a pair: "colors" (two values) or "ranks" (thirteen). POPGym's Easy is
            (1, "colors"), Medium (2, "colors"), Hard (1, "ranks").
        device: Where every tensor lives.
        seed: Seed of the generator.
    """

    truncates = True

    def __init__(
        self,
        num_envs: int,
        *,
        decks: int = 1,
        match: str = "colors",
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if decks < 1:
            raise InvalidValueError("decks", decks, "1 or more")
        if match not in ("colors", "ranks"):
            raise InvalidValueError("match", match, ("colors", "ranks"))
        self.match = match
        self.values = 2 if match == "colors" else 13
        self.cards = DECK * decks
        self.step_limit = math.ceil(2 * self.cards - self.cards / (2 * self.cards - 1))
        spaces = gymnasium.spaces
        observation = spaces.MultiDiscrete([self.values + 1] * self.cards)
        action = spaces.Discrete(self.cards)
        super().__init__(num_envs, observation, action, device=device, seed=seed)

    def draw(self, count: int) -> Table:
        """Shuffle the cards and lay them face down."""
        # Equal shares of every value; which card carries which is settled by the shuffle.
        value = self.random_orders(count, self.cards) % self.values
        down = torch.zeros_like(value, dtype=torch.bool)
        time = torch.zeros(count, dtype=torch.int64, device=self.device)
        return Table(value, down, down.clone(), torch.full_like(time, NONE), time)

    def observe(self) -> Int[Tensor, "N cards"]:
        """Return the values of the cards face up."""
        return torch.where(self.worlds.shown, self.worlds.value, self.values)

    def advance(self, action: Tensor) -> Step:
        """Turn a card over, and settle the turn if it is the second one."""
        value, found, _, first, time = self.worlds
        held = first != NONE
        places = torch.stack([action, torch.where(held, first, action)], dim=1)  # [N, 2]
        shown = found.scatter(1, places, True)
        left, right = value.gather(1, places).unbind(1)
        again = found.gather(1, action[:, None]).squeeze(1)
        pair = held & ~again & (left == right) & (action != first)
        found = torch.where(pair[:, None], shown, found)
        settled = held | again
        cost = settled * (1 + held.float()) / self.step_limit
        reward = torch.where(pair, 2 / self.cards, -cost)
        time = time + 1
        self.worlds = Table(value, found, shown, torch.where(settled, NONE, action), time)
        share = found.float().mean(dim=1)
        terminated = found.all(dim=1)
        info = {"success": terminated.float(), "found": share}
        return Step(self.observe(), reward, terminated, time >= self.step_limit, info)
