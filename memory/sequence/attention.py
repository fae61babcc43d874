"""Attention over the last W inputs of every scope, in blocks: cost T·W, never T²."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

MASKED = -1e30
"""Logit of a key that may not be seen; finite, so that a row without keys stays finite."""


def banded_attention(
    q: Float[Tensor, "B T H D"],
    k: Float[Tensor, "B S H D"],
    v: Float[Tensor, "B S H E"],
    logit_by_offset: Float[Tensor, "*BT H O"],
    reach: Int[Tensor, "B T"],
) -> Float[Tensor, "B T H E"]:
    """Attend from every step to itself and to at most P steps before it.

    y_t = Σ_o softmax_o(q_t·k_{t−o}/√D + c_{t,o}) v_{t−o},  o = 0 … reach_t ≤ P.

    Args:
        q: Queries of T steps.
        k: Keys of the P steps before the chunk, oldest first, then those of its T steps. They
            must be finite, also where `reach` forbids them.
        v: Values, likewise.
        logit_by_offset: c, the position term by how many steps back the key lies;
            `[H, P+1]` or `[B, T, H, P+1]` (O = P+1).
        reach: How many steps back each query may look.
    """
    past = k.shape[1] - q.shape[1]
    steps, dim = q.shape[1], q.shape[-1]
    # A block of Q queries needs the Q + P keys that end with its last one.
    size = min(steps, max(past, 16))
    blocks = -(-steps // size)
    missing = blocks * size - steps
    if missing:
        q, k, v = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (q, k, v))
        reach = F.pad(reach, (0, missing))
        if logit_by_offset.ndim == 4:
            logit_by_offset = F.pad(logit_by_offset, (0, 0, 0, 0, 0, missing))
    q = rearrange(q, "B (n q) H D -> B n H q D", n=blocks) * dim**-0.5
    k = rearrange(k.unfold(1, size + past, size), "B n H D s -> B n H D s")
    v = rearrange(v.unfold(1, size + past, size), "B n H E s -> B n H s E")
    if logit_by_offset.ndim == 4:
        by_offset = rearrange(logit_by_offset, "B (n q) H o -> B n H q o", n=blocks)
    else:
        by_offset = logit_by_offset[None, None, :, None, :]  # [1, 1, H, 1, o]
    row = torch.arange(size, device=q.device)[:, None]
    column = torch.arange(size + past, device=q.device)[None, :]
    offset = row + past - column  # [q, s]
    limit = rearrange(reach, "B (n q) -> B n 1 q 1", n=blocks)
    visible = (offset >= 0) & (offset <= limit)
    index = offset.clamp(0, past)
    shape = (*by_offset.shape[:3], size, size + past)
    position = by_offset.expand(*shape[:4], past + 1).gather(-1, index.expand(shape))
    logits = torch.where(visible, q @ k + position, MASKED)
    y = logits.softmax(-1) @ v  # [B, n, H, q, E]
    return rearrange(y, "B n H q E -> B (n q) H E")[:, :steps]


def attend(
    q: Float[Tensor, "*n C D"], k: Float[Tensor, "*n N D"], v: Float[Tensor, "*n N E"]
) -> Float[Tensor, "*n C E"]:
    """Attend to all keys: softmax(q·kᵀ/√D) v."""
    if q.device.type == "cpu" and v.dtype == torch.bfloat16:
        # torch's fused kernel takes ten times as long there, backwards.
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def finite_past(
    past: Float[Tensor, "B P *rest"], age: Int[Tensor, " B"]
) -> Float[Tensor, "B P *rest"]:
    """Zero the slots of a newest-last cache that hold nothing: all but the last `age`."""
    size = past.shape[1]
    slot = torch.arange(size, device=past.device)
    filled = slot >= size - age[:, None]  # [B, P]
    return torch.where(filled.view(*filled.shape, *[1] * (past.ndim - 2)), past, 0.0)


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal code `[..., dim]`: all sines, then all cosines; frequencies 1e4^(−f/dim)."""
    frequency = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None].to(torch.float64) * 10_000.0 ** (-frequency / dim)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
