"""PPO with any memory, behind the surface of a Stable-Baselines3 algorithm."""

import inspect
from pathlib import Path
from typing import Any

import torch

from engram.kernels.errors import MissingPackageError

try:
    import stable_baselines3  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingPackageError("stable_baselines3", "sb3") from error

from engram.agents.sb3_algorithm import Env
from engram.agents.sb3_saving import SavedAlgorithm
from engram.agents.sb3_settings import refuse


class MemoryPPO(SavedAlgorithm):
    """PPO over sequences (`engram.agents.ppo.PPO`) for SB3's environments, callbacks and loggers.

    Where SB3 has a policy, this has a memory; names of settings and their defaults are those of
    sb3-contrib's RecurrentPPO. Encoder and heads follow the spaces: observations Box, Discrete,
    MultiDiscrete, MultiBinary or a Dict of these; actions Discrete, MultiDiscrete, MultiBinary or
    a bounded Box, whose actions are squashed and not clipped. The previous action is an input, the
    previous reward is not.

    What `predict` returns as its state belongs to the next call; SB3's `evaluate_policy` and
    `EvalCallback` hand it on. To evaluate in the training environment leaves its episodes to
    others: begin new ones afterwards (`learn` with `reset_num_timesteps=True`, or `set_env`).

    Policy and value share encoder and memory, so that large returns drown the policy's gradient:
    scale rewards, as `VecNormalize(env, norm_obs=False)` does. Memories of attention learn better
    as layers: `MemoryPPO(stack, env, memory_kwargs={"layer": HCAM})`, or
    `MemoryPPO(partial(stack, layer=partial(HCAM, heads=2)), env)`.

    Deviations from SB3's PPO: losses are logged as means over all minibatches of all epochs;
    advantages are divided by their population deviation; a schedule sees no progress below 0;
    `clip_fraction` is not logged.

    Args:
        memory: A class of `engram.memory.sequence`, or a callable of the width that returns a
            memory, such as `stack`.
        env: An SB3 VecEnv, a Gymnasium environment, or the id of one.
        memory_kwargs: Keywords of `memory`.
        learning_rate: A number, `"lin_NUMBER"`, or a callable of the share of the budget that
            remains.
        n_steps: Steps per environment between updates.
        batch_size: Steps in a minibatch; it divides `n_steps * n_envs`.
        n_epochs: Passes over a rollout.
        gamma: Discount.
        gae_lambda: λ of the advantage estimate.
        clip_range: As `learning_rate`.
        normalize_advantage: Whether advantages are normalised in each minibatch.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the squared error of the values.
        max_grad_norm: Largest norm of the gradient.
        chunk: Steps that gradients flow through; it divides `n_steps` and `batch_size`. The
            greatest such number up to 128 unless given.
        stats_window_size: Episodes over which `rollout/ep_rew_mean` is taken.
        tensorboard_log: Folder of TensorBoard events.
        policy_kwargs: `width` or `lstm_hidden_size` (features of a code), `normalize` (whether
            vectors are scaled by running statistics), `auxiliary` (weights of auxiliary losses).
        verbose: 1 prints what SB3 prints.
        seed: Of everything random, the environment included.
        device: Of policy and rollouts.
        others: Settings of SB3's PPO that have no meaning here, at the value that says so.

    Raises:
        InvalidValueError: If a setting cannot work or has no meaning here.
        UnsupportedSpaceError: If no head fits the action space.
    """

    def __init__(
        self,
        memory: Any,
        env: Env | None,
        *,
        memory_kwargs: dict[str, Any] | None = None,
        learning_rate: Any = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: Any = 0.2,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        chunk: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | Path | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **others: Any,
    ):
        refuse(others, [n for n in inspect.signature(MemoryPPO).parameters if n[0] != "_"][:-1])
        super().__init__(
            memory,
            env,
            memory_kwargs=memory_kwargs,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            chunk=chunk,
            stats_window_size=stats_window_size,
            tensorboard_log=None if tensorboard_log is None else str(tensorboard_log),
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 1,
        tb_log_name: str = "MemoryPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "MemoryPPO":
        """Act and learn for at least `total_timesteps` steps, or until a callback says no.

        Args:
            total_timesteps: Environment steps, of all worlds together.
            callback: One of SB3's callbacks, a list of them, or a function.
            log_interval: Updates between two lines of the log.
            tb_log_name: Of the run among TensorBoard's.
            reset_num_timesteps: Whether steps are counted from 0 and episodes begin anew; if not,
                both go on where the last `learn` left them.
            progress_bar: Whether to draw one (needs tqdm).
        """
        super().learn(
            total_timesteps,
            callback,
            log_interval,  # type: ignore[arg-type]
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )
        return self
