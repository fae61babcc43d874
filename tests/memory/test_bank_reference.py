"""The bank against a plain account of the published algorithm, and against its recorded original.

The account serves one environment with Python lists, projects every entry to keys and values, and
gives keys a bias, which must not matter.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from engram.memory.sequence import (
    AbsoluteTime,
    AddFusion,
    AdjacentMerge,
    Bank,
    GateFusion,
    LeastUsed,
    LogarithmicTime,
    Oldest,
    RelativeTime,
    Streams,
    memoryvla_plus,
)
from engram.memory.sequence.bank_consolidation import counted_time, earlier_time, mean_time
from engram.memory.sequence.bank_retrieval import Retrieval

SHAPES = {"perceptual": (3, 8), "cognitive": (1, 4)}


class Entry:
    """One entry of the account."""

    def __init__(self, tokens: Tensor, time: float, inputs: int = 1):
        self.tokens, self.time, self.inputs, self.usage = tokens, time, inputs, 0.0


def time_code(module: Any, t: float) -> Tensor:
    half = module.width // 2
    angles = [t * math.exp(-math.log(10_000) * i / half) for i in range(half)]
    wave = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    hidden = module.inner(torch.tensor(wave, dtype=torch.float64))
    return module.outer(hidden * hidden.sigmoid())


def attention(block: Any, x: Tensor, entries: list[Entry], codes: list[Tensor]) -> Tensor:
    """Cross attention head by head; adds to each entry's usage the attention it received."""
    keys = torch.cat([e.tokens + code for e, code in zip(entries, codes, strict=True)])
    keys = block.key(keys) + torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)
    values = block.value(torch.cat([e.tokens for e in entries]))
    size, outputs = x.shape[1] // block.heads, []
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        q = block.query(x)[:, part]
        weight = (q @ keys[:, part].T / math.sqrt(size)).softmax(-1)
        outputs.append(weight @ values[:, part])
        for i, entry in enumerate(entries):
            mass = weight[:, i * len(x) : (i + 1) * len(x)].sum(1).mean().item()
            entry.usage += mass / block.heads / 2  # two layers
    return torch.cat(outputs, dim=1)


POSITIONS: dict[type, Callable[[float, int], float]] = {
    AbsoluteTime: lambda time, now: time,
    RelativeTime: lambda time, now: now - time,
    LogarithmicTime: lambda time, now: math.log(1 + now - time),
}


def retrieved(read: Retrieval, x: Tensor, bank: list[Entry], now: int) -> Tensor:
    """What leaves the stream: input and retrieved tokens, fused."""
    if not bank and not read.read_self:
        h = x
    else:
        entries = bank or [Entry(x, now)]
        place = POSITIONS[type(read.time_code)]
        codes = [time_code(read.time_code, place(e.time, now)) for e in entries]
        h = x
        for block in read.blocks:
            y = block.attention_norm(h + attention(block, h, entries, codes))
            h = block.norm(y + block.narrow(F.gelu(block.widen(y))))
    if isinstance(read.fusion, AddFusion):
        return (x + h) / 2
    gate = torch.sigmoid(read.fusion.gate(torch.cat([x, h], dim=1)))
    return gate * x + (1 - gate) * h


def likeness(a: Entry, b: Entry) -> float:
    cosines = [
        float(p @ q / (p.norm() * q.norm())) for p, q in zip(a.tokens, b.tokens, strict=True)
    ]
    return sum(cosines) / len(cosines)


def ratings(rule: Any, bank: list[Entry], now: int) -> list[float]:
    if isinstance(rule, AdjacentMerge):
        return [likeness(a, b) for a, b in zip(bank, bank[1:])]  # noqa: B905, RUF007
    if isinstance(rule, LeastUsed):
        return [-e.usage / (now - e.time) for e in bank[:-1]]
    return [0.0 for _ in bank[:-1]]


def consolidate(rule: Any, bank: list[Entry], best: int) -> None:
    if not isinstance(rule, AdjacentMerge):
        del bank[best]
        return
    a, b = bank[best], bank.pop(best + 1)
    inputs = a.inputs + b.inputs
    share = b.inputs / inputs if rule.counted else 0.5
    times = {
        earlier_time: a.time,
        mean_time: (a.time + b.time) / 2,
        counted_time: (1 - share) * a.time + share * b.time,
    }
    bank[best] = Entry((1 - share) * a.tokens + share * b.tokens, times[rule.time], inputs)


def account(bank: Bank, x: Streams) -> tuple[dict[str, Tensor], dict[str, list[Entry]]]:
    """Outputs `[T, N, D]` of both streams and what their banks hold at the end."""
    held: dict[str, list[Entry]] = {name: [] for name in SHAPES}
    outputs: dict[str, list[Tensor]] = {name: [] for name in SHAPES}
    for now in range(len(x.perceptual)):
        for name, entries in held.items():
            tokens = getattr(x, name)[now, 0]
            read: Any = bank.retrieval[name]
            outputs[name].append(retrieved(read, tokens, entries, now))
            entries.append(Entry(outputs[name][-1] if bank.write_fused else tokens, now))
        if now >= bank.capacity:
            rated = {name: ratings(bank.consolidation, held[name], now) for name in held}
            if bank.together:
                mean = [sum(pair) / 2 for pair in zip(*rated.values(), strict=True)]
                rated = dict.fromkeys(rated, mean)
            for name, entries in held.items():
                consolidate(bank.consolidation, entries, rated[name].index(max(rated[name])))
    return {name: torch.stack(parts) for name, parts in outputs.items()}, held


