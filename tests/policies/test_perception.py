"""Sights to streams: which part reaches which token, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from engram.kernels.errors import InvalidValueError
from engram.policies.perception import Compression, Perception, plain_statistics

TOLD = "felt.standard_told."
Sizes = Callable[..., Any]
Sights = Callable[..., Any]


def build(sizes: Any, **settings: Any) -> Perception:
    small = {"perceptual": 8, "cognitive": 12, "features": 16, "heads": 2}
    return Perception(sizes, **small | settings)


def test_streams_have_the_declared_shapes(sight_size: Sizes, random_sight: Sights) -> None:
    perception = build(sizes := sight_size())
    streams = perception(random_sight(sizes, 3, 2))
    assert perception.perceptual == (2 * 4 + 2, 8) and perception.cognitive == (1, 12)
    assert streams.perceptual.shape == (3, 2, 10, 8) and streams.cognitive.shape == (3, 2, 1, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"objects": (0, 0)},
        {"cameras": (), "image": 0},
        {"oracle": 0},
        {"proprioception": 0},
        {"proprioception": 0, "oracle": 0},
        {"cameras": ("wrist",)},
    ],
    ids=str,
)
def test_parts_that_a_robot_lacks_are_left_out(
    changes: dict[str, Any], sight_size: Sizes, random_sight: Sights
) -> None:
    sizes = sight_size(**changes)
    perception = build(sizes)
    streams = perception(random_sight(sizes, 5))
    assert streams.perceptual.shape[1:] == perception.perceptual
    torch.cat([part.flatten() for part in streams]).sin().sum().backward()
    for name, parameter in perception.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_tokens_of_both_streams_leave_at_scale_one(sight_size: Sizes, random_sight: Sights) -> None:
    """As compressed they are so small that the retrieval of a bank got gradients of 1e-10."""
    for part in build(sizes := sight_size())(random_sight(sizes, 8)):
        assert float(part.detach().std()) == pytest.approx(1, abs=0.1)


def test_batches_of_any_axes_are_seen_alike(sight_size: Sizes, random_sight: Sights) -> None:
    from engram.memory.state import tree_map

    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 3, 2)
    whole = perception(sight)
    row = perception(tree_map(lambda part: part[1], sight))
    torch.testing.assert_close(row.perceptual, whole.perceptual[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(row.cognitive, whole.cognitive[1], atol=1e-5, rtol=1e-5)


def test_every_camera_has_tokens_of_its_own(sight_size: Sizes, random_sight: Sights) -> None:
    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 1)
    before = perception(sight)
    sight.images["wrist"] = 255 - sight.images["wrist"]
    after = perception(sight)
    changed = (before.perceptual != after.perceptual).any(-1)[0]
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert not torch.equal(before.cognitive, after.cognitive)


def test_equal_images_of_two_cameras_are_told_apart(
    sight_size: Sizes, random_sight: Sights
) -> None:
    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 1)
    sight.images["wrist"] = sight.images["top"]
    tokens = perception(sight).perceptual[0]
    assert not torch.allclose(tokens[:4], tokens[4:8], atol=1e-4)


@pytest.mark.parametrize("part", ["proprioception", "words", "oracle"])
def test_what_is_felt_and_told_reaches_the_cognitive_token_alone(
    part: str, sight_size: Sizes, random_sight: Sights
) -> None:
    perception = build(sizes := sight_size())
    sight, other = random_sight(sizes, 1), random_sight(sizes, 1)
    before, after = perception(sight), perception(sight._replace(**{part: getattr(other, part)}))
    assert torch.equal(before.perceptual, after.perceptual)
    assert not torch.allclose(before.cognitive, after.cognitive, atol=1e-4)


def test_what_is_told_is_standardized(sight_size: Sizes, random_sight: Sights) -> None:
    sizes = sight_size()
    mean, std = torch.tensor([0.2, -0.1]), torch.tensor([0.05, 0.0])  # the second never changes
    standard = build(sizes, statistics=plain_statistics(sizes)._replace(cue=(mean, std)))
    plain = build(sizes)
    own = plain.felt.standard_told.state_dict(prefix=TOLD)
    plain.load_state_dict(standard.state_dict() | own)
    sight = random_sight(sizes, 3)
    moved = sight._replace(oracle=sight.oracle * torch.tensor([0.05, 1.0]) + mean)
    torch.testing.assert_close(standard(moved).cognitive, plain(sight).cognitive)


def test_a_robot_may_feel_nothing(sight_size: Sizes, random_sight: Sights) -> None:
    sizes = sight_size()._replace(proprioception=0, oracle=0)
    perception, sight = build(sizes), random_sight(sizes, 2)
    assert torch.equal(perception.felt(sight), torch.zeros(2, perception.cognitive[1]))
    assert perception(sight).cognitive.isfinite().all()


def test_compression_by_hand() -> None:
    compression = Compression(2, 4, 1)
    compression.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
    first, last = compression.squeeze[0], compression.squeeze[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    with torch.no_grad():
        compression.reduce.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
        first.weight.copy_(torch.eye(4))
        last.weight.copy_(torch.eye(4))
        first.bias.zero_()
        last.bias.zero_()
        compression.out.weight.fill_(1)
    out = compression(torch.tensor([[[2.0, -1.0], [0.0, 3.0]]]))
    # z = (2, 0, 0, 1), (0, 3, 0, 0); mean (1, 1.5, 0, 0.5); weights are its logistic function
    w = torch.tensor([1.0, 1.5, 0.0, 0.5]).sigmoid()
    torch.testing.assert_close(out[0, :, 0], torch.stack([2 * w[0] + w[3], 3 * w[1]]))


def test_an_image_of_the_wrong_size_is_refused(sight_size: Sizes, random_sight: Sights) -> None:
    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 2)
    for shape in ((2, 64, 64, 3), (2, 32, 48, 3), (2, 3, 32, 32), (2, 32, 32, 1)):
        sight.images["wrist"] = torch.zeros(shape, dtype=torch.uint8)
        with pytest.raises(InvalidValueError) as error:
            perception(sight)
        expected = f"image of 'wrist' is {list(shape[1:])}; allowed: 32, 32, 3"
        assert str(error.value) == expected


def test_images_that_are_no_bytes_are_refused(sight_size: Sizes, random_sight: Sights) -> None:
    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 2)
    sight.images["top"] = torch.rand(2, 32, 32, 3)
    with pytest.raises(InvalidValueError, match=r"is torch.float32; allowed: .*int8"):
        perception(sight)


def test_a_camera_that_is_missing_is_named(sight_size: Sizes, random_sight: Sights) -> None:
    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 2)
    del sight.images["wrist"]
    with pytest.raises(InvalidValueError, match=r"cameras is \['top'\]; allowed: top, wrist"):
        perception(sight)


@pytest.mark.parametrize("part", ["proprioception", "objects", "oracle", "words"])
def test_parts_of_another_size_are_refused(
    part: str, sight_size: Sizes, random_sight: Sights
) -> None:
    perception = build(sizes := sight_size())
    sight = random_sight(sizes, 2)
    wrong = getattr(sight, part)
    with pytest.raises(InvalidValueError, match=f"{part} is "):
        perception(sight._replace(**{part: torch.cat([wrong, wrong], -1)}))


def test_sizes_that_cannot_work_are_refused(sight_size: Sizes) -> None:
    with pytest.raises(InvalidValueError, match="cameras is 'none'; allowed: one or more, or obj"):
        build(sight_size(cameras=(), objects=(0, 0)))
    with pytest.raises(InvalidValueError, match="heads is 5; allowed: divisors of cognitive = 12"):
        build(sight_size(), heads=5)
