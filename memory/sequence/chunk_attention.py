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
    chunk is part of its score, since content alone cannot address "sixteen steps ago".

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
            age: Chunks completed after each one, where ages are scored.

        Returns:
            The indices of the kept chunks and their relevance, zero where not visible.
        """
        if torch.is_grad_enabled():
            # 0 · NaN would poison the query's gradient, and the caller may write into its keys
            # before the backward pass reads them: train on a clean copy.
            keys = torch.where(visible.any(1)[..., None], keys, 0.0)
        query = self.query(x)
        logits = torch.einsum("bqd,bmd->bqm", query @ self.key.weight, keys)
        if self.age is not None:
            assert age is not None, "a memory with ages passes them"
            by_age = query @ self.age.t()  # [B, Q, ages]
            logits = logits + by_age.gather(-1, age.clamp(0, len(self.age) - 1))
        logits = torch.where(visible, logits * query.shape[-1] ** -0.5, MASKED)
        best, index = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)
        seen = visible.gather(-1, index)
        relevance = torch.where(seen, best.softmax(-1), 0.0)
        return index, relevance

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
            age: Chunks completed after each one, where ages are scored.
        """
        index, relevance = self.choose(x, keys, visible, age)
        if x.shape[1] == 1:
            chosen = gather_chunks(contents, index, relevance > 0)
            read = read_chunks(self.heads_query(x), relevance, chosen)
        else:
            read = _BlockwiseRead.apply(self.heads_query(x), relevance, index, contents)
        return self.project(read, relevance)


def gather_chunks(
    contents: Float[Tensor, "B M C D"], index: Int[Tensor, "B Q k"], seen: Bool[Tensor, "B Q k"]
) -> Float[Tensor, "B Q k C D"]:
    """Copy the chosen chunks, zeros where not seen; the memory itself is never repeated."""
    batch, slots, chunk, dim = contents.shape
    row = index + slots * torch.arange(batch, device=index.device)[:, None, None]
    chosen = contents.reshape(batch * slots, chunk * dim).index_select(0, row.flatten())
    chosen = chosen.view(*index.shape, chunk, dim)
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

    Autograd would keep the Q·k·C·D gathered numbers of a whole chunk of training; this keeps
    those of one block. Stored steps are detached, so only q and the relevance get gradients.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, relevance: Tensor, index: Tensor, contents: Tensor) -> Tensor:
        ctx.save_for_backward(q, relevance, index, contents)
        device = q.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.autocast = {"device_type": device, "dtype": dtype, "enabled": enabled}
        parts = []
        for block in _blocks(index, contents):
            chosen = gather_chunks(contents, index[:, block], relevance[:, block] > 0)
            parts.append(read_chunks(q[:, block], relevance[:, block], chosen))
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, relevance, index, contents = ctx.saved_tensors
        to_q, to_relevance = [], []
        for block in _blocks(index, contents):
            seen = relevance[:, block] > 0
            chosen = gather_chunks(contents, index[:, block], seen)
            # The backward pass runs outside the autocast that the forward pass ran in.
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                leaves = [part[:, block].detach().requires_grad_() for part in (q, relevance)]
                read = read_chunks(leaves[0], leaves[1], chosen)
            from_q, from_relevance = torch.autograd.grad(read, leaves, grads[0][:, block])
            to_q.append(from_q)
            to_relevance.append(from_relevance)
        return torch.cat(to_q, dim=1), torch.cat(to_relevance, dim=1), None, None


def _blocks(index: Tensor, contents: Tensor) -> list[slice]:
    """Slices of the query axis whose chosen chunks hold about BLOCK numbers, all environments."""
    batch, queries, chosen = index.shape
    budget = BLOCK if index.device.type == "cpu" else BLOCK_ON_DEVICE
    size = max(1, budget // (batch * chosen * contents.shape[2] * contents.shape[3]))
    return [slice(first, first + size) for first in range(0, queries, size)]
