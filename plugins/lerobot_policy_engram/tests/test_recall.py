"""A policy with a memory learns, and then does, what the present frame does not tell."""

from typing import Any

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from torch import Tensor

from lerobot_policy_engram import MemoryConfig, attach_memory

CUE, STATE = "observation.environment_state", "observation.state"
STEPS = 6


def episodes(count: int) -> tuple[Tensor, Tensor]:
    """A cue of −1 or 1 in the third frame alone, which is the right action in the last."""
    cue = torch.randint(2, (count,)) * 2.0 - 1
    seen = torch.zeros(count, STEPS, 1)
    seen[:, 2, 0] = cue
    return seen, cue


def policy_without_memory() -> Any:
    feature = PolicyFeature
    config = ACTConfig(
        input_features={
            CUE: feature(FeatureType.ENV, (1,)),
            STATE: feature(FeatureType.STATE, (1,)),
        },
        output_features={"action": feature(FeatureType.ACTION, (1,))},
        chunk_size=5,
        n_action_steps=5,
        dim_model=16,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        use_vae=False,
        latent_dim=4,
        dropout=0.0,
        device="cpu",
    )
    return ACTPolicy(config)


def trained(name: str, settings: dict[str, Any]) -> tuple[Any, float]:
    """The policy after 150 steps, and its loss over the last twenty."""
    memory = MemoryConfig(name, settings, width=16, window=STEPS)
    policy = attach_memory(policy_without_memory(), memory).train()
    optimizer = torch.optim.Adam(policy.get_optim_params(), lr=5e-3)
    losses = []
    for _ in range(150):
        seen, cue = episodes(32)
        batch = {
            CUE: seen,
            STATE: torch.zeros(32, STEPS, 1),
            "action": cue[:, None, None].expand(32, 5, 1),
            "action_is_pad": torch.zeros(32, 5, dtype=torch.bool),
        }
        for key in (CUE, STATE):
            batch[f"{key}_is_pad"] = torch.zeros(32, STEPS, dtype=torch.bool)
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return policy, sum(losses[-20:]) / 20


@pytest.mark.parametrize("name, settings", [("gru", {}), ("window", {"layer": {"window": 8}})])
def test_a_memory_recalls_the_cue_while_a_plan_is_executed(name: str, settings: dict[str, Any]):
    policy, loss = trained(name, settings)
    assert loss < 0.2
    seen, cue = episodes(64)
    planned = []
    for step in range(STEPS):
        action = policy.select_action({CUE: seen[:, step], STATE: torch.zeros(64, 1)})
        planned.append(len(policy.action_queue()))
    assert planned == [4, 3, 2, 1, 0, 4]  # the cue is seen while three planned actions are left
    assert (action[:, 0].sign() == cue).float().mean() > 0.95


def test_without_memory_the_cue_is_not_to_be_had():
    _, loss = trained("none", {})
    assert loss > 0.9
