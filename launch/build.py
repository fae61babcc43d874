"""Builds environments, policies and training runs from a composed configuration."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import torch
from gymnasium.vector import VectorEnv
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate

from engram.agents.learners import Alone, Learners
from engram.agents.ppo import PPOSettings
from engram.agents.rollout import Acting, Collector
from engram.agents.seeds import derive
from engram.agents.training import Training, build_policy
from engram.agents.workers import Workers
from engram.envs.vector import Stream
from engram.kernels.errors import EngramError, one_line
from engram.launch.config import UsageError, ray_settings
from engram.policies import ActorCritic

EVALUATION_SEED = 1_000_003
"""Added to a run's seed for its evaluation: no training seed comes near it."""

_WRONG_SETTINGS = (TypeError, ValueError, RuntimeError, ImportError, gymnasium.error.Error)
"""What constructors raise on values that they cannot take, or packages that are missing."""


def build_env(
    tree: dict[str, Any], *, num_envs: int, device: torch.device, seed: int, evaluation: bool
) -> VectorEnv[Any, Any, Any]:
    """Build the environment; where it has splits, evaluation gets the one of its own."""
    settings = dict(tree["env"])
    if evaluation and "split" in settings:
        settings["split"] = "evaluation"
    accepted = inspect.signature(get_class(settings["_target_"])).parameters
    if "device" in accepted:
        settings["device"] = str(device)
    return instantiate_plainly(settings, num_envs=num_envs, seed=seed)


def build_stream(
    tree: dict[str, Any], *, num_envs: int, device: torch.device, seed: int, evaluation: bool
) -> Stream:
    """Build the environment and the view of it that policies act on."""
    env = build_env(tree, num_envs=num_envs, device=device, seed=seed, evaluation=evaluation)
    return Stream(env, device=device)


def build_agent(tree: dict[str, Any], stream: Stream, seed: int) -> ActorCritic:
    """Build the policy on the stream's device, with the initial weights of its seed."""
    memory = instantiate_plainly(tree["memory"])

    def make() -> ActorCritic:
        return ActorCritic(
            stream.env.single_observation_space,
            stream.env.single_action_space,
            memory,
            **tree["policy"],
        )

    with plain_errors(tree["memory"]["_target_"]):
        return build_policy(seed, make).to(stream.device)


def build_settings(tree: dict[str, Any]) -> PPOSettings:
    """Build the settings of PPO."""
    settings = instantiate_plainly(tree["agent"])
    assert isinstance(settings, PPOSettings)
    return settings


def build_training(
    tree: dict[str, Any],
    *,
    device: torch.device,
    seed: int,
    budget: int,
    learners: Learners | None = None,
) -> Training:
    """Build a run at its first step; of several learners, the share of this one.

    With workers, the environments are theirs, on the host, and Ray must have been joined.
    """
    settings = build_settings(tree)
    learners = learners or Alone()
    # One learner has the seeds of a run that knows of no others.
    mine = seed if learners.count == 1 else derive(seed, f"learner {learners.rank}")
    num_envs = tree["num_envs"] // learners.count
    ray = ray_settings(tree)
    if not ray.workers:
        stream = build_stream(tree, num_envs=num_envs, device=device, seed=mine, evaluation=False)
        policy = build_agent(tree, stream, seed)
        acting: Acting = Collector(stream, policy, seed=mine, bfloat16=settings.bfloat16)
    else:
        workers = ray.workers // learners.count
        make = partial(_build_share, tree, num_envs // workers, seed, mine)
        stream, policy = _build_share(tree, 1, seed, mine, 0)  # for its spaces
        stream.env.close()
        acting = Workers(
            make,
            policy.to(device),
            replace(ray, workers=workers),
            seed=mine,
            bfloat16=settings.bfloat16,
            threads=tree["threads"],
        )
    return Training(acting, policy, settings, seed=seed, budget=budget, learners=learners)


def _build_share(
    tree: dict[str, Any], num_envs: int, seed: int, worlds: int, _: int
) -> tuple[Stream, ActorCritic]:
    """Build what a worker acts with. Its collector draws the worlds anew, by a seed of its own."""
    stream = build_stream(
        tree, num_envs=num_envs, device=torch.device("cpu"), seed=worlds, evaluation=False
    )
    return stream, build_agent(tree, stream, seed)


def instantiate_plainly(settings: dict[str, Any], **more: Any) -> Any:
    """Call Hydra's instantiate, and hand on the error that says what is wrong."""
    with plain_errors(settings["_target_"]):
        return instantiate(settings, **more)


@contextmanager
def plain_errors(target: str) -> Iterator[None]:
    """Turn Hydra's wrapping of a wrong setting into one line that names it.

    Raises:
        EngramError: As raised within; a UsageError in place of what Python or Hydra raises on a
            wrong setting.
    """
    try:
        yield
    except (InstantiationException, TypeError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, EngramError):
            raise cause from None
        if isinstance(cause, _WRONG_SETTINGS):
            raise UsageError(f"{target}: {one_line(cause)}") from cause
        raise
