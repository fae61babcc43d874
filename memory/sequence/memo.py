"""Memo: a transformer that condenses every segment of its past into summary tokens."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.rotary import RotaryLayer, angles
from engram.memory.sequence.segments import Lengths, Plan, mix, next_seed, plan_rounds


class MemoState(NamedTuple):
    """Keys (0) and values (1) of the summaries and of the segment that is being read."""

    summary: Float[Tensor, "B N L 2 H D"]
    """Of the summary tokens, in a ring: token n of a scope lies in slot n mod N. Which slots hold
    something follows from `segment`."""
    raw: Float[Tensor, "B S L 2 H D"]
    """Of the inputs of the running segment; slots at `place` and beyond hold nothing."""
    place: Int[Tensor, " B"]
    """Inputs in the running segment."""
    segment: Int[Tensor, " B"]
    """Segments completed since the scope began."""
    seed: Int[Tensor, " B"]
    """What the segment lengths of the scope are drawn from; 0 fixes them."""


class _Past(NamedTuple):
    """What rows of a state hold; empty slots are zero, since NaN would pass any mask."""

    keys: list[list[Tensor]]
    """Per layer, keys and values of the summaries, then of the raw inputs, `[n, K, 2, H, d]`."""
    ordinal: Tensor  # [n, Ks], number of each summary token in its scope; negative: none
    raw: Tensor  # [n, Kr], which raw slots hold something


class _Tokens(NamedTuple):
    """Tokens that run through the layers at once."""

    x: Tensor  # [n, Q, D]
    position: Tensor  # [n, Q]
    exists: Tensor  # [n, Q], whether later tokens see it


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
    The number of summaries is bounded: when the slots are full, the oldest summary is evicted.
    What is kept stays as it was encoded, so a trace of the evicted one may live on in it. With
    `replace` the new summary takes the place of the old one (RMT), as with a capacity of one. No
    attention sinks, no dropout of layers.

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
        if heads < 1 or d_in % heads or (d_in // heads) % 2:
            raise InvalidValueError("heads", heads, f"d_in / heads even, with d_in = {d_in}")
        for name, value in (
            ("layers", layers),
            ("segment", segment),
            ("summary", summary),
            ("capacity", capacity),
        ):
            if value < 1:
                raise InvalidValueError(name, value, "1 or more")
        if int(expand * d_in) < 1:
            raise InvalidValueError("expand", expand, f"1 / d_in = {1 / d_in} or more")
        if not 0 <= jitter < 1:
            raise InvalidValueError("jitter", jitter, "0 up to, not including, 1")
        self.d_in = self.d_out = d_in
        self.heads, self.summary = heads, summary
        self.lengths = Lengths(segment, jitter)
        self.capacity = 1 if replace else capacity
        self.slots = summary * self.capacity
        self.layers = nn.ModuleList(RotaryLayer(d_in, heads, expand) for _ in range(layers))
        self.norm = nn.LayerNorm(d_in)
        self.queries = nn.Parameter(torch.randn(summary, d_in) * d_in**-0.5)

    def segment_length(
        self, seed: Int[Tensor, "*n"], segment: Int[Tensor, "*n"]
    ) -> Int[Tensor, "*n"]:
        """Length of segment number `segment` (from 0) of a scope with that seed."""
        return self.lengths.draw(seed, segment)

    def initial_state(self, batch: int) -> MemoState:
        """Return a state without summaries, with fixed segment lengths."""
        anchor = self._anchor()
        tail = (len(self.layers), 2, self.heads, self.d_in // self.heads)
        zeros = [torch.zeros(batch, dtype=torch.int64, device=anchor.device) for _ in range(3)]
        return MemoState(
            anchor.new_zeros(batch, self.slots, *tail),
            anchor.new_zeros(batch, self.lengths.longest, *tail),
            *zeros,
        )

    def randomize(self, state: MemoState, seeds: Int[Tensor, " B"]) -> MemoState:
        """Draw segment lengths from `seeds`, beginning with the segment that is being read."""
        return state._replace(seed=mix(seeds) | 1)

    def reset(self, state: MemoState, mask: Bool[Tensor, " B"]) -> MemoState:
        """Empty the memory of some environments; lengths stay drawn where they were."""
        seed = next_seed(state.seed, mask.to(torch.int64))
        return super().reset(state, mask)._replace(seed=seed)

    def step(
        self, x: Float[Tensor, "B D"], state: MemoState, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], MemoState]:
        """Read one input; condense the segment in those environments where it completes one.

        The host asks the device twice: how much the states hold, and which segments end.
        """
        place, segment = (torch.where(start, 0, part) for part in (state.place, state.segment))
        seed = next_seed(state.seed, start.to(torch.int64))
        segments, places = torch.stack([segment.max(), place.max()]).tolist()
        past = self._past(state.summary, state.raw, segment, place, (segments, places))
        base = segment * self.summary  # [B], ordinal of the next summary token
        own = torch.ones_like(start)[:, None]
        seen = torch.cat([past.ordinal >= 0, past.raw], dim=1)
        tokens = _Tokens(x[:, None], (base + place)[:, None], own)
        y, new = self._run(tokens, past.keys, seen)
        env = torch.arange(len(x), device=x.device)
        written = torch.stack([kv[:, 0] for kv in new], dim=1).to(state.raw.dtype)
        raw = state.raw.index_put((env, place), written)
        summary, place = state.summary, place + 1
        done = place >= self.segment_length(seed, segment)
        (full,) = done.nonzero(as_tuple=True)
        if len(full):
            seen = torch.cat([seen, own], dim=1)[full]
            asked = self._queries((base + place)[full])
            keys = [
                [part[full] for part in (*old, kv)] for old, kv in zip(past.keys, new, strict=True)
            ]
            answer, _ = self._run(asked, keys, seen)
            tokens = self._summary(answer, base[full])
            seen = self._kept(past.ordinal[full], tokens.position[:, -1] + 1)
            _, new = self._run(tokens, [old[:1] for old in keys], seen, unread=self.summary)
            slot = tokens.position % self.slots
            written = torch.stack(new, dim=2).to(summary.dtype)
            summary = summary.index_put((full[:, None], slot), written)
        place, segment = torch.where(done, 0, place), segment + done.to(torch.int64)
        return y[:, 0], MemoState(summary, raw, place, segment, seed)

    def forward(
        self, x: Float[Tensor, "T B D"], state: MemoState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], MemoState]:
        """Read piece after piece, all scopes of all environments at once."""
        if len(x) == 1:
            y, state = self.step(x[0], state, start[0])
            return y[None], state
        plans = plan_rounds(start, state.place, state.segment, state.seed, self.lengths)
        outputs, after = [], []
        for plan in plans:
            y, held = self._read(x, state, plan)
            outputs += y
            after += held
        place = torch.cat([plan.input for plan in plans])
        order = torch.zeros(start.numel() + 1, dtype=torch.int64, device=x.device)
        order = order.scatter(0, place, torch.arange(len(place), device=x.device))[:-1]
        y = torch.cat(outputs).index_select(0, order).view(x.shape)
        env = torch.cat([plan.ended for plan in plans]).argsort()
        parts = zip(*after, strict=True)
        return y, MemoState._make(torch.cat(part).index_select(0, env) for part in parts)

    def _read(
        self, x: Float[Tensor, "T B D"], state: MemoState, plan: Plan
    ) -> tuple[list[Tensor], list[MemoState]]:
        """Run all rounds of a plan; return outputs at its places, and states as rows end.

        A round runs [S | x | q] after the past: the summary that the round before made, whose
        keys are kept; a piece of a segment; and, where that completes it, the summary queries.
        """
        summary, raw = (part.index_select(0, plan.env) for part in (state.summary, state.raw))
        past = self._past(summary, raw, plan.segment, plan.place, plan.slots)
        pieces = x.flatten(0, 1).index_select(0, plan.input.clamp(max=x[..., 0].numel() - 1))
        pieces = pieces.split([part.rows * part.width for part in plan.rounds])
        ordinal, keys = past.ordinal, past.keys
        outputs, after = [], []
        answer = x.new_zeros(0)
        for number, (n, width, finished, left) in enumerate(plan.rounds):
            base = (plan.segment[:n] + number) * self.summary
            seen, first, groups = self._kept(ordinal, base), base, []
            if number:
                groups = [self._summary(answer, base - self.summary)]
                ordinal = torch.cat([ordinal, groups[0].position], dim=1)
            else:
                seen, first = torch.cat([seen, past.raw], dim=1), base + plan.place
            unread = self.summary if number else 0
            length = plan.length[:n, number]
            offset = torch.arange(width, device=x.device)
            piece = pieces[number].view(n, width, self.d_in)
            groups.append(_Tokens(piece, first[:, None] + offset, offset < length[:, None]))
            if left:
                groups.append(self._queries(first + length))
            tokens = _Tokens._make(torch.cat(part, dim=1) for part in zip(*groups, strict=True))
            y, new = self._run(tokens, keys, seen, unread=unread)
            outputs.append(y[:, :width].flatten(0, 1))
            if finished:
                rows = slice(left, left + finished)
                held = [
                    torch.cat([part[rows] for part in (*old, kv)], dim=1)
                    for old, kv in zip(keys, new, strict=True)
                ]
                text = seen.shape[1] + unread  # where the keys of the piece begin
                after.append(self._after(plan, number, rows, held, past.ordinal.shape[1], text))
            answer, ordinal = y[:left, width:], ordinal[:left]
            # Raw inputs go, and the chunk's oldest summary once no row can keep it any longer.
            keys = [
                [part[:left] for part in ((*old, kv[:, :unread]) if number else old[:1])]
                for old, kv in zip(keys, new, strict=True)
            ]
            if len(keys[0]) > self.capacity:
                keys = [[parts[0], *parts[2:]] for parts in keys]
                at = past.ordinal.shape[1]
                ordinal = torch.cat([ordinal[:, :at], ordinal[:, at + self.summary :]], dim=1)
        return outputs, after

    def _past(
        self,
        summary: Tensor,
        raw: Tensor,
        segment: Int[Tensor, " n"],
        place: Int[Tensor, " n"],
        slots: tuple[int, int],
    ) -> _Past:
        """Take out what rows of a state hold: at most `slots` segments' summaries and inputs."""
        summary = summary[:, : slots[0] * self.summary]
        raw = raw[:, : slots[1]]
        ordinal = self._newest(segment * self.summary)[:, : summary.shape[1]]
        filled = torch.arange(raw.shape[1], device=raw.device) < place[:, None]
        cleaned = [
            torch.where(held[..., None, None, None, None], part, 0.0).unbind(2)
            for held, part in ((ordinal >= 0, summary), (filled, raw))
        ]
        return _Past([list(parts) for parts in zip(*cleaned, strict=True)], ordinal, filled)

    def _newest(self, count: Int[Tensor, " n"]) -> Int[Tensor, "n N"]:
        """Ordinal of the token in each slot of the ring after `count` tokens; negative: none."""
        slot = torch.arange(self.slots, device=count.device)
        newest = count[:, None] - 1
        return newest - (newest - slot) % self.slots

    def _kept(self, ordinal: Int[Tensor, "n K"], count: Int[Tensor, " n"]) -> Bool[Tensor, "n K"]:
        """Which tokens are still kept when `count` have been made."""
        return (ordinal >= 0) & (ordinal >= count[:, None] - self.slots)

    def _summary(self, answer: Float[Tensor, "n m D"], position: Int[Tensor, " n"]) -> _Tokens:
        """Put a summary at its position, to be encoded."""
        position = position[:, None] + torch.arange(self.summary, device=position.device)
        return _Tokens(answer, position, torch.ones_like(position, dtype=torch.bool))

    def _queries(self, position: Int[Tensor, " n"]) -> _Tokens:
        """Put the summary queries behind a segment that ends before `position`."""
        return self._summary(self.queries.expand(len(position), -1, -1), position)

    def _run(
        self,
        tokens: _Tokens,
        past: list[list[Tensor]],
        seen: Bool[Tensor, "n K"],
        *,
        unread: int = 0,
    ) -> tuple[Float[Tensor, "n R D"], list[Tensor]]:
        """Run tokens after a past, causally among themselves.

        Args:
            tokens: Q of them.
            past: Per layer, keys and values in parts that are K long together.
            seen: Which of them the tokens see.
            unread: Tokens at the front whose outputs are not needed, only their keys.

        Returns:
            Outputs of the others, and per layer the keys and values of all Q.
        """
        x, position, exists = tokens
        many = x.shape[1]
        causal = torch.ones(many, many, dtype=torch.bool, device=x.device).tril()
        visible = torch.cat([seen[:, None].expand(-1, many, -1), exists[:, None] & causal], dim=-1)
        turn = angles(position, self.d_in // self.heads, x.dtype)
        new = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, RotaryLayer)
            q, kv = layer.project(x, turn)
            new.append(kv)
            if number == len(self.layers) - 1:
                x, q, visible = x[:, unread:], q[:, unread:], visible[:, unread:]
            if x.shape[1]:
                x = layer.finish(x, q, torch.cat([*past[number], kv], dim=1), visible)
        return self.norm(x), new

    def _after(
        self, plan: Plan, number: int, rows: slice, keys: list[Tensor], old: int, text: int
    ) -> MemoState:
        """Collect the state of rows whose last round this was.

        Args:
            plan: How the chunk was read.
            number: The round.
            rows: Those rows.
            keys: Their keys and values, per layer: `old` of summaries before the chunk, then
                raw ones in round 0 or, later, summaries made in the chunk, then the piece.
            old: See above.
            text: Where the piece begins.
        """
        segment = plan.segment[rows]
        before = (segment * self.summary)[:, None]
        place = torch.zeros_like(segment) if number else plan.place[rows]
        ordinal = self._newest((segment + number) * self.summary)
        slot = torch.arange(self.slots, device=segment.device)
        dropped = max(0, number - self.capacity) * self.summary
        summary = torch.where(ordinal < before, slot, old + ordinal - before - dropped)
        slot = torch.arange(self.lengths.longest, device=segment.device)
        raw = torch.where(slot < place[:, None], old + slot, text + slot - place[:, None])
        # Empty slots get whatever lies at the end.
        source = torch.cat([summary, raw], dim=1).clamp(max=keys[0].shape[1] - 1)
        row = torch.arange(len(source), device=source.device)[:, None]
        held = torch.stack([kv[row, source] for kv in keys], dim=2)
        place = place + plan.length[rows, number]
        return MemoState(
            held[:, : self.slots], held[:, self.slots :], place, segment + number, plan.seed[rows]
        )
