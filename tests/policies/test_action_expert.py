"""The action expert: what reaches an action, and that no part of it is born dead."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.policies.action_expert import ActionExpert

N, A, C = 6, 3, 5
PERCEPTUAL, COGNITIVE = 8, 12


def build(**settings: Any) -> ActionExpert:
    small = {"perceptual": PERCEPTUAL, "cognitive": COGNITIVE, "width": 16, "depth": 2, "heads": 2}
    return ActionExpert(A, C, **small | settings)


def given(memory: bool = False) -> dict[str, Any]:
    parts = {"cognitive": torch.randn(N, 1, COGNITIVE), "perceptual": torch.randn(N, 7, PERCEPTUAL)}
    if memory:
        parts["memory"] = (torch.randn(N, 4, PERCEPTUAL), torch.randn(N, 1, COGNITIVE))
    return parts


def predict(expert: ActionExpert, noisy: Tensor, time: Tensor, **parts: Any) -> Tensor:
    return expert(noisy, expert.time_code(time), expert.condition(**parts))


@pytest.mark.parametrize("modulated", [False, True])
def test_every_parameter_gets_a_gradient_at_the_first_step(modulated: bool) -> None:
    """In the published layers only a bias of the attention to perception would get one."""
    expert = build(modulated=modulated)
    hidden = torch.arange(N) < 2
    guess = predict(expert, torch.randn(N, C, A), torch.rand(N), **given(modulated), hidden=hidden)
    (guess - torch.randn_like(guess)).square().mean().backward()
    for name, parameter in expert.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name
        if name.endswith("weight") and "norm" not in name:  # no row of a weight is idle
            assert (parameter.grad.abs().amax(1) > 0).all(), name


@pytest.mark.parametrize("part", ["noisy", "time", "cognitive", "perceptual", "memory"])
def test_everything_that_is_given_changes_the_prediction(part: str) -> None:
    expert = build(modulated=True)
    noisy, time, parts = torch.randn(N, C, A), torch.rand(N), given(True)
    before = predict(expert, noisy, time, **parts)
    if part == "noisy":
        noisy = noisy + 1
    elif part == "time":
        time = 1 - time
    else:
        parts[part] = given(True)[part]
    assert not torch.allclose(predict(expert, noisy, time, **parts), before, atol=1e-5)


def test_an_action_sees_the_other_actions_and_its_own_place() -> None:
    expert = build()
    noisy, time, parts = torch.randn(N, C, A), torch.rand(N), given()
    before = predict(expert, noisy, time, **parts)
    other = noisy.clone()
    other[:, -1] += 1
    assert not torch.allclose(predict(expert, other, time, **parts)[:, 0], before[:, 0], atol=1e-6)
    turned = predict(expert, noisy.flip(1), time, **parts).flip(1)
    assert not torch.allclose(turned, before, atol=1e-5)


def test_rows_are_independent() -> None:
    expert = build(modulated=True)
    noisy, time, parts = torch.randn(N, C, A), torch.rand(N), given(True)
    whole = predict(expert, noisy, time, **parts)
    alone = {k: tuple(p[2:3] for p in v) if k == "memory" else v[2:3] for k, v in parts.items()}
    torch.testing.assert_close(predict(expert, noisy[2:3], time[2:3], **alone), whole[2:3])


def test_a_hidden_cognitive_token_is_the_learned_one_and_perception_stays() -> None:
    expert = build()
    noisy, time, parts = torch.randn(N, C, A), torch.rand(N), given()
    hidden = torch.tensor([True, False, True, False, False, True])
    guess = predict(expert, noisy, time, **parts, hidden=hidden)
    plain = predict(expert, noisy, time, **parts)
    null = expert.null.expand(N, 1, COGNITIVE)
    blind = predict(expert, noisy, time, **parts | {"cognitive": null})
    torch.testing.assert_close(guess[hidden], blind[hidden])
    torch.testing.assert_close(guess[~hidden], plain[~hidden])
    elsewhere = {**parts, "perceptual": given()["perceptual"]}
    other = predict(expert, noisy, time, **elsewhere, hidden=hidden)
    assert not torch.allclose(other[hidden], guess[hidden], atol=1e-5)


def test_a_memory_goes_to_modulated_experts_and_to_no_other() -> None:
    with pytest.raises(InvalidValueError, match="memory is 'NoneType'; allowed: modulated=True"):
        build(modulated=True).condition(**given())
    with pytest.raises(InvalidValueError, match="memory is 'tuple'; allowed: modulated=False"):
        build().condition(**given(True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3; allowed: divisors of width = 16"),
        ({"heads": 0}, "heads is 0"),
        ({"width": 15, "heads": 3}, "heads is 3; allowed: divisors of width = 15, which is even"),
        ({"width": 0}, "width is 0; allowed: 1 or more"),
        ({"width": -8}, "width is -8; allowed: 1 or more"),
        ({"depth": 0}, "depth is 0; allowed: 1 or more"),
        ({"drop": 1.0}, r"drop is 1\.0; allowed: 0 or more, less than 1"),
        ({"drop": float("nan")}, "drop is nan"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        build(**settings)


def test_a_chunk_without_actions_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="chunk is 0; allowed: 1 or more"):
        ActionExpert(A, 0, perceptual=8, cognitive=8)
