"""Diffusion and flow: schedules worked out by hand, and draws whose end is known."""

import math

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.policies.denoising import Denoising, Diffusion, Flow


def exact(clean: Tensor, denoising: Denoising) -> object:
    """What a network that knows the clean actions predicts."""

    def predict(x: Tensor, i: int) -> Tensor:
        if isinstance(denoising, Flow):
            return clean
        assert isinstance(denoising, Diffusion)
        kept = denoising.kept[round(denoising.times[i] * denoising.levels) - 1].double()
        return (x - kept.sqrt() * clean) / (1 - kept).sqrt()

    return predict


def test_the_cosine_schedule_is_that_of_the_paper() -> None:
    # f(k) = cos²((k/4 + 0.008)/1.008 · π/2): 0.999845, 0.846881, 0.493767, 0.144250, 0
    # Divided by the first: 0.847012, 0.493844, 0.144272; the last step would keep nothing, and a
    # thousandth is kept.
    kept = Diffusion(2, levels=4).kept
    assert kept.tolist() == pytest.approx([0.847012, 0.493844, 0.144272, 0.000144272], rel=1e-5)


def test_a_hundred_levels_begin_and_end_where_the_published_schedule_does() -> None:
    kept = Diffusion().kept
    assert float(kept[0]) == pytest.approx(0.9993686, abs=1e-6)
    assert float(kept[49]) == pytest.approx(0.4938436, abs=1e-6)
    assert float(kept[99]) == pytest.approx(2.4287e-7, rel=1e-3)
    assert (kept.diff() < 0).all()


@pytest.mark.parametrize("denoising", [Diffusion(4, levels=100), Flow(4)])
def test_a_draw_visits_levels_at_equal_distance_from_the_noisiest_on(denoising: Denoising) -> None:
    seen = []

    def predict(x: Tensor, i: int) -> Tensor:
        seen.append(i)
        return torch.zeros_like(x)

    denoising.draw(torch.randn(2, 3, 1), predict)
    assert seen == [0, 1, 2, 3]
    assert denoising.times == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 100])
@pytest.mark.parametrize("kind", [Diffusion, Flow])
def test_a_perfect_network_draws_the_clean_actions(kind: type[Denoising], steps: int) -> None:
    denoising = kind(steps)
    clean = torch.rand(5, 4, 3, dtype=torch.float64) * 2 - 1
    drawn = denoising.draw(torch.randn_like(clean), exact(clean, denoising))
    torch.testing.assert_close(drawn, clean, atol=1e-6, rtol=0)


def test_two_steps_of_ddim_by_hand() -> None:
    diffusion = Diffusion(2, levels=4)
    high, low = float(diffusion.kept[3]), float(diffusion.kept[1])
    x, e = 0.3, (0.29, 0.2)
    clean = (x - math.sqrt(1 - high) * e[0]) / math.sqrt(high)
    clean = max(-1.0, min(1.0, clean))
    rest = (x - math.sqrt(high) * clean) / math.sqrt(1 - high)
    x1 = math.sqrt(low) * clean + math.sqrt(1 - low) * rest
    expected = (x1 - math.sqrt(1 - low) * e[1]) / math.sqrt(low)
    assert abs(expected) < 1, "cut, it would prove less"
    answers = iter(e)
    drawn = diffusion.draw(
        torch.full((1, 1, 1), x, dtype=torch.float64),
        lambda x, i: torch.full_like(x, next(answers)),
    )
    assert float(drawn) == pytest.approx(expected, abs=1e-6)


def test_three_euler_steps_by_hand() -> None:
    # x = 1, guesses 0.4, 0.1, −0.5: 1 + (0.4−1)/3 = 0.8; 0.8 + (0.1−0.8)/2 = 0.45; −0.5
    answers, seen = iter([0.4, 0.1, -0.5]), []

    def predict(x: Tensor, i: int) -> Tensor:
        seen.append(float(x))
        return torch.full_like(x, next(answers))

    drawn = Flow(3).draw(torch.ones(1, 1, 1, dtype=torch.float64), predict)
    assert float(drawn) == pytest.approx(-0.5)
    assert seen == pytest.approx([1, 0.8, 0.45])


def test_diffusion_mixes_by_the_schedule_and_asks_for_the_noise() -> None:
    diffusion = Diffusion()
    clean = torch.randn(400, 4, 2)
    noisy, time, target = diffusion.disturb(clean, torch.Generator().manual_seed(3))
    level = (time * 100).round().long() - 1
    assert set(level.tolist()) <= set(range(100)) and len(level.unique()) > 80
    assert level.min() == 0 and level.max() == 99
    kept = diffusion.kept[level][:, None, None]
    torch.testing.assert_close(noisy, kept.sqrt() * clean + (1 - kept).sqrt() * target)
    assert abs(float(target.mean())) < 0.1 and float(target.std()) == pytest.approx(1, abs=0.1)


def test_flow_mixes_on_a_straight_line_and_asks_for_the_clean_action() -> None:
    clean = torch.randn(400, 4, 2)
    noisy, time, target = Flow().disturb(clean, torch.Generator().manual_seed(3))
    assert torch.equal(target, clean)
    assert time.min() >= 0 and time.max() <= 1 and float(time.mean()) == pytest.approx(0.5, abs=0.1)
    share = time[:, None, None]
    noise = (noisy - (1 - share) * clean) / share
    well = time > 0.1
    assert float(noise[well].std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", [Diffusion, Flow])
def test_equal_generators_disturb_equally(kind: type[Denoising]) -> None:
    clean = torch.randn(6, 4, 2)
    a, b = (kind(4).disturb(clean, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_draw_of_diffusion_never_leaves_the_bound() -> None:
    wild = Diffusion(5, bound=0.5).draw(torch.randn(8, 4, 2) * 9, lambda x, i: -x * 3)
    assert float(wild.abs().max()) == 0.5


def test_steps_that_cannot_be_made_are_refused() -> None:
    for kind in (Diffusion, Flow):
        with pytest.raises(InvalidValueError, match="steps is 0; allowed: 1 or more"):
            kind(0)
    with pytest.raises(InvalidValueError, match="steps is 11; allowed: 1 … levels = 10"):
        Diffusion(11, levels=10)
    with pytest.raises(InvalidValueError, match=r"bound is 0\.0; allowed: above 0"):
        Diffusion(bound=0.0)
