"""An attached memory changes nothing until it is trained, and then it learns."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import get_policy_class
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from lerobot_policy_engram import MemoryConfig, attach_memory
from lerobot_policy_engram.remembering import RememberingPolicy

MEMORIES = {
    "gru": {},
    "window": {"layer": {"window": 4}},
    "hcam": {"layer": {"chunk": 2, "capacity": 2, "top_k": 1}},
    "memo": {"segment": 2, "summary": 1, "capacity": 2},
    "memoryvla": {"capacity": 3},
}


def attached(plain: Any, name: str = "gru", **settings: Any) -> Any:
    config = MemoryConfig(name, MEMORIES[name], **{"width": 8, "window": 5, **settings})
    return attach_memory(copy.deepcopy(plain), config)


def last_frame(policy: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the data loader would give the policy without memory."""
    keys = {key for name in policy.config.input_features for key in (name, f"{name}_is_pad")}
    cut = slice(-policy.config.n_obs_steps, None) if "diffusion" in policy.name else -1
    return {key: value[:, cut] if key in keys else value for key, value in batch.items()}


def loss(policy: Any, batch: dict[str, Any]) -> Tensor:
    torch.manual_seed(1)  # of dropout, latents, noise and crops
    return policy.forward(dict(batch))[0]


@pytest.mark.parametrize("memory", MEMORIES)
def test_loss_and_gradients_are_those_of_the_policy_without_memory(
    plain: Any, memory: str, window: Callable[..., Any]
):
    policy = attached(plain, memory).train()
    batch = window(policy, [0, 2])
    theirs, ours = loss(plain, last_frame(policy, batch)), loss(policy, batch)
    assert torch.equal(ours, theirs)
    theirs.backward()
    ours.backward()
    with_memory = dict(policy.named_parameters())
    for name, parameter in plain.named_parameters():
        gradient = with_memory[name].grad
        if parameter.grad is None:
            assert gradient is None or not gradient.any()
        else:
            assert gradient is not None and torch.equal(gradient, parameter.grad), name


@pytest.mark.parametrize("memory", MEMORIES)
def test_actions_are_those_of_the_policy_without_memory(
    plain: Any, memory: str, frames: Callable[..., Any]
):
    policy = attached(plain, memory).eval()
    plain.eval()
    for _episode in range(2):
        plain.reset()
        policy.reset()
        for step in range(7):  # more than two plans of three actions
            observation = frames(policy, 2)
            actions = []
            for either in (plain, policy):
                torch.manual_seed(step)
                actions.append(either.select_action(dict(observation)))
            assert torch.equal(*actions)


def test_policy_keeps_its_weights_and_its_class(kind: str, plain: Any):
    weights = {name: parameter for name, parameter in plain.named_parameters()}
    policy = attach_memory(plain, MemoryConfig(width=8))
    assert policy is plain and isinstance(policy, (get_policy_class(kind), RememberingPolicy))
    assert isinstance(policy, get_policy_class(kind))
    assert policy.config.type == f"engram_{kind}"
    now = dict(policy.named_parameters())
    assert all(now[name] is parameter for name, parameter in weights.items())


def test_memory_learns_from_the_second_step_on_through_the_window(
    plain: Any, window: Callable[..., Any]
):
    policy = attached(plain, lr=1e-2).train()
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=1e-2)
    batch = window(policy, [0, 0])
    first, silent = batch["observation.state"], list(policy.engram.memory.parameters())
    loss(policy, batch).backward()
    assert policy.engram.reading.weight.grad.any()
    assert not any(parameter.grad.any() for parameter in silent)
    optimizer.step()
    optimizer.zero_grad()
    first.requires_grad_()
    loss(policy, batch).backward()
    assert all(parameter.grad.any() for parameter in policy.engram.parameters())
    assert first.grad[:, 0].any()  # the oldest frame of the window


@pytest.mark.parametrize("kind", ["act", "diffusion"], indirect=True)  # SmolVLA's is frozen
def test_image_encoder_learns_from_the_past_unless_told_not_to(
    plain: Any, window: Callable[..., Any]
):
    reached = []
    for through_features in (True, False):
        policy = attached(plain, through_features=through_features).train()
        torch.nn.init.ones_(policy.engram.reading.weight)
        batch = window(policy, [0, 0])
        image = batch["observation.images.top"].requires_grad_()
        loss(policy, batch).backward()
        reached.append(bool(image.grad[:, 0].any()))
        assert policy.engram.told[0].weight.grad.any()
    assert reached == [True, False]


def test_every_weight_is_optimised_once(plain: Any):
    policy = attached(plain, lr=0.5)
    groups = policy.get_optim_params()
    optimised = [id(p) for group in groups for p in group["params"]]
    assert len(optimised) == len(set(optimised))
    wanted = {id(p) for p in policy.parameters() if p.requires_grad}
    assert wanted <= set(optimised)
    (fast,) = [group for group in groups if group.get("lr") == 0.5]
    assert {id(p) for p in fast["params"]} == {id(p) for p in policy.engram.parameters()}


def test_only_known_policies_are_taken():
    class Mine(ACTPolicy):
        name = "act"

    policy = Mine.__new__(Mine)
    with pytest.raises(InvalidValueError, match="policy is 'Mine'; allowed: act, diffusion"):
        attach_memory(policy)


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_a_memory_is_attached_once(plain: Any):
    policy = attach_memory(plain)
    with pytest.raises(InvalidValueError, match="EngramACTPolicy"):
        attach_memory(policy)


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_a_refused_memory_leaves_the_policy_as_it_was(plain: Any):
    for wrong in (MemoryConfig("nothing"), MemoryConfig(window=0)):
        with pytest.raises(InvalidValueError):
            attach_memory(plain, wrong)
        assert type(plain) is ACTPolicy and plain.config.type == "act"
        assert not any(name.startswith("engram.") for name in plain.state_dict())


@pytest.mark.parametrize("kind", ["diffusion"], indirect=True)
def test_a_window_holds_what_the_policy_looks_at_itself(plain: Any):
    with pytest.raises(InvalidValueError, match=r"policy.memory.window is 1; allowed: 2 or more"):
        attached(plain, window=1)