RULES = [
    *(AdjacentMerge(c, t) for c in (False, True) for t in (earlier_time, mean_time, counted_time)),
    LeastUsed(),
    Oldest(),
]


@given(
    st.fixed_dictionaries(
        {
            "consolidation": st.sampled_from(RULES),
            "capacity": st.integers(1, 5),
            "heads": st.sampled_from([1, 2]),
            "write_fused": st.booleans(),
            "together": st.booleans(),
            "read_self": st.booleans(),
            "time_code": st.sampled_from(list(POSITIONS)),
            "fusion": st.sampled_from([GateFusion, AddFusion]),
        }
    ),
    st.integers(0, 2**31),
)
def test_the_bank_does_what_the_account_says(settings: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    bank = Bank(*SHAPES.values(), **settings).double()
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = Streams(*(torch.randn(9, 1, *shape, dtype=torch.float64) for shape in SHAPES.values()))
    with torch.no_grad():
        y, state = bank(x, bank.initial_state(1), torch.zeros(9, 1, dtype=torch.bool))
        expected, held = account(bank, x)
    for name, entries in held.items():
        torch.testing.assert_close(getattr(y, name)[:, 0], expected[name], rtol=1e-9, atol=1e-9)
        slots = getattr(state, name)
        torch.testing.assert_close(slots.entries[0], torch.stack([e.tokens for e in entries]))
        assert slots.time[0].tolist() == pytest.approx([e.time for e in entries])
        assert slots.inputs[0].tolist() == [e.inputs for e in entries]
        if slots.usage.shape[1]:
            assert slots.usage[0].tolist() == pytest.approx([e.usage for e in entries])


def recorded(path: Path) -> tuple[Bank, dict[str, np.ndarray]]:
    """The bank of a recording, with its parameters."""
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    _, number, width = data["tokens"].shape
    settings: dict[str, Any] = {"write_fused": bool(data["write_fused"]), "dropout": 0.0}
    if data["consolidation"] == "fifo":
        settings["consolidation"] = Oldest()
    if data["fusion"] == "add":
        settings["fusion"] = AddFusion
    capacity, heads = int(data["mem_length"]), int(data["num_heads"])
    bank = memoryvla_plus((number, width), (0, 1), capacity=capacity, heads=heads, **settings)
    names: dict[str, Callable[[str], str]] = {
        "retrieval_blocks.": lambda rest: f"blocks.{rest}",
        "timestep_embedders.": lambda rest: f"time_code.{rest}",
        "gate_fusion_blocks.proj": lambda rest: f"fusion.gate{rest}",
    }
    parts = {
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "attn_norm": "attention_norm",
        "ffn.0": "widen",
        "ffn.3": "narrow",
        "ffn_norm": "norm",
        "mlp.0": "inner",
        "mlp.2": "outer",
    }
    found = {}
    for key, value in data.items():
        for prefix, rename in names.items():
            if key.startswith(f"param/{prefix}"):
                name = rename(key.removeprefix(f"param/{prefix}"))
                for old, new in parts.items():
                    name = name.replace(old, new)
                found[name] = torch.from_numpy(value)
    read = bank.double().retrieval["perceptual"]
    result = read.load_state_dict(found, strict=False)
    assert not result.missing_keys
    # What shifts all keys alike does nothing, and has no parameter here.
    extra = {"blocks.0.key.bias", "blocks.1.key.bias", "time_code.outer.bias"}
    assert set(result.unexpected_keys) == extra
    return bank, data


@pytest.mark.parametrize("name", ["bank_plus_gate_merge", "bank_plus_add_fifo"])
def test_memoryvla_plus_is_the_recorded_original(name: str, golden: Path) -> None:
    path = golden / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"needs {path.name} of the recordings")
    bank, data = recorded(path)
    tokens = torch.from_numpy(data["tokens"])[:, None]
    x = Streams(tokens, tokens.new_zeros(len(tokens), 1, 0, 1))
    start = torch.zeros(len(tokens), 1, dtype=torch.bool)
    with torch.no_grad():
        whole, after = bank(x, bank.initial_state(1), start)
        outputs, times, state = [], [], bank.initial_state(1)
        for t in range(len(tokens)):
            y, state = bank.step(Streams(x.perceptual[t], x.cognitive[t]), state, start[t])
            outputs.append(y.perceptual[0])
            seen = min(t + 1, bank.capacity)
            times.append(state.perceptual.time[0, bank.capacity - seen :].tolist())
    expected = torch.from_numpy(data["outputs"])
    for found in (whole.perceptual[:, 0], torch.stack(outputs)):
        assert (found - expected).abs().max() < 1e-9
    for found in (after, state):
        final = torch.from_numpy(data["final_bank"])
        assert (found.perceptual.entries[0] - final).abs().max() < 1e-9
    recorded_times = data["bank_times_after_each_step"]
    assert times == [[t for t in row if not np.isnan(t)] for row in recorded_times.tolist()]
