"""Vector memories behind the streams of a policy, and the control that remembers nothing."""

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU, NoMemory, OverStreams, PresentOnly, Streams

STEPS, BATCH = 6, 3
PERCEPTUAL, COGNITIVE = (4, 5), (1, 7)


def streams(*lead: int) -> Streams:
    return Streams(torch.randn(*lead, *PERCEPTUAL), torch.randn(*lead, *COGNITIVE))


def starts() -> Tensor:
    start = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    start[0] = start[3, 1] = True
    return start


def normalized(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


def test_what_is_read_is_added_to_every_token() -> None:
    memory = OverStreams(PERCEPTUAL, COGNITIVE, memory=lambda width: GRU(width, 6), width=8)
    x, start = streams(STEPS, BATCH), starts()
    y, _ = memory(x, memory.initial_state(BATCH), start)
    parts = [normalized(part).flatten(-2) for part in x]  # norms begin with scale 1 and shift 0
    v = torch.cat(parts, -1) @ memory.read.weight.T + memory.read.bias
    read, _ = memory.memory(v, memory.memory.initial_state(BATCH), start)
    perceptual = x.perceptual + (read @ memory.to_perceptual.weight.T)[:, :, None]
    cognitive = x.cognitive + (read @ memory.to_cognitive.weight.T)[:, :, None]
    torch.testing.assert_close(y.perceptual, perceptual)
    torch.testing.assert_close(y.cognitive, cognitive)


def test_every_token_has_a_place_of_its_own_in_what_is_remembered() -> None:
    memory = OverStreams(PERCEPTUAL, COGNITIVE, memory=lambda width: GRU(width, 6), width=8)
    x = streams(1, BATCH)
    turned = x._replace(perceptual=x.perceptual.flip(2))
    start = torch.ones(1, BATCH, dtype=torch.bool)
    y, _ = memory(x, memory.initial_state(BATCH), start)
    z, _ = memory(turned, memory.initial_state(BATCH), start)
    assert not torch.allclose(y.cognitive, z.cognitive, atol=1e-4)


def test_a_memory_that_reads_zero_leaves_the_streams_as_they_are() -> None:
    memory = OverStreams(PERCEPTUAL, COGNITIVE, memory=NoMemory, width=8)
    x = streams(STEPS, BATCH)
    y, _ = memory(x, memory.initial_state(BATCH), starts())
    assert torch.equal(y.perceptual, x.perceptual) and torch.equal(y.cognitive, x.cognitive)


@pytest.mark.parametrize("unused", ["perceptual", "cognitive"])
def test_a_stream_that_is_not_in_use_has_no_parameters(unused: str) -> None:
    sizes = {"perceptual": PERCEPTUAL, "cognitive": COGNITIVE} | {unused: (0, 5)}
    memory = OverStreams(**sizes, memory=lambda width: GRU(width, 6), width=8)
    x = Streams(*(torch.randn(STEPS, BATCH, *size) for size in sizes.values()))
    y, _ = memory(x, memory.initial_state(BATCH), starts())
    assert getattr(y, unused).shape == (STEPS, BATCH, 0, 5)
    torch.cat([part.flatten() for part in y]).sin().sum().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="tokens is 0; allowed: 1 or more"):
        OverStreams((0, 5), (0, 7), memory=NoMemory)
    with pytest.raises(InvalidValueError, match="width is 0; allowed: 1 or more"):
        OverStreams(PERCEPTUAL, COGNITIVE, memory=NoMemory, width=0)


def test_the_control_passes_everything_and_carries_nothing() -> None:
    memory = PresentOnly(PERCEPTUAL, COGNITIVE)
    x, state = streams(STEPS, BATCH), memory.initial_state(BATCH)
    assert states.nbytes(state) == 0 and not list(memory.parameters())
    y, after = memory(x, state, starts())
    assert y is x and states.nbytes(after) == 0
    now = states.tree_map(lambda part: part[0], x)
    assert memory.step(now, after, starts()[0])[0] is now
    assert memory.d_in == memory.d_out == 4 * 5 + 7
