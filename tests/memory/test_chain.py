"""Compositions: the block's formula, what a chain refuses, and the stack."""

import pytest
import torch

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU, LSTM, Block, Chain, Memo, NoMemory, Window, stack


def test_a_block_adds_the_read_and_then_the_mlp() -> None:
    memory = GRU(6, 4).double()
    block = Block(memory, expand=1.5).double()
    assert block.mlp is not None and block.mlp[1].out_features == 9
    x, start = torch.randn(5, 3, 6).double(), torch.rand(5, 3) < 0.3
    y, state = block(x, block.initial_state(3), start)
    read, expected_state = memory(block.norm(x), memory.initial_state(3), start)
    h = x + read @ block.project.weight.T + block.project.bias
    first, second = block.mlp[1], block.mlp[3]
    hidden = torch.nn.functional.gelu(first(torch.nn.functional.layer_norm(h, (6,))))
    torch.testing.assert_close(y, h + second(hidden))
    torch.testing.assert_close(state.h, expected_state.h)


def test_a_block_without_mlp_around_no_memory_is_the_identity() -> None:
    block = Block(NoMemory(6), expand=0.0)
    assert block.mlp is None and isinstance(block.project, torch.nn.Identity)
    x = torch.randn(4, 2, 6)
    y, _ = block(x, block.initial_state(2), torch.zeros(4, 2, dtype=torch.bool))
    assert torch.equal(y, x)


def test_a_chain_passes_outputs_on_and_keeps_one_state_per_part() -> None:
    parts = GRU(4, 6), LSTM(6, 3)
    chain = Chain(*parts)
    assert (chain.d_in, chain.d_out) == (4, 3)
    x, start = torch.randn(5, 2, 4), torch.rand(5, 2) < 0.3
    y, state = chain(x, chain.initial_state(2), start)
    middle, first = parts[0](x, parts[0].initial_state(2), start)
    expected, second = parts[1](middle, parts[1].initial_state(2), start)
    assert torch.equal(y, expected)
    assert torch.equal(state[0].h, first.h) and torch.equal(state[1].c, second.c)


def test_a_seed_reaches_the_memories_inside() -> None:
    chain = Chain(GRU(8), Block(Memo(8, heads=2)), Chain(Memo(8, heads=2)))
    state = chain.randomize(chain.initial_state(3), torch.tensor([1, 2, 3]))
    seeds = [leaf for path, leaf in states.leaves(state) if path.endswith("seed")]
    assert len(seeds) == 2 and all(len(set(seed.tolist())) == 3 for seed in seeds)


def test_a_reset_reaches_the_memories_inside_as_a_start_would() -> None:
    chain = Chain(Block(Memo(8, heads=2)), Chain(Memo(8, heads=2)))
    state = chain.randomize(chain.initial_state(3), torch.tensor([1, 2, 3]))
    mask = torch.tensor([True, False, True])
    x = torch.randn(3, 8)
    _, started = chain.step(x, states.snapshot(state), mask)
    _, state = chain.step(x, chain.reset(state, mask), torch.zeros_like(mask))
    seeds = [
        [leaf.tolist() for path, leaf in states.leaves(each) if path.endswith("seed")]
        for each in (started, state)
    ]
    assert seeds[0] == seeds[1] and 0 not in seeds[0][0]


def test_a_stack_is_that_many_blocks_of_the_same_width() -> None:
    memory = stack(8, layer=lambda width: Window(width, window=4, heads=2), layers=3)
    blocks = list(memory.memories)
    assert len(blocks) == 3
    assert all(isinstance(b, Block) and isinstance(b.memory, Window) for b in blocks)
    assert len({id(b.memory) for b in blocks}) == 3
    assert (memory.d_in, memory.d_out) == (8, 8)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="d_in is 5; allowed: d_out before it, 6"):
        Chain(GRU(4, 6), GRU(5))
    with pytest.raises(InvalidValueError, match="memories is 'none'; allowed: one or more"):
        Chain()
    with pytest.raises(InvalidValueError, match="layers is 0; allowed: 1 or more"):
        stack(4, layer=GRU, layers=0)
    with pytest.raises(InvalidValueError, match=r"expand is -1\.0; allowed: 0 or more"):
        Block(GRU(4), expand=-1.0)
