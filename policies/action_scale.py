"""The scale of actions: quantiles of the demonstrations become −1 and 1."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engram.kernels.errors import DataError, InvalidValueError


class ActionScale(nn.Module):
    """z = 2 (a − low) / (high − low) − 1, cut to [−1, 1]; a number that never moves stays put.

    Args:
        low: The quantile (1 %, in MemoryVLA) that becomes −1, of every number in an action.
        high: The quantile (99 %) that becomes 1.
    """

    def __init__(self, low: Float[Tensor, " A"], high: Float[Tensor, " A"]):
        super().__init__()
        if not (low <= high).all() or not (low.isfinite() & high.isfinite()).all():
            raise InvalidValueError(
                "action quantiles", f"{low.tolist()} … {high.tolist()}", "finite, low ≤ high"
            )
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def normalize(self, action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return actions on the scale of the network.

        Raises:
            DataError: If an action is not finite, or has another size.
        """
        if action.shape[-1] != len(self.low):
            raise DataError(f"an action has {action.shape[-1]} numbers; allowed: {len(self.low)}")
        if not (finite := action.isfinite().all(-1)).all():
            raise DataError(f"an action is {action[~finite][0].tolist()}; allowed: finite numbers")
        spread = self.high - self.low
        z = 2 * (action - self.low) / torch.where(spread > 0, spread, 1.0) - 1
        return torch.where(spread > 0, z.clamp(-1, 1), 0.0)

    def restore(self, z: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return actions in the units of the demonstrations; what lies beyond ±1 is cut."""
        # lerp ends exactly at `high`; low + (high - low) may round to beyond it.
        return torch.lerp(self.low, self.high, (z.to(self.low.dtype).clamp(-1, 1) + 1) / 2)
