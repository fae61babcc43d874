"""How a memory bank is read: time codes, blocks of cross attention, fusion."""

import abc
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError


class TimeCode(nn.Module, abc.ABC):
    """A code of an entry's time, added to its tokens where they serve as keys.

    code(t) = W₂ SiLU(W₁ [cos t·f, sin t·f] + b), frequencies f from 1 down to 1e-4. W₂ has no bias,
    which would shift all keys alike, and softmax would ignore it.

    Args:
        features: Width of the stream.
        width: Width of the sinusoid, even.
    """

    def __init__(self, features: int, width: int = 64):
        super().__init__()
        if width < 2 or width % 2:
            raise InvalidValueError("width", width, "even numbers, 2 or more")
        self.width = width
        self.inner = nn.Linear(width, features)
        self.outer = nn.Linear(features, features, bias=False)

    @abc.abstractmethod
    def position(self, time: Float[Tensor, "n L"], now: Int[Tensor, " n"]) -> Tensor:
        """Return what is encoded of the times of entries that are read at `now`."""

    def forward(self, time: Float[Tensor, "n L"], now: Int[Tensor, " n"]) -> Float[Tensor, "n L D"]:
        """Encode the times of entries."""
        half = self.width // 2
        index = torch.arange(half, dtype=time.dtype, device=time.device)
        frequency = (index * (-math.log(1e4) / half)).exp()
        angle = self.position(time, now).reshape(-1, 1) * frequency
        code = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.inner.weight.dtype)
        return self.outer(F.silu(self.inner(code))).view(*time.shape, -1)


class AbsoluteTime(TimeCode):
    """Encodes when an entry was written, counted from the start of its scope."""

    def position(self, time: Float[Tensor, "n L"], now: Int[Tensor, " n"]) -> Tensor:
        """Return the times."""
        del now
        return time


class RelativeTime(TimeCode):
    """Encodes how long ago an entry was written, so that long episodes meet no new codes."""

    def position(self, time: Float[Tensor, "n L"], now: Int[Tensor, " n"]) -> Tensor:
        """Return the ages."""
        return now[:, None] - time


class LogarithmicTime(TimeCode):
    """Encodes the logarithm of an entry's age, ln(1 + age).

    Twice as long ago is as far away at any age: an age that training never saw is close to one
    that it did, where `RelativeTime` turns its fastest frequencies many times.
    """

    def position(self, time: Float[Tensor, "n L"], now: Int[Tensor, " n"]) -> Tensor:
        """Return the logarithms of the ages."""
        return (now[:, None] - time).clamp_min(0).log1p()


