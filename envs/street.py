"""Street navigation: get to know a neighbourhood of a real city while finding goal after goal."""

from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.envs.street_graph import StreetGraph, contract, load_streets
from engram.envs.street_grid import grid_city
from engram.envs.street_neighbourhoods import (
    EXITS,
    Neighbourhoods,
    sample_neighbourhoods,
    split_city,
)
from engram.envs.street_returns import TURNS, return_of_shortest_paths, return_of_turns
from engram.envs.vector import BatchedEnv, Step
from engram.kernels.errors import InvalidValueError

POOLS = {"train": 256, "evaluation": 64}
"""Neighbourhoods in the pool of each split, unless another number is given."""
EIGHTHS = 8
CITY_SEED = 0
"""The city and its pools are data, the same in every run; runs differ in their trials."""


class Trial(NamedTuple):
    """A neighbourhood with its names and goals, and the walk through it.

    A place is numbered over the whole pool: `neighbourhood * places + place`.
    """

    code: Float[Tensor, "N places code_bits"]
    """Name of each place in this trial, bits as float32."""
    route: Int[Tensor, "N trial_steps+2"]
    """The start and then the goals in their order, int64."""
    due: Int[Tensor, "N trial_steps+1"]
    """Step at which shortest paths alone would have reached each goal, int64."""
    here: Int[Tensor, " N"]
    """Where the walker is, int64."""
    left: Int[Tensor, " N"]
    """The place left last, int64; −1 at the start."""
    taken: Float[Tensor, "N 4"]
    """The exit chosen last, one-hot; zero at the start, float32."""
    time: Int[Tensor, " N"]
    """Steps taken, int64."""
    since: Int[Tensor, " N"]
    """Step at which the present goal was set, int64."""
    goals: Int[Tensor, " N"]
    """Goals reached, int64."""
    metres: Float[Tensor, " N"]
    """Way walked [m], float32."""
    steps_to_goal: Float[Tensor, "N G"]
    """Steps spent on each of the first G goals, NaN for those not reached, float32."""
    reached: Float[Tensor, "N 8"]
    """Goals reached in each eighth of the trial, float32."""


