"""What a step of HCAM costs when the memory is long, and that it never grows."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.nn.functional as F
from einops import rearrange
from measure import Limit, Row, alternate, compared, resident
from torch import Tensor, nn

from engram.memory.sequence import HCAM
from engram.memory.state import nbytes

WIDTH, HEADS, CHUNK, TOP_K = 128, 4, 32, 4
BATCH = 16
SHORT, LONG = 512, 8192
STEPS = 100
"""Steps in one measurement."""
MANY = 100_000


class FullAttention(nn.Module):
    """The peer: one layer of attention over the last K inputs, keys and values kept in a ring."""

    def __init__(self, batch: int, length: int):
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        # Filled from the first step on; what the numbers are does not change the cost.
        self.k, self.v = torch.randn(2, batch, HEADS, length, WIDTH // HEADS).unbind()
        self.time = 0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.project(x), "B (n H D) -> n B H D", n=3, H=HEADS).unbind()
        slot = self.time % self.k.shape[2]
        self.k[:, :, slot], self.v[:, :, slot] = k, v
        self.time += 1
        y = F.scaled_dot_product_attention(q[:, :, None], self.k, self.v)
        return self.out(rearrange(y, "B H 1 D -> B (H D)"))


def hcam(length: int) -> HCAM:
    """Build an HCAM that remembers `length` steps."""
    return HCAM(WIDTH, chunk=CHUNK, capacity=length // CHUNK, top_k=TOP_K, heads=HEADS)


def filled(length: int) -> Callable[[], None]:
    """Return STEPS steps of an HCAM whose memory is full."""
    memory = hcam(length)
    state = memory.initial_state(BATCH)
    fill = torch.zeros(256, BATCH, dtype=torch.bool)
    for _ in range(length // len(fill) + 1):
        _, state = memory(torch.randn(*fill.shape, WIDTH), state, fill)
    x, start = torch.randn(BATCH, WIDTH), torch.zeros(BATCH, dtype=torch.bool)
    held = [state]

    def run() -> None:
        for _ in range(STEPS):
            _, held[0] = memory.step(x, held[0], start)

    return run


def attending() -> Callable[[], None]:
    """Return STEPS steps of full attention over LONG inputs."""
    peer, x = FullAttention(BATCH, LONG), torch.randn(BATCH, WIDTH)

    def run() -> None:
        for _ in range(STEPS):
            peer(x)

    return run


def costs(rounds: int) -> list[Row]:
    """Compare the steps of a long memory with those of a short one and of full attention."""
    functions = filled(LONG), filled(SHORT), attending()
    for function in functions:
        function()
    long, short, full = alternate(*functions, rounds=max(rounds, 5))

    def each(wall: float) -> str:
        return f"{1e3 * wall / STEPS:.3f}"

    name = f"HCAM step, {LONG:,} inputs remembered, B = {BATCH} [ms]"
    return [
        compared(
            name,
            each(long.wall),
            f"{SHORT} remembered {each(short.wall)}",
            (long.wall / short.wall, long.cpu / short.cpu),
            Limit("≤", 1.5),
        ),
        compared(
            name,
            each(long.wall),
            f"full attention {each(full.wall)}",
            (long.wall / full.wall, long.cpu / full.cpu),
            Limit("≤", 0.25),
        ),
    ]


@torch.no_grad()
def growth(threads: int) -> list[Row]:
    """Take many steps and see whether the state or the process has grown.

    Run this in a process of its own: memory that others have freed would hide growth.
    """
    torch.set_num_threads(threads)
    memory = hcam(LONG)
    state = memory.initial_state(1)
    start = torch.zeros(1, dtype=torch.bool)
    before, sizes, held = nbytes(state), [], []
    began = time.perf_counter()
    for step in range(1, MANY + 1):
        _, state = memory.step(torch.randn(1, WIDTH), state, start)
        if step % (MANY // 10) == 0:
            sizes.append(nbytes(state))
            held.append(resident())
    seconds = time.perf_counter() - began
    # Untouched pages of a fresh state occupy nothing, so the process grows until the ring is full.
    first, last = held[0], max(held[1:])
    return [
        compared(
            f"HCAM state, largest in {MANY:,} steps [bytes]",
            f"{max(sizes):,}",
            f"before the first {before:,}",
            (max(sizes) / before, None),
            Limit("≤", 1),
        ),
        compared(
            f"resident memory, largest up to step {MANY:,} [MB] ({seconds:.0f} s)",
            f"{last:.1f}",
            f"after {MANY // 10:,} {first:.1f}",
            (last / first, None),
            Limit("≤", 1.01),
        ),
    ]


@torch.no_grad()
def rows(rounds: int) -> list[Row]:
    """Measure the cost of a step, then growth."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as process:
        return costs(rounds) + process.submit(growth, torch.get_num_threads()).result()
