"""Window attention by hand, and what falls out of the window."""

import math

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import Window
from engram.memory.sequence.attention import banded_attention


def test_attention_worked_out_by_hand() -> None:
    memory = Window(1, window=2, heads=1).double()
    with torch.no_grad():
        for layer in (memory.query, memory.key, memory.value, memory.out):
            layer.weight.fill_(1.0)
        for layer in (memory.query, memory.value, memory.out):
            layer.bias.zero_()
        memory.distance.copy_(torch.tensor([[0.0, math.log(2)]]))  # one step back counts twice
    x = torch.tensor([1.0, 0.0, 3.0]).double()[:, None, None]
    y, state = memory(x, memory.initial_state(1), torch.zeros(3, 1, dtype=torch.bool))
    # t = 0 sees itself: 1. t = 1: logits 0 and 0 + ln 2, weights 1/3 and 2/3: 0/3 + 2/3.
    # t = 2 sees 3 and 0: logits 9 and ln 2, weights e⁹ : 2.
    e9 = math.exp(9)
    expected = torch.tensor([1.0, 2 / 3, 3 * e9 / (e9 + 2)]).double()
    torch.testing.assert_close(y.flatten(), expected)
    assert state.k.flatten().tolist() == [3.0] and state.age.tolist() == [3]


@pytest.mark.parametrize("window", [2, 3, 7, 40])
def test_what_falls_out_of_the_window_has_no_influence(window: int) -> None:
    memory = Window(4, window=window, heads=2).double()
    x = torch.randn(30, 2, 4).double().requires_grad_()
    y, _ = memory(x, memory.initial_state(2), torch.zeros(30, 2, dtype=torch.bool))
    for t in (0, 5, 29):
        (gradient,) = torch.autograd.grad(y[t, 0].sin().sum(), x, retain_graph=True)
        seen = gradient[:, 0].abs().amax(-1) > 0
        assert seen.nonzero()[:, 0].tolist() == [*range(max(0, t - window + 1), t + 1)]
        assert not gradient[:, 1].any()


def naive(q: Tensor, k: Tensor, v: Tensor, term: Tensor, reach: Tensor) -> Tensor:
    """Equation of `banded_attention`, one query, head and key at a time."""
    past = k.shape[1] - q.shape[1]
    y = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                logits, values = [], []
                for o in range(int(reach[b, t]) + 1):
                    c = term[h, o] if term.ndim == 2 else term[b, t, h, o]
                    key = k[b, past + t - o, h]
                    logits.append((q[b, t, h] * key).sum() / math.sqrt(q.shape[3]) + c)
                    values.append(v[b, past + t - o, h])
                y[b, t, h] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return y


@pytest.mark.parametrize(("steps", "past"), [(1, 3), (7, 3), (21, 1), (40, 18), (16, 16), (17, 16)])
@pytest.mark.parametrize("per_query", [False, True])
def test_blocks_equal_a_loop_over_queries_and_keys(steps: int, past: int, per_query: bool) -> None:
    q = torch.randn(2, steps, 2, 3).double()
    k, v = torch.randn(2, 2, past + steps, 2, 3).double()
    term = torch.randn(*((2, steps) if per_query else ()), 2, past + 1).double()
    reach = torch.randint(0, past + 1, (2, steps))
    y = banded_attention(q, k, v, term, reach)
    torch.testing.assert_close(y, naive(q, k, v, term, reach))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3; allowed: divisors of d_in = 4"),
        ({"heads": 0}, "heads is 0"),
        ({"window": 1}, "window is 1; allowed: 2 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Window(4, **settings)
