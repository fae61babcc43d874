"""Memory tokens: a step worked out in plain terms, and how far gradient reaches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import MemoryTokens


def build(gradient_steps: int | None = 2, **settings: Any) -> MemoryTokens:
    return MemoryTokens(4, tokens=2, heads=2, gradient_steps=gradient_steps, **settings).double()


def reached(gradient_steps: int | None, read: int, starts: tuple[int, ...] = ()) -> list[int]:
    """The inputs that the output of one step sends gradient to."""
    memory = build(gradient_steps)
    x = torch.randn(7, 1, 4, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(7, 1, dtype=torch.bool)
    start[list(starts)] = True
    y, _ = memory(x, memory.initial_state(1), start)
    (grad,) = torch.autograd.grad(y[read].sin().sum(), x)
    return grad.flatten(1).any(1).nonzero().flatten().tolist()


def test_gradient_of_two_steps_reaches_every_other_input_and_the_one_before() -> None:
    assert [reached(2, read) for read in range(5)] == [[0], [0, 1], [2], [2, 3], [4]]


def test_gradient_of_one_step_reaches_no_other_input() -> None:
    assert [reached(1, read) for read in range(3)] == [[0], [1], [2]]


def test_gradient_of_three_steps_is_counted_from_the_start_of_the_scope() -> None:
    found = [reached(3, read, starts=(2,)) for read in range(7)]
    assert found == [[0], [0, 1], [2], [2, 3], [2, 3, 4], [5], [5, 6]]


def test_gradient_without_a_limit_reaches_the_start() -> None:
    assert reached(None, 6, starts=(2,)) == [2, 3, 4, 5, 6]


def test_the_carried_tokens_matter_even_where_gradient_does_not_pass() -> None:
    memory = build(1)
    x = torch.randn(3, 1, 4, dtype=torch.float64)
    still = torch.zeros(3, 1, dtype=torch.bool)
    y, _ = memory(x, memory.initial_state(1), still)
    x[0] = torch.randn(1, 4)
    z, _ = memory(x, memory.initial_state(1), still)
    assert (y[2] - z[2]).abs().max() > 1e-6


def normed(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def test_a_step_is_a_transformer_over_the_tokens_and_the_input() -> None:
    memory = build()
    layer: Any = memory.layers[0]
    x, carried = torch.randn(1, 4).double(), torch.randn(1, 2, 4).double()
    state = memory.initial_state(1)._replace(tokens=carried, age=torch.tensor([5]))
    y, after = memory.step(x, state, torch.tensor([False]))
    rows = torch.cat([carried[0] + memory.code, x])
    q, k, v = (part(normed(rows)) for part in (layer.query, layer.key, layer.value))
    read = []
    for head in (slice(0, 2), slice(2, 4)):
        weight = (q[:, head] @ k[:, head].T / math.sqrt(2)).softmax(1)
        read.append(weight @ v[:, head])
    rows = rows + layer.out(torch.cat(read, 1))
    hidden = layer.widen(normed(rows))
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = normed(rows + layer.narrow(hidden))
    torch.testing.assert_close(y[0], expected[2])
    torch.testing.assert_close(after.tokens[0], 0.9 * carried[0] + 0.1 * expected[:2])
    assert after.age.tolist() == [6]


def test_without_a_gate_the_tokens_are_replaced() -> None:
    memory, gated = build(keep=None), build(keep=0.5)
    gated.load_state_dict(memory.state_dict(), strict=False)
    x, still = torch.randn(1, 4).double(), torch.tensor([False])
    carried = torch.randn(1, 2, 4).double()
    state = memory.initial_state(1)._replace(tokens=carried, age=torch.tensor([5]))
    y, new = memory.step(x, state, still)
    z, mixed = gated.step(x, state, still)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(mixed.tokens, (carried + new.tokens) / 2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokens": 0}, "tokens is 0; allowed: 1 or more"),
        ({"layers": 0}, "layers is 0; allowed: 1 or more"),
        ({"heads": 3}, "heads is 3; allowed: divisors of d_in = 4"),
        ({"expand": 0.0}, "expand is 0.0; allowed: 1 / 4 or more"),
        ({"keep": 1.0}, "keep is 1.0; allowed: between 0 and 1, or None"),
        ({"gradient_steps": 0}, "gradient_steps is 0; allowed: 1 or more, or None"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        MemoryTokens(4, **settings)