class GateFusion(nn.Module):
    """Mixes input and retrieved tokens by a learned gate: g ⊙ x + (1 − g) ⊙ h, g = σ(W [x; h] + b).

    The paper prints the gate's complement, the code this.

    Args:
        features: Width of the stream.
        keep: How much of the input the gate keeps at first, more than 0 and less than 1; one half
            as published.
    """

    def __init__(self, features: int, *, keep: float = 0.5):
        super().__init__()
        if not 0 < keep < 1:
            raise InvalidValueError("keep", keep, "more than 0, less than 1")
        self.gate = nn.Linear(2 * features, features)
        nn.init.normal_(self.gate.weight, std=1e-3)
        nn.init.normal_(self.gate.bias, mean=math.log(keep / (1 - keep)), std=1e-3)

    def forward(self, x: Float[Tensor, "*n D"], h: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Mix input x and retrieved h."""
        gate = self.gate(torch.cat([x, h.to(x.dtype)], dim=-1)).sigmoid()
        return torch.lerp(h, x.to(h.dtype), gate.to(h.dtype))


class AddFusion(nn.Module):
    """Averages input and retrieved tokens: k x + (1 − k) h.

    Args:
        features: Width of the stream.
        keep: k; one half as published.
    """

    def __init__(self, features: int, *, keep: float = 0.5):
        super().__init__()
        del features
        if not 0 < keep < 1:
            raise InvalidValueError("keep", keep, "more than 0, less than 1")
        self.keep = keep

    def forward(self, x: Float[Tensor, "*n D"], h: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Average input x and retrieved h."""
        return self.keep * x + (1 - self.keep) * h


class RetrievalBlock(nn.Module):
    """Cross attention from tokens to the bank, and an MLP, each followed by its LayerNorm.

    y = LN(x + Attn(W_q x, W_k k, W_v v)),  out = LN(y + MLP(y)), MLP = linear, GELU, linear, 4 D
    wide; the heads are concatenated without a further projection. Keys have no bias: it would shift
    all logits of a query alike, which softmax ignores.

    A key is an entry's token plus the code of the entry's time, a value is the token. The bank is
    attended to as it is: W_k is applied to the queries and W_v to what they read, head by head, and
    codes are scored apart from tokens. A read costs H·N·L·N·D instead of L·N·D² operations
    and, where writes are detached, sends no gradient of the bank's size.

    Args:
        features: Width D of the stream.
        heads: Attention heads; they divide features.
        dropout: Of attention and of the MLP's hidden units; none in evaluation.
    """

    def __init__(self, features: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.value = nn.Linear(features, features), nn.Linear(features, features)
        self.key = nn.Linear(features, features, bias=False)
        self.attention_norm = nn.LayerNorm(features)
        self.widen, self.narrow = (
            nn.Linear(features, 4 * features),
            nn.Linear(4 * features, features),
        )
        self.norm = nn.LayerNorm(features)

    def forward(
        self,
        x: Float[Tensor, "nN D"],
        entries: Float[Tensor, "n S D"],
        code: Float[Tensor, "n L D"],
        mask: Float[Tensor, "n 1 L"],
    ) -> tuple[Float[Tensor, "nN D"], Float[Tensor, "n HN S"]]:
        """Read with N tokens per environment; no axis parts them from the environments.

        Args:
            x: The tokens.
            entries: Tokens of the L entries, one entry after the other.
            code: Codes of their times.
            mask: Zero, or minus infinity for an entry that is not there.

        Returns:
            The tokens, and the attention of every query to every token of the bank.
        """
        rows, width = x.shape
        batch, heads, size = len(entries), self.heads, width // self.heads
        q, scale = self.query(x), size**-0.5
        # One head is the same product without the shuffle of axes, which costs a robot's step more.
        if heads == 1:
            q = q @ self.key.weight
        else:
            q = q.view(rows, heads, size).transpose(0, 1) @ self.key.weight.view(heads, size, width)
            q = q.view(heads, batch, -1, width).transpose(0, 1)
        q = q.reshape(batch, -1, width)
        bias = torch.baddbmm(mask, q, code.mT, alpha=scale)
        logits = torch.bmm(q, entries.mT).view(*bias.shape, -1)
        weight = torch.add(bias[..., None], logits, alpha=scale).flatten(2).softmax(-1)
        dropped = F.dropout(weight, self.dropout) if self.dropout and self.training else weight
        read = torch.bmm(dropped.to(entries.dtype), entries)
        if heads == 1:
            read = self.value(read.view(rows, width))
        else:
            read = read.view(batch, heads, -1, width).transpose(0, 1).reshape(heads, rows, width)
            read = read @ self.value.weight.view(heads, size, width).transpose(1, 2)
            read = read.transpose(0, 1).reshape(rows, width) + self.value.bias
        y = self.attention_norm(x + read)
        hidden = F.gelu(self.widen(y))
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        return self.norm(y + self.narrow(hidden)), weight


class Retrieval(nn.Module):
    """Reads the bank of one stream with the tokens of the present input, and mixes both.

    Args:
        features: Width D of the stream.
        layers: Retrieval blocks, all of which read the same bank.
        heads: Attention heads of a block.
        dropout: Of a block.
        time_code: Builds the code of time, given the width.
        fusion: Builds what mixes the input and what was retrieved, given the width.
        read_self: An empty bank holds the input itself, at the present time; otherwise reading it
            returns the input.
        weigh: Whether to measure the attention that each entry receives.
    """

    def __init__(
        self,
        features: int,
        *,
        layers: int,
        heads: int,
        dropout: float,
        time_code: Callable[[int], TimeCode],
        fusion: Callable[[int], nn.Module],
        read_self: bool,
        weigh: bool,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(RetrievalBlock(features, heads, dropout) for _ in range(layers))
        self.time_code, self.fusion = time_code(features), fusion(features)
        self.read_self, self.weigh = read_self, weigh

    def forward(
        self,
        x: Float[Tensor, "n N D"],
        entries: Float[Tensor, "n L N D"],
        time: Float[Tensor, "n L"],
        age: Int[Tensor, " n"],
        used: Bool[Tensor, "n L"],
    ) -> tuple[Float[Tensor, "n N D"], Float[Tensor, "n L"] | None]:
        """Read a bank after `age` inputs.

        Args:
            x: The present input's tokens.
            entries: The bank's entries; unused slots hold zeros.
            time: Their times.
            age: Inputs seen before, which is the present time.
            used: Which slots to read; of an empty bank the last one, so that no query is without
                a key.

        Returns:
            What the stream sends on, and the attention received per entry, if it is measured.
        """
        batch, capacity, number, width = entries.shape
        empty = (age == 0)[:, None, None]
        if self.read_self:  # in the last slot; its time, zero, is the present
            last = torch.where(empty, x.to(entries.dtype), entries[:, -1])
            entries = torch.cat([entries[:, :-1], last[:, None]], dim=1)
        mask = torch.zeros_like(used, dtype=entries.dtype).masked_fill(~used, -torch.inf)[:, None]
        code, tokens = self.time_code(time, age), entries.flatten(1, 2)
        h, weights = x.reshape(-1, width), []
        for block in self.blocks:
            h, weight = block(h, tokens, code, mask)
            weights.append(weight)
        h = h.view(x.shape)
        if not self.read_self:
            h = torch.where(empty, x, h)
        if not self.weigh:
            return self.fusion(x, h), None
        received = torch.stack([weight.detach().mean(1) for weight in weights]).mean(0)
        received = received.view(batch, capacity, number).sum(2)
        return self.fusion(x, h), received.masked_fill(empty[:, 0], 0.0)
