"""Ballet: watch dances one after another, then walk to the dancer who is named by their dance."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from engram.envs import ballet_view
from engram.envs.ballet_view import BOARD, COLORS, SHAPES
from engram.envs.vector import BatchedEnv, Observation, Step
from engram.kernels.errors import InvalidValueError

COMPASS = {
    "N": (-1, 0),
    "NE": (-1, 1),
    "E": (0, 1),
    "SE": (1, 1),
    "S": (1, 0),
    "SW": (1, -1),
    "W": (0, -1),
    "NW": (-1, -1),
}
"""Actions, in their order, as (rows, columns)."""
DANCES = {
    "circle_cw": "N E S S W W N N E E S S W W N E",
    "circle_ccw": "N W S S E E N N W W S S E E N W",
    "up_and_down": "N S S N " * 4,
    "left_and_right": "E W W E " * 4,
    "diagonal_uldr": "NW SE SE NW " * 4,
    "diagonal_urdl": "NE SW SW NE " * 4,
    "plus_cw": "N S E W S N W E " * 2,
    "plus_ccw": "N S W E S N E W " * 2,
    "times_cw": "NE SW SE NW SW NE NW SE " * 2,
    "times_ccw": "NW SE SW NE SE NW NE SW " * 2,
    "zee": "NE W W E E SW NE SW SW E E W W NE SW NE",
    "chevron_down": "NW S SE NE N SW NE SW NE S SW NW N SE NW SE",
    "chevron_up": "SE N NW SW S NE SW NE SW N NE SE S NW SE NW",
}
MOVES = 16
"""Moves of a dance."""
STAGES = [(row, column) for row in (2, 5, 8) for column in (2, 5, 8) if (row, column) != (5, 5)]
"""Where dancers may stand, as (row, column)."""
CENTRE = BOARD * BOARD // 2


class Dancer(NamedTuple):
    """One dancer of a world that is placed by hand."""

    row: int
    column: int
    dance: str
    shape: str
    color: str
    target: bool = False
    """Whether this is the dancer to walk to."""


class Worlds(NamedTuple):
    """N boards; a cell is row * 11 + column, and dancer d is the d-th to dance."""

    time: Int64[Tensor, " N"]
    """Steps since the episode began."""
    agent: Int64[Tensor, " N"]
    """Cell of the agent."""
    home: Int64[Tensor, "N D"]
    """Cell around which each dancer dances."""
    dance: Int64[Tensor, "N D"]
    """Index of each dancer's dance in `DANCES`."""
    look: Int64[Tensor, "N D"]
    """Appearance of each dancer: shape * number of colours + colour."""
    target: Int64[Tensor, " N"]
    """Index of the dancer to walk to."""


