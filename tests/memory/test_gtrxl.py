"""GTrXL: its gate by hand, its reach, and its attention against a loop."""

import math
from typing import Any

import pytest
import torch

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GTrXL, GTrXLLayer
from engram.memory.sequence.attention import sinusoid
from engram.memory.sequence.gtrxl import Gate


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_gate_worked_out_by_hand() -> None:
    gate = Gate(1, bias=2.0).double()
    with torch.no_grad():
        gate.from_y.weight.copy_(torch.tensor([[1.0], [2.0], [0.5]]))  # W_r, W_z, W_g
        gate.from_x.weight.copy_(torch.tensor([[-1.0], [1.0]]))  # U_r, U_z
        gate.from_reset.weight.fill_(4.0)  # U_g
    x, y = 0.5, 1.0
    r = sigmoid(1.0 * y - 1.0 * x)  # σ(1/2)
    z = sigmoid(2.0 * y + 1.0 * x - 2.0)  # σ(1/2)
    expected = (1 - z) * x + z * math.tanh(0.5 * y + 4.0 * r * x)
    found = gate(torch.tensor([x]).double(), torch.tensor([y]).double())
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert found.item() == pytest.approx(0.774377, abs=1e-6)


def test_a_gate_with_a_large_bias_is_the_identity() -> None:
    memory = GTrXL(8, layers=3, memory=4, heads=2, gate_bias=60.0).double()
    x = torch.randn(9, 2, 8).double()
    y, _ = memory(x, memory.initial_state(2), torch.zeros(9, 2, dtype=torch.bool))
    torch.testing.assert_close(y, x)


@pytest.mark.parametrize(("layers", "reach"), [(1, 3), (2, 3), (3, 2)])
def test_a_query_reaches_back_layers_times_memory_steps(layers: int, reach: int) -> None:
    memory = GTrXL(8, layers=layers, memory=reach, heads=2).double()
    x = torch.randn(20, 1, 8).double().requires_grad_()
    y, _ = memory(x, memory.initial_state(1), torch.zeros(20, 1, dtype=torch.bool))
    y[-1].sum().backward()
    assert x.grad is not None
    seen = (x.grad[:, 0].abs().amax(-1) > 0).nonzero()[:, 0].tolist()
    assert seen == [*range(19 - layers * reach, 20)]


def test_a_layer_equals_a_loop_over_queries_and_keys() -> None:
    heads, dim, reach = 2, 8, 3
    layer = GTrXLLayer(dim, memory=reach, heads=heads).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(7, dim).double()
    size = dim // heads
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).view(7, 3, heads, size).unbind(1)
        read = torch.zeros(7, dim).double()
        for t in range(7):
            for h in range(heads):
                logits = []
                span = range(max(0, t - reach), t + 1)
                for j in span:
                    code = sinusoid(torch.tensor(t - j), dim)  # R_{t−j}
                    relative = layer.relative(code).view(heads, size)[h]
                    content = (q[t, h] + layer.content_bias[h]) @ k[j, h]
                    position = (q[t, h] + layer.position_bias[h]) @ relative
                    logits.append((content + position) / math.sqrt(size))
                weight = torch.stack(logits).softmax(0)
                read[t, h * size : (h + 1) * size] = weight @ v[list(span), h]
        middle = layer.gate_attention(x, layer.out(read).relu())
        expected = layer.gate_mlp(middle, layer.mlp(middle).relu())
        y, _ = layer(x[:, None], layer.initial_state(1), torch.zeros(7, 1, dtype=torch.bool))
    torch.testing.assert_close(y[:, 0], expected)


def test_gradients_stop_at_the_state_only_if_it_is_cut() -> None:
    layer = GTrXLLayer(8, memory=3, heads=2).double()
    x = torch.randn(4, 1, 8, dtype=torch.float64, requires_grad=True)
    still = torch.zeros(4, 1, dtype=torch.bool)
    _, state = layer(x, layer.initial_state(1), still)
    y, _ = layer(torch.randn(1, 1, 8).double(), state, still[:1])
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad[0].any() and x.grad[1:].abs().amin() > 0  # it keeps three


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3; allowed: divisors of d_in = 8"),
        ({"heads": 0}, "heads is 0"),
        ({"d_in": 7, "heads": 7}, "d_in = 7, an even number"),
        ({"memory": 0}, "memory is 0; allowed: 1 or more"),
        ({"layers": 0}, "layers is 0; allowed: 1 or more"),
        ({"expand": 0.0}, "expand is 0.0; allowed: 1 / d_in"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        GTrXL(**{"d_in": 8, **settings})