class Street(BatchedEnv[Trial]):
    """Find goal after goal in an unknown neighbourhood (Ritter et al. 2020, One-Shot StreetLearn).

    A trial is one episode: a neighbourhood of the split's pool, where every place bears a random
    code that no other place has, new in every trial. So nothing but memory tells where an exit
    leads. Arrival at the goal earns 1 and sets a new goal, any other place with equal
    probability. A missing exit leads nowhere, at the cost of a step. The trial is truncated after
    `trial_steps` steps.

    The observation holds, as float32 zeros and ones, `place` and `goal` (codes), `exits` (which
    of north, east, south and west exist), `taken` (the exit chosen last, existing or not) and
    `left` (the code of the place it was chosen at), both zero at the start. `left`, `taken` and
    `place` are the transition that the paper's episodic memory stores; without `left`, no single
    layer of attention can tell which exit leads where.

    Measurements: `goals` reached; `oracle_goals`, those that shortest paths reach by the same
    step, from the same start to the same goals; `oracle_share`, their ratio, at most 1 (NaN as
    long as the oracle has none); `steps_to_goal` `[N, G]`, the steps spent on each of the first
    G = trial_steps / 5 goals, and `shortest_to_goal`, the steps needed, both NaN for goals not
    reached (late goals are reached in lucky trials alone, so both fall with n even without memory);
    `goals_by_eighth` `[N, 8]`, those reached in each eighth of the trial, which has no such bias:
    a walker that remembers nothing keeps its pace; `metres` walked [m].

    `optimum` is the exact mean over the pool of shortest paths: the best that one can do *who knows
    the neighbourhood*, so no memory quite gets there. `reactive` holds the exact means of policies
    that remember nothing: `random_walk` over existing exits, `onward_walk` which turns back at dead
    ends only, and `right_hand` which turns right wherever possible; with `show_left`, also those
    that return at once where the new goal is the place just left, which is not always worth it.
    `chance` is the largest of all, and the best without memory that we know of.

    The defaults are for small agents: 8 places among 1024 codes are easy to tell apart, and 80
    steps leave time to profit from what the first 20 taught. Shortest paths then reach 33.5 goals
    and `chance` is 10 to 12; a walker that draws a map from its observations, goes to the nearest
    unknown exit as long as the goal is unknown, and else by the map, reaches 0.86 of the oracle's
    goals and loses time mostly on the first five.

    Deviations from the paper: a place is seen as a bit vector and not as a photograph; a step leads
    to the next intersection, by compass; after a goal the walk goes on from there, where the paper
    draws a new start; training and evaluation are two sides of one city.

    Args:
        num_envs: Number of worlds N.
        graph: Folder with `nodes.txt` and `links.txt` in the StreetLearn format, or a graph in
            memory whose every place counts as an intersection. If None, a generated city.
        places: Places in a neighbourhood.
        trial_steps: Steps in a trial.
        code_bits: Bits in the code of a place.
        show_left: Whether the place left last is part of the observation.
        split: Which side of the city the neighbourhoods are of, `train` or `evaluation`.
        pool: Neighbourhoods in the pool; `POOLS` if None.
        device: Where every tensor lives.
        seed: Seed of the generator. City and pools do not depend on it.
    """

    truncates = True

    def __init__(
        self,
        num_envs: int,
        *,
        graph: str | Path | StreetGraph | None = None,
        places: int = 8,
        trial_steps: int = 80,
        code_bits: int = 10,
        show_left: bool = True,
        split: str = "train",
        pool: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if split not in POOLS:
            raise InvalidValueError("split", split, POOLS)
        if trial_steps < 1:
            raise InvalidValueError("trial_steps", trial_steps, "1 or more")
        if not places <= 2**code_bits <= 2**30:
            raise InvalidValueError("code_bits", code_bits, f"enough for {places} places, to 30")
        self.places, self.trial_steps, self.code_bits = places, trial_steps, code_bits
        self.show_left = show_left
        self.goals_shown = max(1, trial_steps // 5)
        city = _city(graph)
        self.neighbourhoods = sample_neighbourhoods(
            city,
            split_city(city)[split == "evaluation"],
            places=places,
            pool=POOLS[split] if pool is None else pool,
            seed=CITY_SEED,
        )
        self.optimum = return_of_shortest_paths(self.neighbourhoods, trial_steps)
        self.reactive = {
            f"{name}_returning" if returning else name: return_of_turns(
                self.neighbourhoods, trial_steps, weights, returning=returning
            )
            for name, weights in TURNS.items()
            for returning in ([False, True] if show_left else [False])
        }
        self.chance = max(self.reactive.values())
        self._lay_out(self.neighbourhoods, torch.device(device))
        widths = {"place": code_bits, "goal": code_bits, "exits": EXITS, "taken": EXITS}
        if show_left:
            widths["left"] = code_bits
        spaces: dict[str, gymnasium.Space] = {
            name: gymnasium.spaces.Box(0, 1, (n,), np.float32) for name, n in widths.items()
        }
        observation = gymnasium.spaces.Dict(spaces)
        action = gymnasium.spaces.Discrete(EXITS)
        super().__init__(num_envs, observation, action, device=device, seed=seed)
        self._row = torch.arange(num_envs, device=device)

    def _lay_out(self, pool: Neighbourhoods, device: torch.device) -> None:
        """Put the pool into flat tables over its places."""
        neighbour = torch.from_numpy(pool.neighbour).to(device).flatten(0, 1)  # [K P, 4]
        here = torch.arange(len(neighbour), device=device)[:, None]
        first = here - here % self.places
        self._exits = (neighbour >= 0).float()
        self._behind = torch.where(neighbour >= 0, first + neighbour, here).flatten()
        self._length = torch.from_numpy(pool.length).to(device).flatten()
        self._hops = torch.from_numpy(pool.hops).to(device).flatten()
        self._exit = torch.from_numpy(pool.exit).to(device).flatten()
        self._slot = torch.arange(self.goals_shown, device=device)
        self._eighth = torch.arange(EIGHTHS, device=device)
        self._one_hot = torch.eye(EXITS, device=device)

    def draw(self, count: int) -> Trial:
        """Draw a neighbourhood, names, a start and all goals of the trial."""
        first = self.random_integers(len(self.neighbourhoods.hops), count, 1) * self.places
        start = self.random_integers(self.places, count, 1)
        onward = 1 + self.random_integers(self.places - 1, count, self.trial_steps + 1)
        route = first + torch.cat([start, onward], dim=1).cumsum(dim=1) % self.places
        legs = self._hops[self._pair(route[:, :-1], route[:, 1:])]
        zero = torch.zeros(count, dtype=torch.int64, device=self.device)
        taken = torch.zeros(count, EXITS, device=self.device)
        spent = torch.full((count, self.goals_shown), torch.nan, device=self.device)
        return Trial(
            code=self._draw_codes(count),
            route=route,
            due=legs.cumsum(dim=1),
            here=route[:, 0].clone(),
            left=zero - 1,
            taken=taken,
            time=zero,
            since=zero.clone(),
            goals=zero.clone(),
            metres=zero.float(),
            steps_to_goal=spent,
            reached=torch.zeros(count, EIGHTHS, device=self.device),
        )

    def _draw_codes(self, count: int) -> Float[Tensor, "{count} places code_bits"]:
        """Draw different codes by Floyd's method: no table of all codes, no second try."""
        chosen = torch.empty(count, 0, dtype=torch.int64, device=self.device)
        for last in range(2**self.code_bits - self.places, 2**self.code_bits):
            code = self.random_integers(last + 1, count, 1)
            code = torch.where((chosen == code).any(dim=1, keepdim=True), last, code)
            chosen = torch.cat([chosen, code], dim=1)
        # The set is uniform but its order is not: the last code never comes first.
        chosen = chosen.gather(1, self.random_orders(count, self.places))
        bits = torch.arange(self.code_bits, device=self.device)
        return (chosen[..., None] >> bits & 1).float()

    def observe(self) -> dict[str, Float[Tensor, "N _"]]:
        """Return the codes of here and of the goal, the exits, and the exit chosen last."""
        world = self.worlds
        seen = {
            "place": world.code[self._row, world.here % self.places],
            "goal": world.code[self._row, self._goal() % self.places],
            "exits": self._exits[world.here],
            "taken": world.taken.clone(),
        }
        if self.show_left:
            code = world.code[self._row, world.left % self.places]
            seen["left"] = torch.where(world.left[:, None] < 0, 0.0, code)
        return seen

    def advance(self, action: Tensor) -> Step:
        """Leave by an exit; at the goal, score and set the next one."""
        old = self.worlds
        leaving = old.here * EXITS + action
        here, time = self._behind[leaving], old.time + 1
        arrived = here == self._goal()
        spent = (time - old.since).float()[:, None]
        eighth = old.time * EIGHTHS // self.trial_steps
        scored = arrived[:, None] & (self._slot == old.goals[:, None])
        self.worlds = old._replace(
            here=here,
            left=old.here,
            taken=self._one_hot[action],
            time=time,
            since=torch.where(arrived, time, old.since),
            goals=old.goals + arrived,
            metres=old.metres + self._length[leaving],
            steps_to_goal=torch.where(scored, spent, old.steps_to_goal),
            reached=old.reached + (arrived[:, None] & (self._eighth == eighth[:, None])),
        )
        truncated = time == self.trial_steps
        never = torch.zeros_like(truncated)
        return Step(self.observe(), arrived.float(), never, truncated, self._measure())

    def shortest_action(self) -> Int[Tensor, " N"]:
        """Return the exit that begins a shortest path to the goal, the first if several do."""
        return self._exit[self._pair(self.worlds.here, self._goal())]

    def _goal(self) -> Int[Tensor, " N"]:
        return self.worlds.route[self._row, self.worlds.goals + 1]

    def _pair(self, start: Int[Tensor, "*n"], end: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Index of two places of one neighbourhood in the tables over all pairs."""
        return start * self.places + end % self.places

    def _measure(self) -> dict[str, Tensor]:
        world = self.worlds
        goals = world.goals.float()
        oracle_goals = (world.due <= world.time[:, None]).sum(dim=1).float()
        due = world.due[:, : self.goals_shown].float()
        shortest = due.diff(dim=1, prepend=torch.zeros_like(due[:, :1]))
        return {
            "goals": goals,
            "oracle_goals": oracle_goals,
            # Nobody is faster than the oracle, so that 0 / 0, NaN, is the only division by zero.
            "oracle_share": goals / oracle_goals,
            "steps_to_goal": world.steps_to_goal.clone(),
            "shortest_to_goal": torch.where(world.steps_to_goal.isnan(), torch.nan, shortest),
            "goals_by_eighth": world.reached.clone(),
            "metres": world.metres.clone(),
        }


def _city(graph: str | Path | StreetGraph | None) -> StreetGraph:
    if graph is None:
        return contract(grid_city(24, 24, CITY_SEED))
    return graph if isinstance(graph, StreetGraph) else contract(load_streets(graph))