class Ballet(BatchedEnv[Worlds]):
    """Batched Ballet (Lampinen et al. 2021, arXiv 2105.14039, section 4.1).

    Dancers stand on an 11x11 walled board around the agent and dance one after another, each for
    16 moves and with a pause between. Then the observation names a dance, and the agent walks to
    whom it saw dance it: +1 for touching that dancer, 0 for another, and either ends the episode.
    Places, dances, shapes and colours never repeat within an episode. The agent is held still
    until the step after the first that shows the instruction.

    Observation: `view`, the 11x11 crop of the board centred on the agent, uint8, and
    `instruction`, 0 for watching or 1 + index of the target's dance. The view is `[3, 11, 11]`
    symbols: kind (0 outside the board, 1 floor, 2 wall, 3 agent, 4 dancer), 1 + shape, 1 + colour
    (0 where nobody dances); or `[99, 99, 3]` RGB, equal to the original's images.

    Action: one of 8 directions, N, NE, E, SE, S, SW, W, NW; walls block.

    Measurements: `success`; `chosen`, whether a dancer was touched; `success_given_choice`, NaN
    where none was.

    Deviations from the original: the views are uint8, not float; the instruction is an index, not
    a string; symbols are our addition. As there, running out of time is reported as termination.

    Args:
        num_envs: Number of worlds N.
        dances: Number of dancers, 1 to 8.
        delay: Pause after each dance [steps].
        max_steps: Steps after which an episode ends; the original's 320 for a delay of 16 and
            1024 for any other unless given.
        pixels: Whether the view is an image.
        device: Where every tensor lives.
        seed: Seed of the worlds.

    Raises:
        InvalidValueError: If a setting is out of range, or the time too short to reach a dancer.
    """

    optimum = 1.0

    def __init__(
        self,
        num_envs: int,
        *,
        dances: int = 2,
        delay: int = 16,
        max_steps: int | None = None,
        pixels: bool = False,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if not 1 <= dances <= len(STAGES):
            raise InvalidValueError("dances", dances, f"1 to {len(STAGES)}")
        if delay < 1:
            raise InvalidValueError("delay", delay, "1 or more")
        turn = MOVES - 1 + delay  # the first move of a dance falls on the last step of the pause
        self.instruction_step = dances * turn
        """Step whose observation is the first to show the instruction."""
        self.max_steps = (320 if delay == 16 else 1024) if max_steps is None else max_steps
        if self.max_steps < self.instruction_step + 3:
            allowed = f"{self.instruction_step + 3} or more, the first step to touch a dancer in"
            raise InvalidValueError("max_steps", self.max_steps, allowed)
        self.dances = dances
        self.chance = 1 / dances
        self.canvas = ballet_view.pixels(device) if pixels else ballet_view.symbols(device)
        self.stages = torch.tensor([row * BOARD + column for row, column in STAGES], device=device)
        self.offsets = _offsets().flatten().to(device)
        self.walks = _walks().to(device)
        elapsed = torch.arange(self.instruction_step + 1)[:, None] - turn * torch.arange(dances)
        self.moves_made = (elapsed + 1).clamp(0, MOVES).to(device)  # [step, dancer]
        view = self.canvas.shape
        bounds = 255 if pixels else np.array([ballet_view.DANCER, len(SHAPES), len(COLORS)])
        high = np.broadcast_to(np.asarray(bounds, np.uint8).reshape(-1, 1, 1), view)
        spaces = {
            "view": gymnasium.spaces.Box(np.zeros_like(high), high, dtype=np.uint8),
            "instruction": gymnasium.spaces.Discrete(1 + len(DANCES)),
        }
        actions = gymnasium.spaces.Discrete(len(COMPASS))
        super().__init__(num_envs, gymnasium.spaces.Dict(spaces), actions, device=device, seed=seed)

    def draw(self, count: int) -> Worlds:
        """Return `count` fresh worlds."""
        shape, color = self.choices(count, len(SHAPES)), self.choices(count, len(COLORS))
        zeros = torch.zeros(count, dtype=torch.int64, device=self.device)
        return Worlds(
            zeros,
            zeros + CENTRE,
            self.stages[self.choices(count, len(STAGES))],
            self.choices(count, len(DANCES)),
            shape * len(COLORS) + color,
            self.random_integers(self.dances, count),
        )

    def choices(self, count: int, of: int) -> Int64[Tensor, "count D"]:
        """`[count, D]` of 0 … of-1, without replacement in a row."""
        return self.random_orders(count, of)[:, : self.dances]

    def place(self, casts: Sequence[Sequence[Dancer]]) -> Observation:
        """Start every world anew with the given dancers, in the order in which they dance.

        Args:
            casts: The dancers of each world.

        Returns:
            The first observation.

        Raises:
            InvalidValueError: If a number, place or name is not allowed, or a world has not
                exactly one target.
        """
        if len(casts) != self.num_envs:
            raise InvalidValueError("number of casts", len(casts), str(self.num_envs))
        for cast in casts:
            places = [(dancer.row, dancer.column) for dancer in cast]
            if len(cast) != self.dances or len(set(places)) != len(places):
                raise InvalidValueError("places of a cast", places, f"{self.dances} distinct ones")
            if sum(dancer.target for dancer in cast) != 1:
                targets = [dancer.target for dancer in cast]
                raise InvalidValueError("targets of a cast", targets, "exactly one")
        homes, dances, looks = [], [], []
        for dancer in (dancer for cast in casts for dancer in cast):
            homes.append(STAGES[_index("place", (dancer.row, dancer.column), STAGES)])
            dances.append(_index("dance", dancer.dance, list(DANCES)))
            shape = _index("shape", dancer.shape, SHAPES)
            looks.append(shape * len(COLORS) + _index("color", dancer.color, list(COLORS)))
        targets = [[dancer.target for dancer in cast].index(True) for cast in casts]
        cells = [row * BOARD + column for row, column in homes]
        home, dance, look = (
            torch.tensor(flat, device=self.device).unflatten(0, (self.num_envs, self.dances))
            for flat in (cells, dances, looks)
        )
        time = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        target = torch.tensor(targets, device=self.device)
        self.worlds = Worlds(time, time + CENTRE, home, dance, look, target)
        return self.observe()

    def advance(self, action: Tensor) -> Step:
        """Move the agents that may walk, and see whom they touch."""
        old = self.worlds
        time = old.time + 1
        # The action that answers the first sight of the instruction is the first to count.
        walks = time > self.instruction_step
        agent = torch.where(walks, self.walks[old.agent, action], old.agent)
        self.worlds = old._replace(time=time, agent=agent)
        touched = old.home == agent[:, None]  # nobody stands where the agent waits
        chosen = touched.any(1)
        success = touched.gather(1, old.target[:, None]).squeeze(1)
        reward = success.float()
        info = {
            "success": reward.clone(),
            "chosen": chosen.float(),
            "success_given_choice": torch.where(chosen, reward, math.nan),
        }
        terminated = chosen | (time >= self.max_steps)
        return Step(self.observe(), reward, terminated, torch.zeros_like(chosen), info)

    def observe(self) -> Observation:
        """Return the views and the instructions."""
        worlds = self.worlds
        name = worlds.dance.gather(1, worlds.target[:, None]).squeeze(1) + 1
        return {
            "view": self.canvas.paint(worlds.agent, self.dancer_cells(), worlds.look),
            "instruction": torch.where(worlds.time >= self.instruction_step, name, 0),
        }

    def dancer_cells(self) -> Int64[Tensor, "N D"]:
        """Cell of the board where each dancer is now."""
        worlds = self.worlds
        step = worlds.time.clamp(max=self.instruction_step)
        moves = self.moves_made.index_select(0, step)
        return worlds.home + self.offsets.take(worlds.dance * (MOVES + 1) + moves)


def _index(name: str, value: object, allowed: list) -> int:
    if value not in allowed:
        raise InvalidValueError(name, value, allowed)
    return allowed.index(value)


def _offsets() -> Int64[Tensor, "dance moves"]:
    """Cells from home after 0 … 16 moves of each dance."""
    moves = [[COMPASS[move] for move in dance.split()] for dance in DANCES.values()]
    path = torch.tensor(moves).cumsum(1)  # [dance, move, 2]
    return torch.nn.functional.pad(path[..., 0] * BOARD + path[..., 1], (1, 0))


def _walks() -> Int64[Tensor, "cell action"]:
    """Cell where an agent is after an action."""
    cells = torch.arange(BOARD * BOARD)[:, None]
    move = torch.tensor(list(COMPASS.values()))
    row, column = cells // BOARD + move[:, 0], cells % BOARD + move[:, 1]
    last = BOARD - 1
    free = (row > 0) & (row < last) & (column > 0) & (column < last)
    return torch.where(free, row * BOARD + column, cells)
