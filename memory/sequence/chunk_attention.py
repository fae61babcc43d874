"""HCAM's two-level read: score the chunk summaries, then attend inside the chosen chunks."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.attention import MASKED, sinusoid

BLOCK = 2**19
"""Numbers gathered at a time on a CPU: what stays in its cache. Bounds memory, not the result."""
BLOCK_ON_DEVICE = 2**26
"""Likewise on a GPU, which wants fewer and larger pieces."""


TIE = 1e-5
"""By how much of its score a chunk ranks lower for every chunk that is newer than it."""


class ChunkAttention(nn.Module):
    """The attention of HCAM (Lampinen et al. 2021, arXiv 2105.14039, section 3).

    With queries x, summaries s_i and contents c_i of M chunks, all stored ones detached:
    l_i = (W_q x)·(W_k s_i)/√d;  I = the k' = min(k, M) largest;  R = softmax over I;
    A_i = MHA(x, c_i + PE), with a softmax inside each chunk;  y = Σ_{i∈I} R_i A_i.
    PE is sinusoidal with the newest step at position 0.

    Keys inside a chunk are never projected: (W_Q x)·(W_K c) = (W_Kᵀ W_Q x)·c, so a query costs
    M·D for the scores and k·C·D per head for the chosen chunks.

    Deviations from the released attention: without a visible chunk the output is exactly zero
    (there: position codes and biases of masked chunks, averaged); k' = min(k, M) (there: an
    error); keys inside a chunk carry no bias, which a softmax ignores; optionally the age of a
    chunk is part of its score, since content alone cannot address "sixteen steps ago". In the
    choice of I, not in R, a score counts less by `TIE` of its size for every newer chunk: nothing
    at the usual capacities, 4 % at a capacity of 4096. Scores are computed in the parameters'
    precision, autocast or not: a rounded score chooses another chunk.

    Args:
        d_query: Features of a query.
        d_memory: Features D of a stored step, an even number.
        d_out: Features of the output.
        chunk: Steps C in a chunk.
        top_k: Chunks k that each query attends to.
        heads: Heads inside a chunk; they divide d_out.
        ages: Chunk ages with a learned score; 0 for none.
    """

    def __init__(
        self,
        d_query: int,
        d_memory: int,
        d_out: int,
        *,
        chunk: int,
        top_k: int,
        heads: int = 1,
        ages: int = 0,
    ):
        super().__init__()
        if heads < 1 or d_out % heads:
            raise InvalidValueError("heads", heads, f"divisors of d_out = {d_out}")
        if d_memory % 2:
            raise InvalidValueError("d_memory", d_memory, "even numbers, for the position code")
        for name, value in (("chunk", chunk), ("top_k", top_k)):
            if value < 1:
                raise InvalidValueError(name, value, "1 or more")
        self.heads, self.top_k = heads, top_k
        self.query = nn.Linear(d_query, d_out, bias=False)
        self.key = nn.Linear(d_memory, d_out, bias=False)
        self.within_query = nn.Linear(d_query, d_out)
        self.within_key = nn.Linear(d_memory, d_out, bias=False)
        self.within_value = nn.Linear(d_memory, d_out)
        self.linear = nn.Linear(d_out, d_out)
        self.age = nn.Parameter(torch.zeros(ages, d_out)) if ages else None
        newest_first = torch.arange(chunk - 1, -1, -1)
        self.position: Tensor
        self.register_buffer(
            "position",
            sinusoid(newest_first, d_memory).to(self.query.weight.dtype),
            persistent=False,
        )

    def choose(
        self,
        x: Float[Tensor, "B Q E"],
        keys: Float[Tensor, "B M D"],
        visible: Bool[Tensor, "B Q M"],
        age: Int[Tensor, "B Q M"] | None = None,
    ) -> tuple[Int[Tensor, "B Q k"], Float[Tensor, "B Q k"]]:
        """Score the summaries and keep the best.

        Args:
            x: Queries.
            keys: Chunk summaries; rows that no query sees may hold anything.
            visible: Which chunks each query may read.
            age: Chunks completed after each one; it settles ties, and takes part in the score
                where ages do.

        Returns:
            The indices of the kept chunks and their relevance, zero where not visible.
        """
        if torch.is_grad_enabled():
            # 0 · NaN would poison the query's gradient, and the caller may write into its keys
            # before the backward pass reads them: train on a clean copy.
            keys = torch.where(visible.any(1)[..., None], keys, 0.0)
        with torch.autocast(x.device.type, enabled=False):
            logits = self._score(x.to(self.query.weight.dtype), keys, age)
        logits = torch.where(visible, logits, MASKED)
        rank = logits.detach()
        if age is not None:
            # Chunks that hold the same inputs in another order have equal summaries but for
            # rounding, which differs between a step and a sequence: the newer one wins. Chunks
            # of an older scope have any age, so what is not visible stays last.
            rank = torch.where(visible, rank - TIE * (1 + rank.abs()) * age, MASKED)
        index = rank.topk(min(self.top_k, logits.shape[-1]), dim=-1).indices
        best = logits.gather(-1, index)
        seen = visible.gather(-1, index)
        relevance = torch.where(seen, best.softmax(-1), 0.0)
        return index, relevance

    def _score(
        self, x: Float[Tensor, "B Q E"], keys: Float[Tensor, "B M D"], age: Tensor | None
    ) -> Float[Tensor, "B Q M"]:
        query = self.query(x)
        logits = torch.einsum("bqd,bmd->bqm", query @ self.key.weight, keys)
        if self.age is not None:
            assert age is not None, "a memory with ages passes them"
            by_age = query @ self.age.t()  # [B, Q, ages]
            logits = logits + by_age.gather(-1, age.clamp(0, len(self.age) - 1))
        return logits * query.shape[-1] ** -0.5

    def heads_query(self, x: Float[Tensor, "B Q E"]) -> Float[Tensor, "B Q H D"]:
        """Carry the queries over into the space of the stored steps, scaled."""
        q = rearrange(self.within_query(x), "B Q (H d) -> B Q H d", H=self.heads)
        weight = rearrange(self.within_key.weight, "(H d) D -> H d D", H=self.heads)
        return torch.einsum("bqhd,hde->bqhe", q * q.shape[-1] ** -0.5, weight)

    def project(
        self, read: Float[Tensor, "B Q H D"], relevance: Float[Tensor, "B Q k"]
    ) -> Float[Tensor, "B Q d"]:
        """Apply the value and output maps to what was read; zero where nothing was."""
        weight = rearrange(self.within_value.weight, "(H d) D -> H d D", H=self.heads)
        value = rearrange(torch.einsum("bqhe,hde->bqhd", read, weight), "B Q H d -> B Q (H d)")
        # The kept relevances sum to one or, in an empty memory, to zero: biases weigh as much.
        mass = relevance.sum(-1, keepdim=True)
        value = value + mass * self.within_value.bias
        return value @ self.linear.weight.t() + mass * self.linear.bias

    def attend(
        self,
        x: Float[Tensor, "B Q E"],
        contents: Float[Tensor, "B M C D"],
        keys: Float[Tensor, "B M D"],
        visible: Bool[Tensor, "B Q M"],
        age: Int[Tensor, "B Q M"] | None = None,
    ) -> Float[Tensor, "B Q d"]:
        """Read for many queries at once.

        Args:
            x: Queries.
            contents: Stored steps, the position code already added.
            keys: Chunk summaries, without it.
            visible: Which chunks each query may read.
            age: Chunks completed after each one, as `choose` takes them.
        """
        index, relevance = self.choose(x, keys, visible, age)
        if x.shape[1] == 1:
            chosen = gather_chunks(contents, index, relevance > 0)
            read = read_chunks(self.heads_query(x), relevance, chosen)
        else:
            # Cleaned once, not in every gathered copy: zero times NaN is not zero.
            contents = torch.where(visible.any(1)[..., None, None], contents, 0.0)
            read = _BlockwiseRead.apply(self.heads_query(x), relevance, index, contents)
        return self.project(read, relevance)


def gather_chunks(
    contents: Float[Tensor, "B M C D"], index: Int[Tensor, "B Q k"], seen: Bool[Tensor, "B Q k"]
) -> Float[Tensor, "B Q k C D"]:
    """Copy the chosen chunks, zeros where not seen; the memory itself is never repeated."""
    chosen = _gather_flat(contents, index)
    chosen = chosen.view(*index.shape, *contents.shape[2:])
    return chosen.masked_fill_(~seen[..., None, None], 0.0)


def read_chunks(
    q: Float[Tensor, "B Q H D"], relevance: Float[Tensor, "B Q k"], c: Float[Tensor, "B Q k C D"]
) -> Float[Tensor, "B Q H D"]:
    """Σ_i R_i Σ_j softmax_j(q·c_ij) c_ij."""
    chosen = c.shape[2]
    c = rearrange(c, "B Q k C D -> B Q (k C) D")
    logits = rearrange(q @ c.mT, "B Q H (k C) -> B Q H k C", k=chosen)
    weight = logits.softmax(-1) * relevance[:, :, None, :, None]
    return rearrange(weight, "B Q H k C -> B Q H (k C)") @ c


class _BlockwiseRead(torch.autograd.Function):
    """`read_chunks` of gathered chunks, gathered again in the backward pass.

    Autograd would keep the Q·k·C·D gathered numbers of a whole chunk of training; this keeps the
    Q·H·k·C attention weights. Stored steps are detached, so only q and the relevance get
    gradients: with a = softmax(q·c), w = R a and y = Σ w c,
    ∂R = Σ a g, ∂q = Σ_c R a (g − Σ a g) c, where g = ∂y·c.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, relevance: Tensor, index: Tensor, contents: Tensor) -> Tensor:
        device = q.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.autocast = {"device_type": device, "dtype": dtype, "enabled": enabled}
        outputs, weights = [], []
        for block in _blocks(index, contents):
            c = _gather_flat(contents, index[:, block])
            inside = _split(q[:, block] @ c.mT, index).softmax(-1)
            outputs.append(_join(inside * relevance[:, block, None, :, None]) @ c)
            weights.append(inside)
        ctx.save_for_backward(relevance, index, contents, torch.cat(weights, dim=1))
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        relevance, index, contents, inside = ctx.saved_tensors
        to_q, to_relevance = [], []
        # The backward pass runs outside the autocast that the forward pass ran in.
        with torch.autocast(**ctx.autocast):
            for block in _blocks(index, contents):
                c = _gather_flat(contents, index[:, block])
                a = inside[:, block]
                g = _split(grads[0][:, block] @ c.mT, index)
                by_chunk = (a * g).sum(-1, keepdim=True)  # [B, q, H, k, 1]
                to_relevance.append(by_chunk.sum(2)[..., 0])
                share = relevance[:, block, None, :, None]
                to_q.append(_join(a * (g - by_chunk) * share) @ c)
        # Under autocast the products come out in half precision.
        relevance_grad = torch.cat(to_relevance, dim=1).to(relevance.dtype)
        return torch.cat(to_q, dim=1).to(grads[0].dtype), relevance_grad, None, None


def _gather_flat(contents: Tensor, index: Tensor) -> Tensor:
    """Copy the chosen chunks as `[B, q, k C, D]`."""
    batch, slots, chunk, dim = contents.shape
    row = index + slots * torch.arange(batch, device=index.device)[:, None, None]
    chosen = contents.reshape(batch * slots, chunk * dim).index_select(0, row.flatten())
    return chosen.view(*index.shape[:2], index.shape[2] * chunk, dim)


def _split(logits: Tensor, index: Tensor) -> Tensor:
    return logits.unflatten(-1, (index.shape[2], -1))


def _join(weight: Tensor) -> Tensor:
    return weight.flatten(-2)


def _blocks(index: Tensor, contents: Tensor) -> list[slice]:
    """Slices of the query axis whose chosen chunks hold about BLOCK numbers, all environments."""
    batch, queries, chosen = index.shape
    budget = BLOCK if index.device.type == "cpu" else BLOCK_ON_DEVICE
    size = max(1, budget // (batch * chosen * contents.shape[2] * contents.shape[3]))
    return [slice(first, first + size) for first in range(0, queries, size)]
