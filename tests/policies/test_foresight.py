"""The loss that asks where a demonstration ends: what it asks, whom, and whom it teaches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import Streams
from engram.policies.foresight import Foresight
from engram.policies.perception import Perception

T, B = 5, 3
Sizes = Callable[..., Any]


def streams(perception: Perception) -> Streams:
    return Streams(
        torch.randn(T, B, *perception.perceptual, requires_grad=True),
        torch.randn(T, B, *perception.cognitive, requires_grad=True),
    )


def statistics(perception: Perception) -> tuple[Tensor, Tensor]:
    felt = perception.sizes.proprioception
    return torch.linspace(-1, 1, felt), torch.linspace(1, 2, felt)


def ended(perception: Perception) -> Tensor:
    return torch.randn(T, B, perception.sizes.proprioception)


def some() -> Tensor:
    asked = torch.zeros(T, B, dtype=torch.bool)
    asked[3:, 0] = asked[2, 1] = True
    return asked


def test_it_is_the_mean_error_of_the_frames_that_are_asked(perception: Perception) -> None:
    foresight = Foresight(perception, statistics(perception), weight=3.0, width=16)
    fused, end, asked = streams(perception), ended(perception), some()
    with torch.no_grad():  # the guess is then the same for every frame
        foresight.guess[-1].weight.zero_()
        foresight.guess[-1].bias.fill_(0.25)
    loss = foresight(fused, end, asked)["goal"]
    mean, std = statistics(perception)
    errors = [(0.25 - (end[t, b] - mean) / std).square().mean() for t, b in asked.nonzero()]
    torch.testing.assert_close(loss, 3 * torch.stack(errors).mean())


def test_frames_that_are_not_asked_do_not_count(perception: Perception) -> None:
    foresight = Foresight(perception, statistics(perception), width=16)
    fused, end, asked = streams(perception), ended(perception), some()
    loss = foresight(fused, end, asked)["goal"]
    hidden = [torch.where(asked[..., None, None], part, 1e3) for part in fused]
    other = torch.where(asked[..., None], end, 1e3)
    torch.testing.assert_close(foresight(Streams(*hidden), other, asked)["goal"], loss)
    loss.backward()
    for part in fused:
        assert part.grad is not None
        assert not part.grad[~asked].any()
        assert part.grad[asked].flatten(1).any(1).all()


def test_every_parameter_gets_gradient(perception: Perception) -> None:
    foresight = Foresight(perception, statistics(perception), width=16)
    foresight(streams(perception), ended(perception), some())["goal"].backward()
    for name, parameter in foresight.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_asking_no_frame_costs_nothing(perception: Perception) -> None:
    foresight = Foresight(perception, statistics(perception), width=16)
    nobody = torch.zeros(T, B, dtype=torch.bool)
    assert foresight(streams(perception), ended(perception), nobody) == {"goal": torch.zeros(())}


def test_without_weight_or_sense_there_is_no_loss(
    perception: Perception, sight_size: Sizes
) -> None:
    unweighted = Foresight(perception, statistics(perception), weight=0.0)
    sizes = sight_size()._replace(proprioception=0)
    numb = Perception(sizes, perceptual=8, cognitive=12, features=16, heads=2)
    senseless = Foresight(numb, statistics(numb))
    for foresight in (unweighted, senseless):
        assert not list(foresight.parameters())
        assert foresight(streams(perception), ended(perception), some()) == {}


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(perception: Perception, weight: float) -> None:
    with pytest.raises(InvalidValueError, match=r"foresight\.weight is"):
        Foresight(perception, statistics(perception), weight=weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3, "width": 16}, "heads is 3; allowed: divisors of width = 16"),
        ({"heads": 0}, "heads is 0; allowed: divisors of width = 128"),
        ({"width": 0}, "width is 0; allowed: 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    perception: Perception, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Foresight(perception, statistics(perception), **settings)


def test_it_teaches_to_find_what_the_memory_names(perception: Perception) -> None:
    """Of two places that tokens show, the cognitive token says which: a fixed task of both."""
    torch.manual_seed(0)
    mean, std = statistics(perception)
    foresight = Foresight(perception, (torch.zeros_like(mean), torch.ones_like(std)), width=32)
    optimizer = torch.optim.Adam(foresight.parameters(), 3e-3)
    (number, d), (_, e) = perception.perceptual, perception.cognitive
    losses = []
    for _ in range(300):
        which = torch.randint(2, (1, 64))
        tokens, cognitive = torch.randn(1, 64, number, d), torch.zeros(1, 64, 1, e)
        cognitive[..., 0] = which[..., None].float() * 2 - 1
        tokens[..., :2] = 0
        tokens[..., 0, 0], tokens[..., 1, 1] = 1, 1
        places = tokens[..., :2, 2]  # of the first token and of the second
        goal = places.gather(-1, which[..., None]).expand(-1, -1, len(mean))
        asked = torch.ones(1, 64, dtype=torch.bool)
        loss = foresight(Streams(tokens, cognitive), goal, asked)["goal"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert max(losses[-20:]) < 0.1, losses[-20:]
