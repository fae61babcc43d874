"""Encoders: every observation space, any leading axes, and running statistics."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.policies.encoders import RunningNorm, make_encoder, update_norms

WIDTH = 6
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5),
    "discrete_from_two": spaces.Discrete(3, start=2),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_discrete_from_one": spaces.MultiDiscrete([3, 2], start=[1, -2]),
    "multi_binary": spaces.MultiBinary(7),
    "multi_binary_grid": spaces.MultiBinary([2, 3]),
    "number": spaces.Box(-1, 1, ()),
    "one_number": spaces.Box(-1, 1, (1,)),
    "vector": spaces.Box(-1, 1, (4,)),
    "column": spaces.Box(-1, 1, (3, 1)),
    "row": spaces.Box(-1, 1, (1, 3)),
    "ones": spaces.Box(-1, 1, (1, 1, 1)),
    "doubles": spaces.Box(-1, 1, (4,), np.float64),
    "bytes": spaces.Box(0, 255, (9,), np.uint8),
    "symbols": spaces.Box(0, np.array([3, 8], np.uint8)[:, None, None].repeat(7, 1).repeat(9, 2),
                          dtype=np.uint8),
    "image": spaces.Box(0, 255, (36, 40, 3), np.uint8),
    "dict": spaces.Dict({"card": spaces.Discrete(3), "state": spaces.Box(-1, 1, (1, 2))}),
    "awkward_names": spaces.Dict(
        {"type": spaces.Discrete(3), "robot.arm": spaces.Box(-1, 1, (2,)), "": spaces.Discrete(2)}
    ),
    "nested": spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(3)})}),
}  # fmt: skip


def tensors(sample: Any) -> Any:
    if isinstance(sample, dict):
        return {name: tensors(part) for name, part in sample.items()}
    return torch.as_tensor(np.asarray(sample))


def reshape(x: Any, *lead: int) -> Any:
    """Split the leading axis."""
    if isinstance(x, dict):
        return {name: reshape(part, *lead) for name, part in x.items()}
    return x.unflatten(0, lead)


def batch(space: spaces.Space[Any], count: int) -> Any:
    many = batch_space(space, count)
    many.seed(0)
    return tensors(many.sample())


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("lead", [(3, 2), (3, 1), (1, 1)], ids=str)
def test_every_space_is_encoded_whatever_the_leading_axes(name: str, lead: tuple[int, int]) -> None:
    encoder = make_encoder(SPACES[name], WIDTH)
    x = batch(SPACES[name], lead[0] * lead[1])
    one_by_one = encoder(x)
    assert one_by_one.shape == (lead[0] * lead[1], WIDTH)
    torch.testing.assert_close(encoder(reshape(x, *lead)), one_by_one.unflatten(0, lead))


@pytest.mark.parametrize("name", SPACES)
def test_every_parameter_of_an_encoder_is_used(name: str) -> None:
    encoder = make_encoder(SPACES[name], WIDTH)
    encoder(batch(SPACES[name], 5)).square().sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize("name", ["discrete", "discrete_from_two"])
def test_every_integer_has_a_code_of_its_own(name: str) -> None:
    space = SPACES[name]
    assert isinstance(space, spaces.Discrete)
    codes = make_encoder(space, WIDTH)(torch.arange(space.n) + space.start)
    assert len(codes.unique(dim=0)) == space.n


@pytest.mark.parametrize("name", ["multi_discrete", "multi_discrete_from_one"])
def test_every_combination_of_integers_has_a_code_of_its_own(name: str) -> None:
    space = SPACES[name]
    assert isinstance(space, spaces.MultiDiscrete)
    every = torch.cartesian_prod(*(torch.arange(int(n)) for n in space.nvec))
    codes = make_encoder(space, WIDTH)(every + torch.as_tensor(space.start))
    assert len(codes.unique(dim=0)) == len(every)


def test_planes_of_symbols_do_not_share_codes() -> None:
    space = SPACES["symbols"]
    encoder = make_encoder(space, WIDTH)
    first, second = torch.zeros(2, 1, 2, 7, 9, dtype=torch.uint8)
    first[0, 0], second[0, 1] = 1, 1
    assert not torch.allclose(encoder(first), encoder(second))


def test_an_image_is_scaled_and_its_channels_are_last() -> None:
    encoder = make_encoder(SPACES["image"], WIDTH)
    trunk: Any = encoder.trunk
    seen: list[Tensor] = []
    trunk[0].register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    image = torch.zeros(1, 36, 40, 3, dtype=torch.uint8)
    image[0, :, :, 2] = 255
    encoder(image)
    assert seen[0].shape == (1, 3, 36, 40)
    assert seen[0].amax((0, 2, 3)).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
        spaces.Box(0, 255, (20, 20, 3), np.uint8),
        spaces.Box(0, 5, (2, 5, 5), np.uint8),
        spaces.Dict({}),
    ],
    ids=lambda space: type(space).__name__,
)
def test_a_space_without_encoder_is_refused_by_name(space: spaces.Space[Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"(?s)observation s.* is .*; allowed: "):
        make_encoder(space, WIDTH)


def test_running_statistics_are_those_of_all_rows_together() -> None:
    norm = RunningNorm(3)
    parts = [torch.randn(n, 2, 3) * n + n for n in (1, 5, 30)]
    for part in parts:
        norm.update(part)
    rows = torch.cat([part.flatten(0, 1) for part in parts])
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(norm(rows), expected.clamp(-10, 10), atol=1e-5, rtol=1e-4)


def test_running_statistics_survive_a_mean_far_from_zero() -> None:
    """A difference of squares would lose every digit of this deviation."""
    norm = RunningNorm(1)
    x = 1e4 + torch.randn(2000, 1)
    for rows in x.split(100):
        norm.update(rows)
    assert norm(x).std() == pytest.approx(1, abs=0.01)


def test_norms_pass_numbers_through_until_updated_and_clip_at_ten() -> None:
    norm = RunningNorm(1)
    x = torch.tensor([[-3.0], [5.0]])
    assert torch.equal(norm(x), x)
    norm.update(torch.randn(100, 1))
    assert norm(torch.tensor([[1e9]])).item() == 10


def test_statistics_change_in_update_only_and_for_vectors_only() -> None:
    space = spaces.Dict({"card": spaces.Discrete(3), "state": spaces.Box(-9, 9, (1, 2))})
    encoder = make_encoder(space, WIDTH, normalize=True)
    x = reshape(batch(space, 8), 4, 2)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder(x)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    update_norms(encoder, x)
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert len(changed) == 3
    assert all(".norm." in name for name in changed)
