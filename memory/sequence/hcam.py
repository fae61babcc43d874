"""HCAM: hierarchical chunk attention memory over a ring of chunks."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory, episode_index, steps_since_start
from engram.memory.sequence.chunk_attention import ChunkAttention
from engram.memory.sequence.none import NoMemory, NoState
from engram.memory.sequence.window import Window, WindowState


class HCAMState(NamedTuple):
    """M complete chunks and the one being filled, in a ring of S = M+1 slots, all detached.

    Chunk n of a scope (counted from 0) lies in slot n mod (M+1), so the slot that is being filled
    never holds a chunk that can still be read.
    """

    contents: Float[Tensor, "B S C D"]
    """Stored inputs, the position code of their place in the chunk already added."""
    keys: Float[Tensor, "B S D"]
    """Mean input of each chunk; of the one being filled, its sum so far divided by C."""
    time: Int[Tensor, " B"]
    """Inputs since the scope began. It alone says which slots hold something."""
    local: WindowState | NoState
    """State of the local path."""


class _Chunks(NamedTuple):
    """Candidate chunks of a sequence: those of the ring, then those completed within it."""

    contents: Tensor  # [B, S, C, D]
    keys: Tensor  # [B, S, D]
    visible: Tensor  # [B, T, S]
    age: Tensor  # [B, T, S], chunks completed after it


class HCAM(SequenceMemory[HCAMState]):
    """Hierarchical chunk attention memory (Lampinen et al. 2021, arXiv 2105.14039).

    Inputs are stored in chunks of C. When a chunk is complete its mean becomes its summary, and
    from the next step on it can be read: `ChunkAttention` scores the summaries, keeps k chunks
    and attends inside each. Stored inputs are detached, so what is written is trained only by
    what reads it at the same step: add a reconstruction loss to the agent.

    The unfinished chunk is invisible to that read, as in the paper; the local path (`Window` over
    the last `local` inputs) covers it. y = chunk read + local read; without local path, exactly
    zero until the first chunk is complete.

    Deviations: the released code holds attention only; ring, phase per environment and local path
    follow the paper's text. Chunk M+1 back is forgotten (the ring is bounded).

    Args:
        d_in: Features of input and output, an even number.
        chunk: Steps C in a chunk.
        capacity: Complete chunks M that are kept; chunk · capacity steps are remembered.
        top_k: Chunks each step attends to; capped at the capacity.
        heads: Attention heads; they divide d_in.
        local: Inputs visible to the local path, 0 for none; `chunk`, at least 2, unless given.
        age_encoding: Whether the age of a chunk takes part in its score.
    """

    def __init__(
        self,
        d_in: int,
        *,
        chunk: int = 8,
        capacity: int = 16,
        top_k: int = 4,
        heads: int = 4,
        local: int | None = None,
        age_encoding: bool = False,
    ):
        super().__init__()
        if d_in % 2:
            raise InvalidValueError("d_in", d_in, "even numbers, for the position code")
        if capacity < 1:
            raise InvalidValueError("capacity", capacity, "1 or more")
        if local is not None and (local < 0 or local == 1):
            raise InvalidValueError("local", local, "0 for none, or 2 or more")
        self.d_in = self.d_out = d_in
        self.chunk, self.capacity = chunk, capacity
        self.attention = ChunkAttention(
            d_in,
            d_in,
            d_in,
            chunk=chunk,
            top_k=min(top_k, capacity),
            heads=heads,
            ages=capacity if age_encoding else 0,
        )
        width = max(2, chunk) if local is None else local
        self.local = Window(d_in, window=width, heads=heads) if width else NoMemory(d_in)

    def initial_state(self, batch: int) -> HCAMState:
        """Return an empty ring."""
        anchor = self._anchor()
        slots = self.capacity + 1
        return HCAMState(
            anchor.new_zeros(batch, slots, self.chunk, self.d_in),
            anchor.new_zeros(batch, slots, self.d_in),
            torch.zeros(batch, dtype=torch.int64, device=anchor.device),
            self.local.initial_state(batch),
        )

    def step(
        self, x: Float[Tensor, "B D"], state: HCAMState, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], HCAMState]:
        """Read at cost M·D + k·C·D, write one row of the ring in place."""
        near, local = self.local.step(x, state.local, start)  # type: ignore[arg-type]
        time = torch.where(start, 0, state.time)
        visible, age = self._ring_visibility(time, (time // self.chunk)[:, None])
        far = self.attention.attend(x[:, None], state.contents, state.keys, visible, age)[:, 0]
        place, slot = time % self.chunk, (time // self.chunk) % (self.capacity + 1)
        row = torch.arange(len(x), device=x.device)
        stored = x.detach().to(state.contents.dtype)
        state.contents[row, slot, place] = stored + self.attention.position[place]
        kept = torch.where((place == 0)[:, None], 0.0, state.keys[row, slot])
        state.keys[row, slot] = kept + stored / self.chunk
        return near + far, HCAMState(state.contents, state.keys, time + 1, local)

    def forward(
        self, x: Float[Tensor, "T B D"], state: HCAMState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], HCAMState]:
        """Read for all steps at once, then write the ring."""
        if len(x) == 1:
            y, state = self.step(x[0], state, start[0])
            return y[None], state
        near, local = self.local(x, state.local, start)
        entry = torch.where(start[0], 0, state.time)
        time = steps_since_start(start, entry)  # [T, B]
        stored = x.detach().to(state.contents.dtype)
        chunks = self._candidates(stored, state, start, entry, time)
        far = self.attention.attend(x.transpose(0, 1), *chunks).transpose(0, 1)
        self._write(stored, state, start, time)
        return near + far, HCAMState(state.contents, state.keys, time[-1] + 1, local)

    def _ring_visibility(
        self, entry: Int[Tensor, " B"], count: Int[Tensor, "B Q"]
    ) -> tuple[Bool[Tensor, "B Q S"], Int[Tensor, "B Q S"]]:
        """Which slots of the ring, as it was at time `entry`, can be read.

        Args:
            entry: Inputs in the running scope when the ring was last written.
            count: Chunks completed in that scope when each query reads.
        """
        slots = self.capacity + 1
        newest = (entry // self.chunk)[:, None] - 1  # [B, 1]
        slot = torch.arange(slots, device=entry.device)
        number = newest - (newest - slot) % slots  # [B, S], the chunk in each slot
        age = count[..., None] - 1 - number[:, None]
        return (number[:, None] >= 0) & (age < self.capacity), age

    def _candidates(
        self, stored: Tensor, state: HCAMState, start: Tensor, entry: Tensor, time: Tensor
    ) -> _Chunks:
        """Collect the chunks that some step of the sequence may read."""
        steps, batch, _ = stored.shape
        chunk = self.chunk
        scope = episode_index(start) - start[0].to(torch.int64)  # [T, B], 0: as at entry
        count = (time // chunk).t()  # [B, T]
        in_ring, ring_age = self._ring_visibility(entry, count)
        in_ring = in_ring & (scope.t() == 0)[..., None]
        # Steps that complete a chunk, at most one in C, numbered per environment.
        full = (time % chunk == chunk - 1).t()  # [B, T]
        places = 1 + (steps - 1) // chunk
        rank = full.cumsum(1) - 1
        end = torch.full((batch, places + 1), -1, device=start.device)
        step = torch.arange(steps, device=start.device).expand(batch, steps)
        end = end.scatter(1, torch.where(full, rank, places), step)[:, :places]  # [B, K]
        exists = torch.zeros(batch, places, dtype=torch.bool, device=start.device)
        exists |= torch.arange(places, device=start.device) <= rank[:, -1:]
        end = torch.where(exists, end, 0)
        number = count.gather(1, end)  # [B, K]
        same = scope.t()[:, :, None] == scope.t().gather(1, end)[:, None]  # [B, T, K]
        age = count[..., None] - 1 - number[:, None]
        before = end[:, None] < step[..., None]
        visible = exists[:, None] & same & before & (age < self.capacity)
        # A chunk that was begun before the sequence takes its first inputs from the ring.
        begun = state.contents[
            torch.arange(batch, device=start.device), (entry // chunk) % (self.capacity + 1)
        ]
        begun = begun - self.attention.position  # [B, C, D]
        filled = (entry % chunk)[:, None]
        source = end[..., None] + torch.arange(1 - chunk, 1, device=start.device)  # [B, K, C]
        inputs = stored.transpose(0, 1)
        row = torch.arange(batch, device=start.device)[:, None, None]
        fresh = inputs[row, source.clamp(min=0)]
        old = begun[row, (source + filled[..., None]).clamp(0, chunk - 1)]
        raw = torch.where((source >= 0)[..., None], fresh, old)
        raw = torch.where(exists[..., None, None], raw, 0.0)
        return _Chunks(
            torch.cat([state.contents, raw + self.attention.position], dim=1),
            torch.cat([state.keys, raw.mean(2)], dim=1),
            torch.cat([in_ring, visible], dim=2),
            torch.cat([ring_age, age], dim=2),
        )

    def _write(self, stored: Tensor, state: HCAMState, start: Tensor, time: Tensor) -> None:
        """Put the inputs of the last scope that still fit into the ring, in place."""
        slots = self.capacity + 1
        scope = episode_index(start)
        number = time // self.chunk
        alive = (scope == scope[-1]) & (number > number[-1] - slots)
        step, row = alive.nonzero(as_tuple=True)
        place, slot = time[step, row] % self.chunk, number[step, row] % slots
        inputs = stored[step, row]
        state.contents[row, slot, place] = inputs + self.attention.position[place]
        begins = place == 0
        state.keys[row[begins], slot[begins]] = 0.0
        state.keys.index_put_((row, slot), inputs / self.chunk, accumulate=True)
