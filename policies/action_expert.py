"""The action expert: a diffusion transformer that attends to cognition and to perception."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.attention import sinusoid
from engram.policies.attention import CrossAttention, Related, SelfAttention


class Condition(NamedTuple):
    """What actions are drawn under; made once, used at every step of a draw."""

    cognitive: Float[Tensor, "n 1 D"]
    """The token that leads the sequence of actions."""
    perceptual: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values `[n, H, N, d]` of every block."""
    modulation: tuple[tuple[Tensor, Tensor], ...]
    """Likewise of what modulates the blocks; empty where nothing does."""


class ExpertBlock(nn.Module):
    """Self-attention, attention to perceptual tokens, MLP; pre-norm, residual.

    With `modulated`, what the actions read from a memory scales and shifts the input of the MLP
    (the modulator of RoboMME, arXiv 2603.04639).

    Args:
        width: Features.
        heads: Attention heads; they divide the width.
        modulated: Whether a memory modulates the block.
    """

    def __init__(self, width: int, heads: int, *, modulated: bool):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = SelfAttention(width, heads)
        self.perception = CrossAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.memory = CrossAttention(width, heads) if modulated else None
        self.scale_shift = nn.Linear(width, 2 * width) if modulated else None

    def forward(
        self,
        x: Float[Tensor, "n C D"],
        perceptual: tuple[Tensor, Tensor],
        modulation: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "n C D"]:
        """Return the tokens, changed."""
        x = x + self.own(self.norms[0](x))
        x = x + self.perception(self.norms[1](x), perceptual)
        h = self.norms[2](x)
        if self.memory is not None and self.scale_shift is not None:
            assert modulation is not None
            scale, shift = self.scale_shift(self.memory(h, modulation)).chunk(2, -1)
            h = h * (1 + scale) + shift
        return x + self.mlp(h)


class ActionExpert(nn.Module):
    """Diffusion transformer over [cognition ; a_1 … a_C] (MemoryVLA, arXiv 2508.19236, §3.4).

    The first token is W c + the code of the noise time; actions are embedded, positions learned.
    The blocks attend to the sequence itself (cognition attention) and to the perceptual tokens
    (perception attention); no adaptive norms but those of `modulated`. In training the cognitive
    token is replaced by a learned one with probability `drop`, for classifier-free guidance, and
    so is the one among the tokens that modulate: perceptual tokens stay in both branches.

    Deviations: perception attention sees W p + U GELU(V [p; c]), every perceptual token in the
    light of the cognitive one (the learned one, where that is hidden), not the tokens alone. The
    published layers start with the attention to perception, or with the last
    layer, at zero, so that most parameters get no gradient at first (one variant is dead for
    good but for a bias). Here output projections start small, not zero: every parameter gets
    a gradient from the first step on.

    Args:
        actions: Numbers A in one action.
        chunk: Actions C drawn at once.
        perceptual: Features of the perceptual tokens.
        cognitive: Features of the cognitive token.
        width: Features inside.
        depth: Blocks.
        heads: Attention heads.
        drop: Probability that training hides the cognitive token.
        modulated: Whether memory tokens modulate the blocks.
    """

    def __init__(
        self,
        actions: int,
        chunk: int,
        *,
        perceptual: int,
        cognitive: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        drop: float = 0.1,
        modulated: bool = False,
    ):
        super().__init__()
        if chunk < 1:
            raise InvalidValueError("chunk", chunk, "1 or more")
        if width < 1:
            raise InvalidValueError("width", width, "1 or more")
        if heads < 1 or width % heads or width % 2:
            raise InvalidValueError("heads", heads, f"divisors of width = {width}, which is even")
        if depth < 1:
            raise InvalidValueError("depth", depth, "1 or more")
        if not 0 <= drop < 1:
            raise InvalidValueError("drop", drop, "0 or more, less than 1")
        self.actions, self.chunk, self.width = actions, chunk, width
        self.drop, self.modulated = drop, modulated
        self.action_in = nn.Linear(actions, width)
        self.cognition_in = nn.Linear(cognitive, width)
        self.related = Related(perceptual, cognitive, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if modulated:
            self.memory_perception_in = nn.Linear(perceptual, width)
            self.memory_cognition_in = nn.Linear(cognitive, width)
        self.null = nn.Parameter(torch.randn(cognitive) * 0.02)
        self.position = nn.Parameter(torch.randn(chunk + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            ExpertBlock(width, heads, modulated=modulated) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.action_out = nn.Linear(width, actions)
        for block in self._blocks():
            for last in (block.own.out, block.perception.out, block.mlp[-1]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=width**-0.5 / (3 * depth) ** 0.5)
            if block.scale_shift is not None:
                nn.init.normal_(block.scale_shift.weight, std=0.02)
        nn.init.normal_(self.action_out.weight, std=0.02)

    def condition(
        self,
        cognitive: Float[Tensor, "n 1 E"],
        perceptual: Float[Tensor, "n N D"],
        memory: tuple[Tensor, Tensor] | None = None,
        hidden: Tensor | None = None,
    ) -> Condition:
        """Prepare what every step of a draw needs.

        Args:
            cognitive: The cognitive token.
            perceptual: The perceptual tokens.
            memory: What modulates the blocks, perceptual and cognitive tokens, where the expert
                is built for it.
            hidden: Where cognitive tokens are replaced by the learned one, `[n]` bool.
        """
        if (memory is not None) != self.modulated:
            raise InvalidValueError("memory", type(memory).__name__, f"modulated={self.modulated}")
        if hidden is not None:
            cognitive = torch.where(hidden[:, None, None], self.null, cognitive)
            if memory is not None:
                memory = memory[0], torch.where(hidden[:, None, None], self.null, memory[1])
        seen = self.related(perceptual, cognitive)
        modulation: tuple[tuple[Tensor, Tensor], ...] = ()
        if memory is not None:
            tokens = torch.cat(
                [self.memory_perception_in(memory[0]), self.memory_cognition_in(memory[1])], 1
            )
            modulation = tuple(
                block.memory.keys(tokens) for block in self._blocks() if block.memory
            )
        return Condition(
            self.cognition_in(cognitive),
            tuple(block.perception.keys(seen) for block in self._blocks()),
            modulation,
        )

    def time_code(self, times: Float[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Encode noise times in [0, 1]."""
        return self.time_in(sinusoid(times * 1000, self.width).to(self.position.dtype))

    def forward(
        self,
        noisy: Float[Tensor, "n C A"],
        time_code: Float[Tensor, "#n D"],
        condition: Condition,
    ) -> Float[Tensor, "n C A"]:
        """Predict what `Denoising.disturb` asks for."""
        first = condition.cognitive + time_code[:, None]
        x = torch.cat([first, self.action_in(noisy)], 1) + self.position
        for i, block in enumerate(self._blocks()):
            modulation = condition.modulation[i] if self.modulated else None
            x = block(x, condition.perceptual[i], modulation)
        return self.action_out(self.norm(x[:, 1:]))

    def _blocks(self) -> list[ExpertBlock]:
        return list(self.blocks)  # type: ignore[arg-type]
