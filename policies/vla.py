"""A vision-language-action policy with a memory between perception and action."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.streams import Streams
from engram.policies.action_expert import ActionExpert
from engram.policies.action_scale import ActionScale
from engram.policies.attention import Reader
from engram.policies.denoising import Denoising, Flow
from engram.policies.perception import Perceiver, Sight


class ActingState(NamedTuple):
    """What acting carries from step to step."""

    memory: Any
    """State of the memory."""
    queue: Float[Tensor, "B C A"]
    """The chunk that is being executed."""
    place: Int[Tensor, " B"]
    """How many of its actions were."""


class Remembered(NamedTuple):
    """A sequence as perceived, and as it is after the memory."""

    present: Streams
    fused: Streams


class VLA(nn.Module):
    """Perception, memory, action expert: a_t … a_{t+C−1} ~ p(· | memory(perception(o_≤t))).

    What is remembered decides what to look for: after the memory the cognitive token reads the
    perceptual tokens once more. (MemoryVLA leaves that to its expert, where it is learnt late.)

    The memory maps the streams of every step to streams of the same shape (MemoryVLA's retrieval,
    gate and consolidation, or any baseline). They reach the expert in one of two ways: in place of
    the present streams (context), or, with an expert that is `modulated`, beside these, as what
    scales and shifts its blocks.

    Args:
        perception: Sights to streams.
        memory: Builds the memory, given tokens and features of either stream.
        expert: Builds the action expert, given actions, chunk, perceptual and cognitive features.
        scale: Of the actions.
        chunk: Actions C drawn at once.
        execute: Actions of a chunk that are executed before the next is drawn.
        denoising: How actions are drawn.
        looks: Layers in which the cognitive token reads after the memory; 0 as published.
        heads: Attention heads of these; they divide its features.
        guidance: Strength of classifier-free guidance; 1 is none and costs one call per step
            instead of two.
        temperature: Standard deviation of the noise that a draw begins with. 1, as published,
            draws from all that the policy holds possible, its own doubts included; below 1 a draw
            favours the likelier actions, and at 0 it may stay between two choices. Low-temperature
            sampling (Ajay et al. 2023, arXiv 2211.15657) scales the covariance at every step; both
            samplers here are deterministic, and have no noise but the first.
    """

    def __init__(
        self,
        perception: Perceiver,
        memory: Callable[..., SequenceMemory[Any]],
        expert: Callable[..., ActionExpert],
        scale: ActionScale,
        *,
        chunk: int = 8,
        execute: int = 4,
        denoising: Denoising | None = None,
        looks: int = 1,
        heads: int = 4,
        guidance: float = 1.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        if not 1 <= execute <= chunk:
            raise InvalidValueError("execute", execute, f"1 … chunk = {chunk}")
        if not 1 <= guidance < float("inf"):
            raise InvalidValueError("guidance", guidance, "1 or more")
        if not 0 <= temperature < float("inf"):
            raise InvalidValueError("temperature", temperature, "finite, 0 or more")
        (_, tokens), (_, cognitive) = perception.perceptual, perception.cognitive
        if looks < 0:
            raise InvalidValueError("looks", looks, "0 or more")
        if looks and (heads < 1 or cognitive % heads):
            raise InvalidValueError("heads", heads, f"divisors of cognitive = {cognitive}")
        self.perception = perception
        self.memory = memory(perceptual=perception.perceptual, cognitive=perception.cognitive)
        self.looks = nn.ModuleList(Reader(cognitive, tokens, heads) for _ in range(looks))
        self.actions, self.chunk, self.execute = len(scale.low), chunk, execute
        self.expert = expert(
            self.actions,
            chunk,
            perceptual=tokens,
            cognitive=cognitive,
        )
        if guidance > 1 and not self.expert.drop:
            raise InvalidValueError("guidance", guidance, "1, as the expert's drop is 0")
        self.scale = scale
        self.denoising = denoising or Flow()
        self.guidance, self.temperature = guidance, temperature

    def initial_state(self, batch: int) -> ActingState:
        """Return the state of `batch` robots that saw nothing."""
        queue = self.scale.low.new_zeros(batch, self.chunk, self.actions)
        place = torch.full((batch,), self.chunk, dtype=torch.int64, device=queue.device)
        return ActingState(self.memory.initial_state(batch), queue, place)

    def forward(
        self, sight: Sight, state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Remembered, Any]:
        """Perceive and remember T steps.

        Args:
            sight: `[T, B, ...]`.
            state: Of the memory.
            start: Where episodes begin.
        """
        present = self.perception(sight)
        fused, state = self.memory(present, state, start)  # type: ignore[arg-type]
        return Remembered(present, fused), state

    def step(self, sight: Sight, state: Any, start: Bool[Tensor, " B"]) -> tuple[Remembered, Any]:
        """Perceive and remember one step.

        Args:
            sight: `[B, ...]`.
            state: Of the memory.
            start: Where episodes begin.
        """
        present = self.perception(sight)
        fused, state = self.memory.step(present, state, start)  # type: ignore[arg-type]
        return Remembered(present, fused), state  # type: ignore[arg-type]

    def look(self, fused: Streams) -> Streams:
        """Let the cognitive token that left the memory read the perceptual tokens: `[*, N, D]`."""
        batch = fused.cognitive.shape[:-2]
        tokens, cognitive = (part.flatten(0, len(batch) - 1) for part in fused)
        for look in self.looks:
            cognitive = look(cognitive, tokens)
        return fused._replace(cognitive=cognitive.unflatten(0, batch))

    def loss(
        self,
        remembered: Remembered,
        action: Float[Tensor, "n C A"],
        *,
        generator: torch.Generator | None = None,
        repeats: int = 1,
    ) -> Float[Tensor, "n C"]:
        """Return the squared error of the denoising of every action, mean over its numbers.

        Args:
            remembered: Of n moments, `[n, N, D]` and `[n, 1, E]`.
            action: What the demonstrator did from then on.
            generator: Of noise, its level, and of what guidance hides.
            repeats: Draws of noise per moment (4, in MemoryVLA).
        """
        clean = self.scale.normalize(action).repeat(repeats, 1, 1)
        count, device = len(clean), clean.device
        hidden = torch.rand(count, device=device, generator=generator) < self.expert.drop
        remembered = states.tree_map(lambda x: x.repeat(repeats, 1, 1), remembered)
        noisy, time, target = self.denoising.disturb(clean, generator)
        condition = self._condition(remembered, hidden)
        guess = self.expert(noisy, self.expert.time_code(time), condition)
        return (guess.float() - target).square().mean(-1).unflatten(0, (repeats, -1)).mean(0)

    def draw(
        self, remembered: Remembered, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n C A"]:
        """Draw chunks of actions, in the units of the demonstrations."""
        like = remembered.present.cognitive
        noise = self.temperature * torch.randn(
            len(like), self.chunk, self.actions,
            generator=generator, device=like.device, dtype=like.dtype,
        )  # fmt: skip
        times = torch.tensor(self.denoising.times, device=like.device)
        codes = self.expert.time_code(times).split(1)
        condition = self._condition(remembered, None)
        if self.guidance == 1:
            return self.scale.restore(
                self.denoising.draw(noise, lambda x, i: self.expert(x, codes[i], condition))
            )
        blind = self._condition(remembered, torch.ones(len(like), device=like.device).bool())
        both = states.tree_map(lambda a, b: torch.cat([a, b]), condition, blind)

        def guided(x: Tensor, i: int) -> Tensor:
            told, untold = self.expert(x.repeat(2, 1, 1), codes[i], both).chunk(2)
            return untold + self.guidance * (told - untold)

        return self.scale.restore(self.denoising.draw(noise, guided))

    def act(
        self,
        sight: Sight,
        state: ActingState,
        start: Bool[Tensor, " B"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "B A"], ActingState]:
        """Return the next action of every robot.

        The memory is written at every step; a chunk is drawn where the last one is used up, and
        where an episode begins.

        Args:
            sight: `[B, ...]`.
            state: As `initial_state` or the last call returned it.
            start: Where an episode begins.
            generator: Of the noise.

        Raises:
            InvalidValueError: If a number is not finite: the memory would keep it.
        """
        for name in ("proprioception", "objects", "oracle"):
            if not (seen := getattr(sight, name)).isfinite().all():
                bad = seen[~seen.isfinite()][0].item()
                raise InvalidValueError(name, bad, "finite numbers")
        remembered, memory = self.step(sight, state.memory, start)
        due = start | (state.place >= self.execute)
        queue, place = state.queue, torch.where(due, 0, state.place)
        rows = due.nonzero()[:, 0]
        if len(rows):
            known = states.take(remembered, rows)
            queue = queue.index_copy(0, rows, self.draw(known, generator).to(queue.dtype))
        action = queue[torch.arange(len(queue), device=queue.device), place]
        return action, ActingState(memory, queue, place + 1)

    def _condition(self, remembered: Remembered, hidden: Tensor | None) -> Any:
        fused = self.look(remembered.fused)
        if self.expert.modulated:
            streams, memory = remembered.present, (fused.perceptual, fused.cognitive)
        else:
            streams, memory = fused, None
        return self.expert.condition(streams.cognitive, streams.perceptual, memory, hidden)
