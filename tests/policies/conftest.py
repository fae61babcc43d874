"""What tests of the vision-language-action policy share; `engram` must not be imported here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

LOW, HIGH = [-1.0, -0.5, 0.0], [1.0, 0.5, 2.0]
"""Quantiles of the actions of `small_vla`."""


def _sizes(**changes: Any) -> Any:
    from engram.policies.perception import SightSize

    sizes = SightSize(
        cameras=("top", "wrist"),
        image=32,
        proprioception=3,
        words=6,
        length=5,
        objects=(2, 4),
        oracle=2,
    )
    return sizes._replace(**changes)


def _sight(sizes: Any, *lead: int) -> Any:
    from engram.policies.perception import Sight

    side = sizes.image
    words = torch.randint(1, sizes.words + 1, (*lead, sizes.length))
    words[..., 3:] = 0
    return Sight(
        {n: torch.randint(256, (*lead, side, side, 3), dtype=torch.uint8) for n in sizes.cameras},
        torch.randn(*lead, sizes.proprioception),
        words,
        torch.randn(*lead, *sizes.objects),
        torch.randn(*lead, sizes.oracle),
    )


def _small_vla(sizes: Any, memory: Callable[..., Any] | None = None, **settings: Any) -> Any:
    from functools import partial

    from engram.memory.sequence import Bank
    from engram.policies.action_expert import ActionExpert
    from engram.policies.action_scale import ActionScale
    from engram.policies.perception import Perception
    from engram.policies.vla import VLA

    expert = {"width": 16, "depth": 2, "heads": 2} | settings.pop("expert", {})
    perception = Perception(sizes, perceptual=8, cognitive=12, features=16, heads=2)
    memory = memory or partial(Bank, capacity=4, layers=1, heads=2, gradient_writes=None)
    return VLA(
        perception,
        memory,
        partial(ActionExpert, **expert),
        ActionScale(torch.tensor(LOW), torch.tensor(HIGH)),
        **{"chunk": 4, "execute": 2} | settings,
    )


@pytest.fixture
def sight_size() -> Callable[..., Any]:
    """Sizes of a sight with every part; keywords change some."""
    return _sizes


@pytest.fixture
def random_sight() -> Callable[..., Any]:
    """A sight of given sizes and leading axes."""
    return _sight


@pytest.fixture
def small_vla() -> Callable[..., Any]:
    """A policy of given sizes: chunks of 4 of which 2 are executed, a bank of 4 unless given."""
    return _small_vla
