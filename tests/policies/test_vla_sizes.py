"""The policy at every size, built without memory for its weights and counted by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engram.launch.clone_build import build_vla
from engram.launch.clone_config import compose_clone
from engram.memory.sequence.bank_presets import memoryvla
from engram.policies.action_expert import ActionExpert
from engram.policies.perception import Compression, SightSize
from engram.policies.vla import VLA


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def linear(d_in: int, d_out: int) -> int:
    return (d_in + 1) * d_out


@pytest.mark.parametrize("features, published", [(4096, 423.7e6), (256, 1.66e6)])
def test_the_published_banks_have_the_published_sizes(features: int, published: float) -> None:
    d = features
    with torch.device("meta"):
        bank = memoryvla((0, d), (1, d))
    block = 2 * linear(d, d) + d * d  # queries and values; keys have no bias
    block += linear(d, 4 * d) + linear(4 * d, d) + 2 * 2 * d  # feed-forward, two norms
    time = linear(d // 4, d) + d * d  # no bias either, as it is added to keys
    gate = linear(2 * d, d)
    assert count(bank) == 2 * block + time + gate
    assert count(bank) == pytest.approx(published, rel=1e-3)


def test_the_compression_has_the_published_size() -> None:
    with torch.device("meta"):
        compression = Compression(2176, 512, 256)
    # 2176 x 512 and 512 x 256 without bias, the squeeze of 512 -> 32 -> 512 between them.
    published = 2176 * 512 + 512 * 256 + linear(512, 32) + linear(32, 512)
    norms = 2 * (2176 + 256)  # ours alone
    assert published == 1_278_496 and count(compression) == published + norms


@pytest.mark.parametrize(
    "width, depth, heads, without, whole",
    [(384, 6, 4, 10.6e6, 14.2e6), (1024, 24, 16, 302e6, 403e6)],
)
def test_the_blocks_of_the_expert_have_the_published_sizes(
    width: int, depth: int, heads: int, without: float, whole: float
) -> None:
    with torch.device("meta"):
        expert = ActionExpert(
            7, 16, perceptual=256, cognitive=4096, width=width, depth=depth, heads=heads
        )
    attention = 4 * linear(width, width) + 2 * width  # with its norm
    mlp = linear(width, 4 * width) + linear(4 * width, width) + 2 * width
    assert depth * (attention + mlp) == pytest.approx(without, rel=6e-3)
    assert count(expert.blocks) == depth * (2 * attention + mlp)
    assert count(expert.blocks) == pytest.approx(whole, rel=6e-3)


def built(*arguments: str) -> VLA:
    """The policy that `engram clone` builds for one camera, without its weights."""
    (tree,) = compose_clone(list(arguments)).trees.values()
    scale = torch.full((4,), -1.0), torch.ones(4)
    with torch.device("meta"):
        return build_vla(tree, SightSize(("top",), 64, 9, 20, 24, (0, 0), 0), scale, 0)


@pytest.mark.parametrize(
    "size, least, most",
    [("small", 3.0e6, 3.6e6), ("base", 120e6, 160e6), ("large", 1.0e9, 1.2e9)],
)
def test_sizes_are_one_key(size: str, least: float, most: float) -> None:
    policy = built(f"size={size}", "memory=bank")
    assert least < count(policy) < most
    widths = {"small": (64, 192), "base": (128, 768), "large": (256, 4096)}
    perception = policy.perception
    assert (perception.perceptual[1], perception.cognitive[1]) == widths[size]


def test_typed_keys_go_before_those_of_a_size() -> None:
    policy = built("size=base", "memory=none", "policy.expert.depth=1")
    assert len(policy.expert.blocks) == 1 and policy.expert.width == 768


def test_every_size_is_tested() -> None:
    import engram.configs

    (folder,) = engram.configs.__path__
    assert {p.stem for p in Path(folder, "size").glob("*.yaml")} == {"small", "base", "large"}
