"""The perceptual-cognitive memory bank: token streams that are retrieved, fused, consolidated."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.bank_consolidation import AdjacentMerge, Consolidation
from engram.memory.sequence.bank_retrieval import AbsoluteTime, GateFusion, Retrieval, TimeCode
from engram.memory.sequence.bank_slots import (
    Slots,
    appended,
    cleaned,
    empty_slots,
    in_use,
    truncated,
)
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.streams import Streams


class BankState(NamedTuple):
    """The entries of both streams; those of a stream that is not in use have no tokens."""

    perceptual: Slots
    cognitive: Slots
    age: Int[Tensor, " B"]
    """Inputs seen since the scope began."""


class Bank(SequenceMemory[BankState]):
    """Perceptual-cognitive memory bank (MemoryVLA, Shi et al. 2025, arXiv 2508.19236).

    Each stream keeps L entries, each the tokens of one input or of several merged. An input x
    attends to the entries of its stream through retrieval blocks, giving h; it leaves as the fusion
    of x and h; then it is written, and the consolidation rule makes room.

    `forward` reads all steps at once where what is written is raw and the rule does not look at
    attention; the contents are then worked out by a loop over the writes alone, and T·B banks
    exist at once.

    Deviations: keys have no bias, which softmax would ignore. Time counts inputs since the start of
    the scope. Both streams are one module and share the clock.

    Args:
        perceptual: Tokens and features of the perceptual stream; no tokens: not in use.
        cognitive: Tokens and features of the cognitive stream; no tokens: not in use.
        capacity: Entries per stream, L.
        layers: Retrieval blocks.
        heads: Attention heads; they divide both widths.
        dropout: In the blocks, while training; a step then differs from its replay.
        write_fused: What is written is the output, not the input.
        gradient_writes: How many writes gradient outlives, K: inputs get it from the K reads that
            follow theirs. A merged entry is cut as a whole when the oldest input in it that still
            gets gradient is due. 0: writes are detached; None: never cut. A fused write passes
            gradient on to what it read in turn, so it reaches further than K.
        consolidation: What gives way to a new entry in a full bank.
        time_code: Builds the code of time, given a width.
        together: Both streams give up the same entries, by the mean of their ratings; otherwise
            each decides on its own.
        fusion: Builds what mixes input and retrieved tokens, given a width.
        read_self: The first input of a scope reads itself; otherwise the bank is skipped, h = x.
    """

    def __init__(
        self,
        perceptual: tuple[int, int],
        cognitive: tuple[int, int],
        *,
        capacity: int = 16,
        layers: int = 2,
        heads: int = 1,
        dropout: float = 0.0,
        write_fused: bool = False,
        gradient_writes: int | None = 0,
        consolidation: Consolidation | None = None,
        time_code: Callable[[int], TimeCode] = AbsoluteTime,
        together: bool = False,
        fusion: Callable[[int], nn.Module] = GateFusion,
        read_self: bool = False,
    ):
        super().__init__()
        self.sizes = {"perceptual": perceptual, "cognitive": cognitive}
        _check(self.sizes, heads)
        if capacity < 1:
            raise InvalidValueError("capacity", capacity, "1 or more")
        if layers < 1:
            raise InvalidValueError("layers", layers, "1 or more")
        if not 0 <= dropout < 1:
            raise InvalidValueError("dropout", dropout, "from 0 up to, not including, 1")
        if gradient_writes is not None and gradient_writes < 0:
            raise InvalidValueError("gradient_writes", gradient_writes, "0 or more, or None")
        self.d_in = self.d_out = sum(tokens * width for tokens, width in self.sizes.values())
        self.capacity, self.write_fused, self.together = capacity, write_fused, together
        self.gradient_writes = gradient_writes
        self.consolidation = AdjacentMerge() if consolidation is None else consolidation
        self.retrieval = nn.ModuleDict(
            {
                name: Retrieval(
                    width,
                    layers=layers,
                    heads=heads,
                    dropout=dropout,
                    time_code=time_code,
                    fusion=fusion,
                    read_self=read_self,
                    weigh=self.consolidation.reads_usage,
                )
                for name, (tokens, width) in self.sizes.items()
                if tokens
            }
        )

    def initial_state(self, batch: int) -> BankState:
        """Return empty banks."""
        anchor = self._anchor()
        perceptual, cognitive = (
            empty_slots(
                anchor,
                batch,
                self.capacity,
                tokens,
                width,
                since=bool(self.gradient_writes),
                usage=self.consolidation.reads_usage,
            )
            for tokens, width in self.sizes.values()
        )
        age = torch.zeros(batch, dtype=torch.int64, device=anchor.device)
        return BankState(perceptual, cognitive, age)

    def forward(  # type: ignore[override]  # an event of several streams is no single tensor
        self, x: Streams, state: BankState, start: Bool[Tensor, "T B"]
    ) -> tuple[Streams, BankState]:
        """Loop over the writes; read all steps at once, or in the same loop where they matter."""
        if self.write_fused or self.consolidation.reads_usage:
            return self._loop(x, state, start)
        seen: dict[str, list[Slots]] = {name: [] for name in self.retrieval}
        ages = []
        for t, begins in enumerate(start):
            state = self._begun(state, begins)
            ages.append(state.age)
            for name, slots in self._banks(state):
                seen[name].append(slots)
            state = self._written(state, _at(x, t))
        age = torch.cat(ages)
        used = self._readable(age)
        outputs = {}
        for name, banks in seen.items():
            entries = torch.cat([slots.entries for slots in banks])
            time = torch.cat([slots.time for slots in banks])
            tokens = getattr(x, name)
            y, _ = self.retrieval[name](tokens.flatten(0, 1), entries, time, age, used)
            outputs[name] = y.view(tokens.shape)
        return x._replace(**outputs), state

    def step(  # type: ignore[override]  # an event of several streams is no single tensor
        self, x: Streams, state: BankState, start: Bool[Tensor, " B"]
    ) -> tuple[Streams, BankState]:
        """Read, then write, one input."""
        state = self._begun(state, start)
        used = self._readable(state.age)
        outputs = {}
        for name, slots in self._banks(state):
            tokens = getattr(x, name)
            y, received = self.retrieval[name](tokens, slots.entries, slots.time, state.age, used)
            outputs[name] = y
            if received is not None:
                usage = slots.usage + received.to(slots.usage.dtype)
                state = state._replace(**{name: slots._replace(usage=usage)})
        y = x._replace(**outputs)
        return y, self._written(state, y if self.write_fused else x)

    def _loop(
        self, x: Streams, state: BankState, start: Bool[Tensor, "T B"]
    ) -> tuple[Streams, BankState]:
        outputs = []
        for t, begins in enumerate(start):
            y, state = self.step(_at(x, t), state, begins)
            outputs.append(y)
        return Streams(*(torch.stack(parts) for parts in zip(*outputs, strict=True))), state

    def _banks(self, state: BankState) -> Iterator[tuple[str, Slots]]:
        """The slots of the streams that are in use."""
        return ((name, getattr(state, name)) for name in self.retrieval)

    def _readable(self, age: Int[Tensor, " n"]) -> Bool[Tensor, "n L"]:
        return in_use(age.clamp(min=1), self.capacity)

    def _begun(self, state: BankState, start: Bool[Tensor, " B"]) -> BankState:
        """Forget what lies before a start, and clear the slots that are not in use."""
        age = torch.where(start, 0, state.age)
        used = in_use(age, self.capacity)
        slots = {name: cleaned(slots, used) for name, slots in self._banks(state)}
        return state._replace(**slots, age=age)

    def _written(self, state: BankState, new: Streams) -> BankState:
        """Write an input into every stream and make room for it."""
        writes = self.gradient_writes
        with torch.set_grad_enabled(torch.is_grad_enabled() and writes != 0):
            full = state.age >= self.capacity
            banks = {}
            for name, slots in self._banks(state):
                slots = appended(slots, getattr(new, name), state.age)
                # Before it merges: what is cut must not take the new entry's gradient with it.
                banks[name] = truncated(slots, writes) if writes else slots
            scores = {
                name: self.consolidation.scores(slots, state.age) for name, slots in banks.items()
            }
            if self.together:
                shared = torch.stack(list(scores.values())).mean(0)
                scores = dict.fromkeys(scores, shared)
            for name, slots in banks.items():
                banks[name] = self.consolidation.make_room(slots, scores[name].argmax(1), full)
            return state._replace(**banks, age=state.age + 1)


def _at(x: Streams, t: int) -> Streams:
    return Streams(x.perceptual[t], x.cognitive[t])


def _check(sizes: dict[str, tuple[int, int]], heads: int) -> None:
    if heads < 1:
        raise InvalidValueError("heads", heads, "1 or more")
    for name, (tokens, width) in sizes.items():
        if tokens < 0 or width < 1:
            raise InvalidValueError(name, (tokens, width), "0 or more tokens of 1 feature or more")
        if tokens and width % heads:
            raise InvalidValueError("heads", heads, f"divisors of the {name} width {width}")
    if not any(tokens for tokens, _ in sizes.values()):
        raise InvalidValueError("tokens", 0, "1 or more in one of the streams")
