"""The losses that teach a memory: what they ask, and what they never ask."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, OverStreams, PresentOnly, Streams
from engram.policies.perception import Perception
from engram.policies.recollection import Recollection

T, B, CUES = 7, 3, 2
NAN = float("nan")
Sizes = Callable[..., Any]
Sights = Callable[..., Any]


def streams(perception: Perception) -> Streams:
    return Streams(
        torch.randn(T, B, *perception.perceptual), torch.randn(T, B, *perception.cognitive)
    )


def known_cue() -> Tensor:
    cue = torch.full((T, B, CUES), NAN)
    cue[4:, 0] = torch.tensor([1.0, 0.0])
    cue[5:, 1] = torch.tensor([0.0, 1.0])
    return cue


def starts() -> Tensor:
    start = torch.zeros(T, B, dtype=torch.bool)
    start[0] = start[3, 1] = True
    return start


def test_the_cue_loss_is_the_mean_error_where_the_cue_is_known(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, CUES, cue=3.0)
    fused, sight, cue = streams(perception), random_sight(sight_size(), T, B), known_cue()
    losses = recollection(fused, sight, cue, starts())
    assert losses.keys() == {"cue"}
    assert recollection.cue is not None
    both = torch.cat([fused.perceptual.mean(2), fused.cognitive[:, :, 0]], -1)
    guess = recollection.cue(recollection.read(both))
    known = ~cue.isnan()
    torch.testing.assert_close(losses["cue"], 3 * (guess - cue)[known].square().mean())


def test_neither_unit_nor_origin_of_a_cue_weighs_its_loss(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    fused, sight, cue = streams(perception), random_sight(sight_size(), T, B), known_cue()
    mean, std = torch.tensor([0.4, 0.6]), torch.tensor([0.5, 0.25])
    plain, standard, small = (
        Recollection(perception, CUES),
        *(
            Recollection(perception, CUES, (mean * unit + origin, std * unit))
            for unit, origin in ((1.0, 0.0), (0.01, 3.0))
        ),
    )
    for other in (standard, small):
        other.load_state_dict(plain.state_dict() | other.standard.state_dict(prefix="standard."))
    wanted = plain(fused, sight, (cue - mean) / std, starts())["cue"]
    torch.testing.assert_close(standard(fused, sight, cue, starts())["cue"], wanted)
    found = small(fused, sight, cue * 0.01 + 3.0, starts())["cue"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_where_the_cue_is_not_known_nothing_is_asked(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, CUES)
    sight, cue = random_sight(sight_size(), T, B), known_cue()
    fused = Streams(*(part.requires_grad_() for part in streams(perception)))
    loss = recollection(fused, sight, cue, starts())["cue"]
    loss.backward()
    asked = ~cue.isnan().any(-1)
    for part in fused:
        assert part.grad is not None and part.grad.isfinite().all()
        assert torch.equal(part.grad.flatten(2).any(-1), asked)
    nothing = recollection(fused, sight, torch.full_like(cue, NAN), starts())["cue"]
    assert nothing.detach() == 0


@pytest.mark.parametrize("images", [True, False], ids=["images", "objects"])
def test_padding_is_asked_nothing(images: bool, sight_size: Sizes, random_sight: Sights) -> None:
    sizes = sight_size() if images else sight_size(cameras=(), image=0)
    perception = Perception(sizes, perceptual=8, cognitive=12, features=16, heads=2)
    recollection = Recollection(perception, CUES, cue=1.0, past=1.0, horizon=3)
    real = torch.ones(T, B, dtype=torch.bool)
    real[5:, 0] = real[4:, 2] = False
    cue = known_cue().nan_to_num(0.5)
    found = []
    first_sight, first_fused = random_sight(sizes, T, B), streams(perception)
    for change in (False, True):
        sight, fused, cues = first_sight, first_fused, cue
        if change:  # only where there is padding
            other, noise = random_sight(sizes, T, B), streams(perception)
            sight = type(sight)(
                {
                    k: torch.where(real[..., None, None, None], v, other.images[k])
                    for k, v in sight.images.items()
                },
                *sight[1:3],
                torch.where(real[..., None, None], sight.objects, other.objects),
                sight.oracle,
            )
            fused = Streams(
                *(
                    torch.where(real[..., None, None], a, b)
                    for a, b in zip(fused, noise, strict=True)
                )
            )
            cues = torch.where(real[..., None], cue, torch.randn_like(cue))
        generator = torch.Generator().manual_seed(5)
        losses = recollection(fused, sight, cues, starts(), generator, real=real)
        assert losses.keys() == {"cue", "recall"} and all(losses.values())
        found.append([float(loss.detach()) for loss in losses.values()])
    assert found[0] == found[1]
    generator = torch.Generator().manual_seed(5)
    unmasked = recollection(first_fused, first_sight, cue, starts(), generator)
    assert [float(loss.detach()) for loss in unmasked.values()] != found[0]


def test_every_parameter_of_the_active_losses_gets_a_gradient(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, CUES, cue=1.0, past=1.0, horizon=3)
    losses = recollection(
        streams(perception), random_sight(sight_size(), T, B), known_cue(), starts()
    )
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in recollection.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("settings", [{"cues": CUES, "cue": 0.0}, {"cues": 0, "cue": 1.0}], ids=str)
def test_without_weight_or_cue_there_is_no_loss(
    settings: dict[str, Any], perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, **settings)
    cue = known_cue()[..., : settings["cues"]]
    sight = random_sight(sight_size(), T, B)
    assert recollection(streams(perception), sight, cue, starts()) == {}


@pytest.mark.parametrize("name", ["cue", "past"])
@pytest.mark.parametrize("weight", [-1.0, NAN, float("inf")])
def test_weights_that_cannot_work_are_refused(
    name: str, weight: float, perception: Perception
) -> None:
    with pytest.raises(InvalidValueError, match=f"{name} is {weight}; allowed: finite, 0 or more"):
        Recollection(perception, CUES, **{name: weight})


def test_a_horizon_of_nothing_is_refused(perception: Perception) -> None:
    with pytest.raises(InvalidValueError, match="horizon is 0; allowed: 1 or more"):
        Recollection(perception, CUES, past=1.0, horizon=0)


@pytest.mark.slow
def test_only_a_memory_lowers_the_loss_on_the_past(sight_size: Sizes, random_sight: Sights) -> None:
    """Objects are noise, so what was seen cannot be guessed from what is seen."""
    sizes = sight_size(cameras=(), image=0, objects=(1, 2))
    last = {}
    for name, make in {
        "gru": partial(OverStreams, memory=lambda width: GRU(width, 48), width=32),
        "none": PresentOnly,
    }.items():
        torch.manual_seed(0)
        perception = Perception(sizes, perceptual=8, cognitive=12, features=32, heads=2)
        memory = make(perceptual=perception.perceptual, cognitive=perception.cognitive)
        recollection = Recollection(perception, 0, past=1.0, horizon=1)
        parameters = [p for m in (perception, memory, recollection) for p in m.parameters()]
        optimizer = torch.optim.Adam(parameters, 3e-3)
        start = torch.zeros(8, 32, dtype=torch.bool)
        start[0] = True
        losses = []
        for _ in range(300):
            sight = random_sight(sizes, 8, 32)
            sight = sight._replace(objects=sight.objects.sign())
            fused, _ = memory(perception(sight), memory.initial_state(32), start)
            loss = recollection(fused, sight, torch.zeros(8, 32, 0), start)["recall"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        last[name] = sum(losses[-20:]) / 20
    assert last["none"] > 0.95, last  # the variance of ±1
    assert last["gru"] < 0.3, last


def test_past_images_are_shrunk_by_the_mean_and_stacked_by_camera(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, 0, past=1.0)
    sight = random_sight(sight_size(), T, B)
    seen = recollection._shrink(sight)
    assert seen.shape == (T, B, 8, 8, 6) and seen.dtype == torch.uint8
    for i, name in enumerate(("top", "wrist")):
        image = sight.images[name][2, 1].movedim(-1, 0).float()
        expected = F.avg_pool2d(image, 4).round().movedim(0, -1)
        assert torch.equal(seen[2, 1, ..., 3 * i : 3 * i + 3].float(), expected)


def test_frames_that_show_the_cue_weigh_as_much_as_all_others(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, CUES)
    assert recollection.cue is not None
    for parameter in recollection.cue.parameters():  # every cue is guessed as zero
        torch.nn.init.zeros_(parameter)
    cue, shown = torch.ones(T, B, CUES), torch.zeros(T, B, dtype=torch.bool)
    cue[0], shown[0] = 3.0, True
    sight = random_sight(sight_size(), T, B)
    loss = recollection(streams(perception), sight, cue, starts(), shown=shown)["cue"]
    assert loss.item() == pytest.approx((9.0 + 1.0) / 2)


def test_where_no_frame_shows_the_cue_all_others_are_the_mean(
    perception: Perception, sight_size: Sizes, random_sight: Sights
) -> None:
    recollection = Recollection(perception, CUES)
    sight, cue = random_sight(sight_size(), T, B), torch.ones(T, B, CUES)
    seen, nowhere = streams(perception), torch.zeros(T, B, dtype=torch.bool)
    whole = recollection(seen, sight, cue, starts())["cue"]
    split = recollection(seen, sight, cue, starts(), shown=nowhere)["cue"]
    torch.testing.assert_close(whole, split)
