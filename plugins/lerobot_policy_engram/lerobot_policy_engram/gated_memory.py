"""The part that is attached: a memory between two projections, silent until it is trained."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.named_memory import make_memory


class GatedMemory(nn.Module):
    """Reads nothing but zeros before training: r = W m(LN(V f)) with W = 0.

    A policy that adds r to one of its own features therefore starts exactly where it was. W gets a
    gradient at the first step, the memory and V from the second on, as soon as W is not zero.

    Args:
        d_features: Width of what the memory is told of a frame.
        d_read: Width of the feature that the reading is added to.
        config: The memory.
    """

    def __init__(self, d_features: int, d_read: int, config: MemoryConfig):
        super().__init__()
        self.told = nn.Sequential(nn.Linear(d_features, config.width), nn.LayerNorm(config.width))
        self.memory = make_memory(config)
        self.reading = nn.Linear(self.memory.d_out, d_read, bias=False)
        nn.init.zeros_(self.reading.weight)

    def initial_state(self, batch: int) -> Any:
        """Return the empty memory of `batch` rows."""
        return self.memory.initial_state(batch)

    def forward(
        self, features: Float[Tensor, "T B F"], state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], Any]:
        """Read and write T frames; the state carries gradients."""
        y, state = self.memory(self.told(features), state, start)
        return self.reading(y), state

    def step(
        self, features: Float[Tensor, "B F"], state: Any, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Any]:
        """Read and write one frame."""
        y, state = self.memory.step(self.told(features), state, start)
        return self.reading(y), state
