"""How a memory bank is read: time codes, blocks of cross attention, fusion."""

import abc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.attention import MASKED, sinusoid
from engram.memory.sequence.bank_slots import in_use


class TimeCode(nn.Module, abc.ABC):
    """A code of an entry's time, added to its tokens where they serve as keys.

    code(t) = W₂ SiLU(W₁ [sin t·f, cos t·f] + b), frequencies f from 1 down to 1e-4. W₂ has no bias,
    which would shift all keys alike, and softmax would ignore it.

    Args:
        features: Width of the stream.
        width: Width of the sinusoid, even.
    """

    def __init__(self, features: int, width: int = 256):
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
        code = sinusoid(self.position(time, now), self.width).to(self.inner.weight.dtype)
        return self.outer(F.silu(self.inner(code)))


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


class GateFusion(nn.Module):
    """Mixes input and retrieved tokens by a learned gate: g ⊙ x + (1 − g) ⊙ h, g = σ(W [x; h] + b).

    The gate begins close to one half. (The paper prints the gate's complement, the code this.)
    """

    def __init__(self, features: int):
        super().__init__()
        self.gate = nn.Linear(2 * features, features)
        nn.init.normal_(self.gate.weight, std=1e-3)
        nn.init.normal_(self.gate.bias, std=1e-3)

    def forward(self, x: Float[Tensor, "*n D"], h: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Mix input x and retrieved h."""
        return h + self.gate(torch.cat([x, h.to(x.dtype)], dim=-1)).sigmoid() * (x - h)


class AddFusion(nn.Module):
    """Averages input and retrieved tokens: (x + h) / 2."""

    def __init__(self, features: int):
        super().__init__()
        del features

    def forward(self, x: Float[Tensor, "*n D"], h: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Average input x and retrieved h."""
        return (x + h) / 2


class RetrievalBlock(nn.Module):
    """Cross attention from tokens to the bank, and an MLP, each followed by its LayerNorm.

    y = LN(x + Attn(W_q x, W_k k, W_v v)),  out = LN(y + MLP(y)), MLP = linear, GELU, linear, 4 D
    wide; the heads are concatenated without a further projection. Keys have no bias: it would shift
    all logits of a query alike, which softmax ignores.

    The bank is attended to as it is: W_k is applied to the queries and W_v to what they read, head
    by head, so a read costs N·H·L·N·D instead of L·N·D² operations (H heads).

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
        self.mlp = nn.Sequential(
            nn.Linear(features, 4 * features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * features, features),
        )
        self.norm = nn.LayerNorm(features)

    def forward(
        self,
        x: Float[Tensor, "n N D"],
        keys: Float[Tensor, "n S D"],
        values: Float[Tensor, "n S D"],
        visible: Bool[Tensor, "n S"],
        weigh: bool = False,
    ) -> tuple[Float[Tensor, "n N D"], Tensor | None]:
        """Read; also return, where `weigh` asks for it, the mean attention per key `[n, S]`."""
        batch, number, width = x.shape
        heads, size = self.heads, width // self.heads

        def by_head(rows: Tensor, weight: Tensor, last: int) -> Tensor:
            return torch.bmm(rows, weight).view(heads, batch, number, last).transpose(0, 1)

        q = self.query(x).view(batch * number, heads, size).transpose(0, 1)
        q = by_head(q, self.key.weight.view(heads, size, width), width)
        q = q.reshape(batch, heads * number, width)
        dropout = self.dropout if self.training else 0.0
        received = None
        if weigh:
            logits = torch.bmm(q, keys.transpose(1, 2))
            weight = torch.where(visible[:, None], logits, MASKED).softmax(-1)
            received = weight.detach().mean(1)
            read = torch.bmm(F.dropout(weight, dropout).to(values.dtype), values)
        else:
            read = F.scaled_dot_product_attention(
                q[:, None],
                keys[:, None],
                values[:, None],
                visible[:, None, None],
                dropout,
                scale=size**-0.5,
            )
        read = read.view(batch, heads, number, width).transpose(0, 1).reshape(heads, -1, width)
        weight = self.value.weight.view(heads, size, width).transpose(1, 2)
        read = by_head(read, weight, size).transpose(1, 2).reshape(x.shape) + self.value.bias
        y = self.attention_norm(x + read)
        return self.norm(y + self.mlp(y)), received


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
    ) -> tuple[Float[Tensor, "n N D"], Tensor | None]:
        """Read a bank after `age` inputs, whose unused slots hold zeros.

        Returns:
            What the stream sends on, and the attention received per entry `[n, L]`, or None.
        """
        _, capacity, number, _ = entries.shape
        empty = age == 0
        if self.read_self:
            entries, time = self._with_self(x, entries, time, empty)
        # An empty bank shows one slot, so that no row of attention is without a key.
        used = in_use(age.clamp(min=1), capacity)
        visible = used[:, :, None].expand(-1, -1, number).flatten(1)
        keys = (entries + self.time_code(time, age)[:, :, None]).flatten(1, 2)
        values = entries.flatten(1, 2)
        h, total = x, None
        for block in self.blocks:
            h, received = block(h, keys, values, visible, self.weigh)
            if received is not None:
                total = received if total is None else total + received
        if not self.read_self:
            h = torch.where(empty[:, None, None], x, h)
        if total is not None:
            total = total.unflatten(1, (capacity, number)).sum(2) / len(self.blocks)
            total = torch.where(empty[:, None], 0.0, total)
        return self.fusion(x, h), total

    def _with_self(
        self, x: Tensor, entries: Tensor, time: Tensor, empty: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put the input into the last slot of the banks that are empty; their time is zero."""
        last = torch.where(empty[:, None, None], x.to(entries.dtype), entries[:, -1])
        return torch.cat([entries[:, :-1], last[:, None]], dim=1), time
