"""The contract of every neural memory: a causal map that carries its state in and out."""

import abc
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.memory import state as states

S = TypeVar("S", bound=tuple[Any, ...])


class SequenceMemory(nn.Module, abc.ABC, Generic[S]):
    """A causal map from features to features that carries its state in and out.

    `start[t, b]` is true when x[t, b] is the first input of its memory scope (an episode, or a
    trial of several); nothing before it may influence the output at or after t. The module owns
    parameters, never state. The state passed in is consumed: a memory may write into it in place,
    so keep `engram.memory.state.snapshot` of a state that is needed again.

    Laws, checked for every memory by tests/memory/test_sequence_laws.py: forward equals repeated
    step; splitting T changes nothing; nothing leaks through a start; environments are
    independent; nbytes(state) is constant; every parameter gets a gradient; an empty memory reads
    as zero; state survives pickling and safetensors.
    """

    d_in: int
    """Features of an input event."""
    d_out: int
    """Features of an output."""

    @abc.abstractmethod
    def initial_state(self, batch: int) -> S:
        """Return the empty state of `batch` environments, on the parameters' device and dtype."""

    @abc.abstractmethod
    def forward(
        self, x: Float[Tensor, "T B *event"], state: S, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B *out"], S]:
        """Read and write T inputs; return the outputs and the state after the last."""

    def step(
        self, x: Float[Tensor, "B *event"], state: S, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B *out"], S]:
        """Read and write one input: `forward` with T = 1."""
        y, state = self.forward(x[None], state, start[None])
        return y[0], state

    def reset(self, state: S, mask: Bool[Tensor, " B"]) -> S:
        """Empty the memory of some environments, as passing `start` does without a reset."""
        return states.where(mask, self.initial_state(len(mask)), state)

    def randomize(self, state: S, seeds: Int[Tensor, " B"]) -> S:
        """Seed what a memory draws at random in training (Memo's segment lengths).

        The draws are a deterministic function of integers kept in the state, so that learning
        replays exactly what acting did. A state that was never seeded draws nothing: that is how
        evaluation runs. Most memories draw nothing at all and return the state as it is.
        """
        del seeds
        return state

    def _anchor(self) -> Tensor:
        """A parameter, whose device and dtype the state follows."""
        return next(self.parameters(), torch.empty(0))


def episode_index(start: Bool[Tensor, "T B"]) -> Int[Tensor, "T B"]:
    """Number the scopes within a chunk: 0 before the first start, then 1, then 2."""
    return start.to(torch.int64).cumsum(0)


def steps_since_start(start: Bool[Tensor, "T B"], age: Int[Tensor, " B"]) -> Int[Tensor, "T B"]:
    """Steps since the scope began, 0 at the start; `age` is the count at the first step.

    Args:
        start: Scope beginnings.
        age: Inputs seen in the running scope before this chunk.
    """
    steps = torch.arange(len(start), device=start.device)[:, None]
    began = torch.where(start, steps, -1).cummax(0).values  # [T, B], -1: before the chunk
    return torch.where(began < 0, age + steps, steps - began)
