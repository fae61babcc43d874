"""GRU and LSTM by hand, and packed runs against a loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, LSTM
from engram.memory.sequence.recurrent import GRUState, LSTMState, pack


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def scalar(memory: GRU | LSTM, weights: dict[str, list[float]]) -> None:
    """Set the parameters of a network of one input and one unit; gates in PyTorch's order."""
    with torch.no_grad():
        for name, value in weights.items():
            parameter = getattr(memory.kernel, name)
            parameter.copy_(torch.tensor(value).view_as(parameter))


def test_a_gru_step_worked_out_by_hand() -> None:
    memory = GRU(1).double()
    # Gates r, z, n.
    scalar(
        memory,
        {
            "weight_ih_l0": [0.5, -1.0, 2.0],
            "weight_hh_l0": [1.0, 0.5, -1.0],
            "bias_ih_l0": [0.0, 1.0, 0.5],
            "bias_hh_l0": [0.0, 0.0, 0.25],
        },
    )
    x, h = 2.0, 0.5
    r = sigmoid(0.5 * 2 + 1.0 * 0.5)  # σ(1.5)
    z = sigmoid(-1.0 * 2 + 1.0 + 0.5 * 0.5)  # σ(−0.75)
    n = math.tanh(2.0 * 2 + 0.5 + r * (-1.0 * 0.5 + 0.25))  # tanh(4.5 − r/4)
    y, state = memory.step(
        torch.tensor([[x]]).double(), GRUState(torch.tensor([[h]]).double()), torch.tensor([False])
    )
    assert y.item() == pytest.approx((1 - z) * n + z * h, abs=1e-12)
    assert y.item() == pytest.approx(0.839337, abs=1e-6)
    assert torch.equal(state.h, y)


def test_an_lstm_step_worked_out_by_hand() -> None:
    memory = LSTM(1).double()
    # Gates i, f, g, o.
    scalar(
        memory,
        {
            "weight_ih_l0": [1.0, 0.0, 0.5, -1.0],
            "weight_hh_l0": [0.0, 1.0, 1.0, 2.0],
            "bias_ih_l0": [0.0, 0.0, 0.0, 1.0],
            "bias_hh_l0": [0.0, 0.0, 0.0, 0.0],
        },
    )
    # i = σ(1), f = σ(1/2), g = tanh(1/2 + 1/2), o = σ(−1 + 1 + 1).
    c = sigmoid(0.5) * 2.0 + sigmoid(1.0) * math.tanh(1.0)
    state = LSTMState(torch.tensor([[0.5]]).double(), torch.tensor([[2.0]]).double())
    y, after = memory.step(torch.tensor([[1.0]]).double(), state, torch.tensor([False]))
    assert after.c.item() == pytest.approx(c, abs=1e-12)
    assert y.item() == pytest.approx(sigmoid(1.0) * math.tanh(c), abs=1e-12)
    assert c == pytest.approx(1.801689, abs=1e-6)


def loop(memory: Any, x: Tensor, hidden: tuple[Tensor, ...], start: Tensor) -> tuple[Tensor, ...]:
    """One environment and one step at a time, through PyTorch's cell."""
    cell_type = torch.nn.GRUCell if isinstance(memory, GRU) else torch.nn.LSTMCell
    cell = cell_type(memory.d_in, memory.d_out).double()
    cell.load_state_dict({k[: -len("_l0")]: v for k, v in memory.kernel.state_dict().items()})
    y = torch.zeros(*x.shape[:2], memory.d_out).double()
    last = [part.clone() for part in hidden]
    for b in range(x.shape[1]):
        rows = [part[b : b + 1] for part in hidden]
        for t in range(len(x)):
            if start[t, b]:
                rows = [torch.zeros_like(row) for row in rows]
            after = cell(x[t, b : b + 1], rows[0] if len(rows) == 1 else tuple(rows))
            rows = [after] if len(rows) == 1 else list(after)
            y[t, b] = rows[0][0]
        for part, row in zip(last, rows, strict=True):
            part[b] = row[0]
    return y, *last


@pytest.mark.parametrize("kind", [GRU, LSTM])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_packed_runs_equal_a_loop_over_environments(kind: Any, rate: float) -> None:
    memory = kind(3, 5).double()
    hidden = tuple(torch.randn(4, 5).double() for _ in range(1 if kind is GRU else 2))
    x = torch.randn(12, 4, 3).double()
    start = torch.rand(12, 4) < rate
    with torch.no_grad():
        y, state = memory(x, type(memory.initial_state(4))(*hidden), start)
        expected, *last = loop(memory, x, hidden, start)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(list(state), last)


def test_the_packing_worked_out_by_hand() -> None:
    # Environment 0: runs of 1 and 2 inputs; environment 1: one of 3.
    start = torch.tensor([[False, False], [True, False], [False, False]])
    packing = pack(start)
    assert packing.runs == 3
    # Sorted by length: environment 1 (3), the second run (2), the first (1).
    assert packing.batch_sizes.tolist() == [3, 2, 1]
    assert packing.first.tolist() == [2, 0] and packing.last.tolist() == [1, 0]
    # Packed: first inputs at 0 to 2, second ones at 3 and 4, the third at 5.
    assert packing.position.tolist() == [2, 1, 4, 0, 3, 5]


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_bad_settings_are_refused(kind: Any) -> None:
    with pytest.raises(InvalidValueError, match="d_out is 0; allowed: 1 or more"):
        kind(4, 0)
    assert kind(4).d_out == 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("staggered", [False, True])
@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_autocast_leaves_the_kernel_in_the_precision_of_its_parameters(
    kind: Any, staggered: bool, device: str
) -> None:
    # CUDA's autocast would run it in float16, even where bfloat16 was asked for.
    memory = kind(8).to(device)
    x = torch.randn(20, 16, 8, device=device)
    start = torch.rand(20, 16, device=device) < (0.3 if staggered else 0.0)
    expected, _ = memory(x, memory.initial_state(16), start)
    with torch.autocast(device, torch.bfloat16):
        y, _ = memory(x, memory.initial_state(16), start)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
