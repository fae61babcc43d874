"""Image encoders: every patch its token, and wrong images refused."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engram.kernels.errors import InvalidValueError
from engram.policies.vision import ConvPatches, Keypoints, TransformerPatches

ENCODERS = {
    "convolutions": ConvPatches,
    "keypoints": partial(Keypoints, tokens=4),
    "transformer": partial(TransformerPatches, depth=2, heads=2),
}
each = pytest.mark.parametrize("name", ENCODERS)


def build(name: str, size: int = 32, width: int = 16) -> nn.Module:
    return ENCODERS[name](size, width)


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8)


@each
def test_tokens_and_width_are_as_declared(name: str) -> None:
    encoder = build(name)
    assert encoder.tokens == 4 and encoder.width == 16
    assert encoder(images()).shape == (3, 4, 16)


@each
def test_every_parameter_gets_a_gradient(name: str) -> None:
    encoder = build(name)
    encoder(images(8)).sin().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


@each
def test_every_corner_of_an_image_is_seen(name: str) -> None:
    encoder, image = build(name), images(1)
    seen = encoder(image)
    for row in (0, -1):
        for column in (0, -1):
            other = image.clone()
            other[0, row, column] = 255 - other[0, row, column]
            assert not torch.equal(encoder(other), seen), (row, column)


@each
def test_images_do_not_mix(name: str) -> None:
    encoder, image = build(name), images()
    torch.testing.assert_close(encoder(image)[1:2], encoder(image[1:2]), atol=1e-5, rtol=1e-5)


@each
@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (1, 32, 48, 3), (1, 48, 32, 3)])
def test_images_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image"):
        build(name)(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvPatches(40), "image size is 40; allowed: multiples of 16"),
        (lambda: ConvPatches(0), "image size is 0; allowed: multiples of 16"),
        (lambda: ConvPatches(32, 1), "width is 1; allowed: 2 or more"),
        (lambda: Keypoints(30), "image size is 30; allowed: multiples of 4, 16 or more"),
        (lambda: Keypoints(12), "image size is 12; allowed: multiples of 4, 16 or more"),
        (lambda: Keypoints(32, 3), "width is 3; allowed: 4 or more"),
        (lambda: Keypoints(32, sharpness=0.0), "sharpness is 0.0; allowed: above 0"),
        (lambda: Keypoints(32, tokens=0), "tokens is 0; allowed: 1 or more"),
        (lambda: TransformerPatches(32, patch=5), "patch is 5; allowed: divisors of the image"),
        (lambda: TransformerPatches(0), "patch is 16; allowed: divisors of the image size 0"),
        (lambda: TransformerPatches(32, 20, heads=3), "heads is 3; allowed: divisors of width"),
    ],
)
def test_sizes_that_cannot_work_are_refused(make: object, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make()


def test_a_keypoint_says_where_it_is() -> None:
    """A white cell in the third row of eight, fifth column: (y, x) = (-3/7, 1/7) in [-1, 1]."""
    encoder = Keypoints(32, 16, tokens=1)
    with torch.no_grad():
        for parameter in (*encoder.patch.parameters(), encoder.look.bias, encoder.heat.weight):
            parameter.zero_()
        encoder.patch.weight[0] = 1.0  # bright cells: (48, 0, …), normed (√7, -1/√7, …)
        nn.init.dirac_(encoder.look.weight)
        encoder.heat.weight[0, 0] = 100.0
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[:, 8:12, 16:20] = 255
    bright = torch.full((8,), -(7**-0.5))
    bright[0] = 7**0.5
    norm = partial(F.layer_norm, normalized_shape=(8,))
    with torch.no_grad():
        there = encoder.what(F.gelu(norm(F.gelu(bright))))
        place = encoder.where(torch.tensor([-3 / 7, 1 / 7]))
        torch.testing.assert_close(
            encoder(image)[0, 0], there + place + encoder.which[0], rtol=1e-4, atol=1e-4
        )


def test_keypoints_are_sharp_and_apart_from_the_beginning() -> None:
    encoder = Keypoints(64, 64)
    image = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    image = image.repeat_interleave(4, 1).repeat_interleave(4, 2)  # each cell a colour of its own
    heat: list[torch.Tensor] = []
    encoder.heat.register_forward_hook(lambda *parts: heat.append(parts[-1].mT))
    encoder(image)
    peak, cell = heat[0].softmax(-1).max(-1)
    assert peak.mean() > 0.5 and all(len(set(row.tolist())) > 8 for row in cell)
