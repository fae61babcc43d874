"""Memo: a transformer that condenses every segment of its past into summary tokens."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.rotary import RotaryLayer


class MemoState(NamedTuple):
    """Keys and values, unrotated, of the summaries and of the segment that is being read."""

    summary_k: Float[Tensor, "B L N H D"]
    """Of the kept summary tokens, oldest first; slots at `kept` and beyond hold nothing."""
    summary_v: Float[Tensor, "B L N H D"]
    raw_k: Float[Tensor, "B L S H D"]
    """Of the inputs of the running segment; slots at `place` and beyond hold nothing."""
    raw_v: Float[Tensor, "B L S H D"]
    kept: Int[Tensor, " B"]
    """Summary tokens kept."""
    place: Int[Tensor, " B"]
    """Inputs in the running segment."""
    segment: Int[Tensor, " B"]
    """Segments completed since the scope began."""
    seed: Int[Tensor, " B"]
    """What the segment lengths are drawn from; 0 fixes them."""


class _Round(NamedTuple):
    """One piece of one segment in each of b environments: the unit that runs in parallel."""

    env: Tensor  # [b]
    begin: Tensor  # [b], its first step
    length: Tensor  # [b], 1 …
    complete: Tensor  # [b], whether its last step completes the segment


class Memo(SequenceMemory[MemoState]):
    """Summary tokens (Gupta et al. 2025, arXiv 2510.19732; RMT: Bulatov et al. 2022, 2207.06881).

    A segment of inputs is read by a causal transformer as [S_1 … S_n | x_1 … x_l | q_1 … q_m]: the
    summaries so far, the segment, and m learned summary queries whose outputs, after the last
    norm, are the new summary S_{n+1}. The raw segment is then dropped. S_{n+1} is passed through
    all layers once more, seeing older summaries only, and those keys and values are kept; nothing
    is detached, so gradients flow through every segment of a chunk. Positions: summaries from 0,
    the segment after them, the queries after it.

    Segments are `segment` inputs long. After `randomize`, each length is ⌊segment·(1 − j + 2 j u)⌋
    with j = `jitter` and u a hash of the state's seed and segment number: acting and learning
    draw the same lengths, environments draw different ones, and a state that was never seeded has
    fixed lengths, as evaluation wants.

    Deviations: the released code draws one length per forward pass for the whole batch and
    collects with fixed lengths, so its learner evaluates another policy than the one that acted.
    The number of summaries is bounded: when the slots are full, the oldest summary is evicted and
    the others move to its positions. With `replace` the new summary takes the place of the old
    one (RMT). No attention sinks, no dropout of layers.

    Args:
        d_in: Features of input and output.
        layers: Transformer layers.
        heads: Attention heads; d_in / heads is even.
        segment: Inputs in a segment.
        summary: Summary tokens m per segment.
        capacity: Summaries kept.
        jitter: Largest relative change of a segment's length in training.
        replace: Whether a summary replaces the one before it.
        expand: Width of the MLP in multiples of d_in.
    """

    def __init__(
        self,
        d_in: int,
        *,
        layers: int = 2,
        heads: int = 4,
        segment: int = 16,
        summary: int = 4,
        capacity: int = 16,
        jitter: float = 0.2,
        replace: bool = False,
        expand: float = 2.0,
    ):
        super().__init__()
        if d_in % heads or (d_in // heads) % 2:
            raise InvalidValueError("heads", heads, f"d_in / heads even, with d_in = {d_in}")
        for name, value in (
            ("layers", layers),
            ("segment", segment),
            ("summary", summary),
            ("capacity", capacity),
        ):
            if value < 1:
                raise InvalidValueError(name, value, "1 or more")
        if not 0 <= jitter < 1:
            raise InvalidValueError("jitter", jitter, "0 up to, not including, 1")
        self.d_in = self.d_out = d_in
        self.heads, self.segment, self.summary = heads, segment, summary
        self.jitter, self.replace = jitter, replace
        self.longest = max(1, int(segment * (1 + jitter)))
        self.slots = summary * (1 if replace else capacity)
        self.layers = nn.ModuleList(RotaryLayer(d_in, heads, expand) for _ in range(layers))
        self.norm = nn.LayerNorm(d_in)
        self.queries = nn.Parameter(torch.randn(summary, d_in) * d_in**-0.5)

    def initial_state(self, batch: int) -> MemoState:
        """Return a state without summaries, with fixed segment lengths."""
        anchor = self._anchor()
        tail = (self.heads, self.d_in // self.heads)
        summaries = (batch, len(self.layers), self.slots, *tail)
        raw = (batch, len(self.layers), self.longest, *tail)
        zeros = [torch.zeros(batch, dtype=torch.int64, device=anchor.device) for _ in range(4)]
        caches = [anchor.new_zeros(shape) for shape in (summaries, summaries, raw, raw)]
        return MemoState._make(caches + zeros)

    def randomize(self, state: MemoState, seeds: Int[Tensor, " B"]) -> MemoState:
        """Draw segment lengths from `seeds` from the next segment on."""
        return state._replace(seed=mix(seeds) | 1)

    def segment_length(
        self, seed: Int[Tensor, " B"], segment: Int[Tensor, " B"]
    ) -> Int[Tensor, " B"]:
        """Length of segment number `segment` of a scope."""
        share = (mix(seed + 0x632BE59B * (segment + 1)) & 0xFFFFFF).to(torch.float64) / 2**24
        drawn = (self.segment * (1 - self.jitter + 2 * self.jitter * share)).floor()
        drawn = drawn.to(torch.int64).clamp(1, self.longest)
        return torch.where(seed == 0, self.segment, drawn)

    def forward(
        self, x: Float[Tensor, "T B D"], state: MemoState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], MemoState]:
        """Read piece after piece, all environments at once, whatever their phase."""
        steps, batch, _ = x.shape
        state = self._finite(state, start[0])
        inputs = x.transpose(0, 1)
        next_start = _next_start(start)
        cursor = torch.zeros(batch, dtype=torch.int64, device=x.device)
        outputs, places = [], []
        while True:
            (env,) = (cursor < steps).nonzero(as_tuple=True)
            if not len(env):
                break
            begin = cursor[env]
            state = self._begin_scopes(state, env[start[begin, env]])
            left = self.segment_length(state.seed, state.segment)[env] - state.place[env]
            left = left.clamp(min=1)  # a state that is seeded within a segment ends it soon
            until = next_start[begin, env] - begin
            length = torch.minimum(left, until)
            piece = _Round(env, begin, length, left <= until)
            y, valid, state = self._read(inputs, state, piece)
            offset = torch.arange(y.shape[1], device=x.device)
            step = begin[:, None] + offset
            outputs.append(y[valid])
            places.append((step * batch + env[:, None])[valid])
            full = env[piece.complete]
            if len(full):
                state = self._summarise(state, full)
            cursor = cursor.index_copy(0, env, begin + length)
        order = torch.cat(places).argsort()
        return torch.cat(outputs)[order].view(steps, batch, -1), state

    def _finite(self, state: MemoState, fresh: Bool[Tensor, " B"]) -> MemoState:
        """Zero the slots that hold nothing: a masked NaN would still poison the gradient."""
        held = []
        for cache, count in (
            (state.summary_k, state.kept),
            (state.summary_v, state.kept),
            (state.raw_k, state.place),
            (state.raw_v, state.place),
        ):
            slot = torch.arange(cache.shape[2], device=cache.device)
            filled = slot < torch.where(fresh, 0, count)[:, None]
            held.append(torch.where(filled[:, None, :, None, None], cache, 0.0))
        return MemoState._make([*held, *state[4:]])

    def _begin_scopes(self, state: MemoState, env: Int[Tensor, " n"]) -> MemoState:
        """Forget everything in the named environments, and move on to their next seed."""
        if not len(env):
            return state
        fresh = torch.zeros(len(state.kept), dtype=torch.bool, device=env.device)
        fresh[env] = True
        seed = torch.where(fresh & (state.seed != 0), mix(state.seed) | 1, state.seed)
        counters = [torch.where(fresh, 0, c) for c in (state.kept, state.place, state.segment)]
        caches = [torch.where(fresh[:, None, None, None, None], 0.0, c) for c in state[:4]]
        return MemoState._make([*caches, *counters, seed])

    def _read(
        self, inputs: Float[Tensor, "B T D"], state: MemoState, piece: _Round
    ) -> tuple[Tensor, Tensor, MemoState]:
        """Run one piece of a segment; return outputs, which of them exist, and the state."""
        everyone = len(piece.env) == len(state.kept)
        held = state if everyone else _take(state, piece.env)
        size = int(piece.length.max())
        token = torch.arange(size, device=inputs.device)
        valid = token < piece.length[:, None]  # [b, P]
        source = (piece.begin[:, None] + token).clamp(max=inputs.shape[1] - 1)
        x = inputs[piece.env[:, None], source]
        slot = torch.arange(self.longest, device=inputs.device)
        from_token = slot - held.place[:, None]  # [b, S]
        written = (from_token >= 0) & (from_token < piece.length[:, None])
        from_token = from_token.clamp(0, size - 1)
        here = held.place[:, None] + torch.minimum(token, piece.length[:, None] - 1)  # [b, P]
        summaries = torch.arange(self.slots, device=inputs.device)
        sees_summary = summaries < held.kept[:, None]  # [b, N]
        visible = torch.cat(
            [
                sees_summary[:, None].expand(-1, size, -1),
                slot <= here[..., None],
            ],
            dim=-1,
        )
        key_positions = torch.cat([summaries.expand(len(x), -1), held.kept[:, None] + slot], dim=1)
        positions = (held.kept[:, None] + here, key_positions)
        raw_k, raw_v = [], []
        row = torch.arange(len(x), device=x.device)[:, None]
        for number, layer in enumerate(self._layers()):
            q, k, v = layer.project(x)
            k, v = (
                torch.where(written[..., None, None], new[row, from_token], old[:, number])
                for new, old in ((k, held.raw_k), (v, held.raw_v))
            )
            raw_k.append(k)
            raw_v.append(v)
            x = layer.finish(
                x,
                q,
                torch.cat([held.summary_k[:, number], k], dim=1),
                torch.cat([held.summary_v[:, number], v], dim=1),
                positions,
                visible,
            )
        held = held._replace(
            raw_k=torch.stack(raw_k, 1),
            raw_v=torch.stack(raw_v, 1),
            place=held.place + piece.length,
        )
        return self.norm(x), valid, held if everyone else _put(state, piece.env, held)

    def _summarise(self, state: MemoState, env: Int[Tensor, " n"]) -> MemoState:
        """Condense the complete segments of the named environments."""
        held = _take(state, env)
        count, many = held.kept, self.summary
        own = torch.arange(many, device=env.device)
        summaries = torch.arange(self.slots, device=env.device)
        slot = torch.arange(self.longest, device=env.device)
        sees_summary = summaries < count[:, None]
        sees_raw = slot < held.place[:, None]
        tokens = self._run(
            self.queries.expand(len(env), -1, -1),
            torch.cat([held.summary_k, held.raw_k], dim=2),
            torch.cat([held.summary_v, held.raw_v], dim=2),
            torch.cat([summaries.expand(len(env), -1), count[:, None] + slot], dim=1),
            torch.cat([sees_summary, sees_raw], dim=1),
            (count + held.place)[:, None] + own,
        )[0]
        # Room for the new summary: all of the old one, or the oldest.
        if self.replace:
            shift = count
        else:
            shift = torch.where(count + many > self.slots, many, 0)
        source = (summaries + shift[:, None]).clamp(max=self.slots - 1)
        row = torch.arange(len(env), device=env.device)[:, None]
        count = count - shift
        old = [cache.transpose(1, 2)[row, source].transpose(1, 2) for cache in held[:2]]
        _, k, v = self._run(
            tokens,
            old[0],
            old[1],
            summaries.expand(len(env), -1),
            summaries < count[:, None],
            count[:, None] + own,
        )
        target = summaries - count[:, None]  # [n, N]
        written = ((target >= 0) & (target < many))[:, None, :, None, None]
        target = target.clamp(0, many - 1)
        caches = [
            torch.where(written, new.transpose(1, 2)[row, target].transpose(1, 2), kept)
            for new, kept in ((k, old[0]), (v, old[1]))
        ]
        held = held._replace(
            summary_k=caches[0],
            summary_v=caches[1],
            kept=count + many,
            place=torch.zeros_like(held.place),
            segment=held.segment + 1,
        )
        return _put(state, env, held)

    def _run(
        self,
        x: Float[Tensor, "n m D"],
        past_k: Float[Tensor, "n L K H d"],
        past_v: Float[Tensor, "n L K H d"],
        past_positions: Int[Tensor, "n K"],
        past_visible: Bool[Tensor, "n K"],
        positions: Int[Tensor, "n m"],
    ) -> tuple[Float[Tensor, "n m D"], Float[Tensor, "n L m H d"], Float[Tensor, "n L m H d"]]:
        """Run tokens after a past, causally among themselves; return outputs, keys and values."""
        many = x.shape[1]
        causal = torch.ones(many, many, dtype=torch.bool, device=x.device).tril()
        visible = torch.cat(
            [past_visible[:, None].expand(-1, many, -1), causal.expand(len(x), -1, -1)], dim=-1
        )
        all_positions = (positions, torch.cat([past_positions, positions], dim=1))
        keys, values = [], []
        for number, layer in enumerate(self._layers()):
            q, k, v = layer.project(x)
            keys.append(k)
            values.append(v)
            k = torch.cat([past_k[:, number], k], dim=1)
            v = torch.cat([past_v[:, number], v], dim=1)
            x = layer.finish(x, q, k, v, all_positions, visible)
        return self.norm(x), torch.stack(keys, 1), torch.stack(values, 1)

    def _layers(self) -> list[RotaryLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def mix(value: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Scramble int64 integers; overflow wraps on every device (after Vigna's splitmix64)."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def _next_start(start: Bool[Tensor, "T B"]) -> Int[Tensor, "T B"]:
    """For every step the first start after it, or T."""
    steps = len(start)
    index = torch.arange(steps, device=start.device)[:, None]
    at = torch.where(start, index, steps)
    at = torch.cat([at[1:], at.new_full((1, start.shape[1]), steps)])
    return at.flip(0).cummin(0).values.flip(0)


def _take(state: MemoState, env: Tensor) -> MemoState:
    return MemoState._make(leaf[env] for leaf in state)


def _put(state: MemoState, env: Tensor, held: MemoState) -> MemoState:
    return MemoState._make(
        old.index_copy(0, env, new) for old, new in zip(state, held, strict=True)
    )
