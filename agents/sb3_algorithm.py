"""Acting and learning with a memory, inside SB3's loop of rollouts, callbacks and logs."""

import dataclasses
import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from engram.agents import sb3_schedules as schedules
from engram.agents.ppo import PPO, PPOSettings
from engram.agents.rollout import Collector, Rollout
from engram.agents.sb3_memory import builder
from engram.agents.sb3_policy import MemoryPolicy
from engram.agents.sb3_settings import policy_settings, ppo_settings
from engram.agents.sb3_spaces import acted
from engram.agents.sb3_worlds import VecEnvWorlds
from engram.agents.seeds import derive
from engram.agents.training import DivergedError, build_policy
from engram.envs.vector import Stream
from engram.kernels.errors import InvalidValueError

Env = gymnasium.Env | VecEnv | str


class _Stopped(Exception):
    """A callback wants no further step."""


class MemoryAlgorithm(OnPolicyAlgorithm):
    """SB3's on-policy loop around our `Collector` and `PPO`; `MemoryPPO` documents the arguments.

    A rollout that a callback (or an error) cuts short is dropped, as SB3 drops it: its steps count
    in `num_timesteps`, nothing is learned from them, and the next `learn` begins new episodes with
    an empty memory.
    """

    policy: MemoryPolicy  # type: ignore[assignment]
    rollout_buffer: None = None  # type: ignore[assignment]
    """SB3's buffer; a rollout of ours is a value."""

    def __init__(
        self,
        memory: Any,
        env: Env | None,
        *,
        memory_kwargs: dict[str, Any] | None,
        learning_rate: Any,
        n_steps: int,
        batch_size: int,
        n_epochs: int,
        gamma: float,
        gae_lambda: float,
        clip_range: Any,
        normalize_advantage: bool,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        chunk: int | None,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: torch.device | str,
        _init_setup_model: bool,
    ):
        if env is None and _init_setup_model:
            allowed = "an SB3 VecEnv, a gymnasium.Env, or the id of one"
            raise InvalidValueError("env", env, allowed)
        if torch.device("cpu" if device == "auto" else device).type == "cuda":
            if not torch.cuda.is_available():  # SB3 would go on with the CPU and not say so
                raise InvalidValueError("device", str(device), "auto, cpu (no CUDA device is here)")
        if env is not None:
            env = maybe_make_env(env, verbose)  # type: ignore[arg-type]
            acted(env.action_space)  # type: ignore[union-attr]  # refused before SB3 asserts
        self.memory, self.memory_kwargs = memory, dict(memory_kwargs or {})
        self.batch_size, self.n_epochs, self.chunk = batch_size, n_epochs, chunk
        self.clip_range, self.normalize_advantage = clip_range, normalize_advantage
        builder(memory, self.memory_kwargs)
        policy_settings(policy_kwargs or {})
        super().__init__(
            MemoryPolicy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = schedules.parse("learning_rate", self.learning_rate)

    def _setup_model(self) -> None:
        """Build the policy and its learner; the environment is not touched."""
        self._setup_lr_schedule()
        self.clip_range = schedules.parse("clip_range", self.clip_range)
        settings = self._settings()
        super().set_random_seed(self.seed)
        # Unseeded, all randomness hangs on PyTorch's global generator, as it does in SB3.
        self.run_seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        policy = build_policy(
            derive(self.run_seed, "weights"),
            lambda: MemoryPolicy(
                self.observation_space,
                self.action_space,
                builder(self.memory, self.memory_kwargs),
                **policy_settings(self.policy_kwargs),
            ),
        )
        self.policy = policy.to(self.device)  # type: ignore[assignment]  # no ActorCriticPolicy
        self.learner = PPO(self.policy.actor_critic, settings, seed=self.run_seed)
        self.policy.optimizer = self.learner.optimizer
        self.acting = torch.Generator(self.device)
        self.policy.generator = torch.Generator(self.device)
        self._seed_generators(self.run_seed)

    def _settings(self) -> PPOSettings:
        """Read the settings as they are now: schedules move them, and callbacks may."""
        remaining = self._current_progress_remaining
        return ppo_settings(
            n_envs=self.n_envs,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            chunk=self.chunk,
            n_epochs=self.n_epochs,
            learning_rate=schedules.now(self.lr_schedule, remaining),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            clip_range=schedules.now(self.clip_range, remaining),
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
            normalize_advantage=self.normalize_advantage,
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed Python, NumPy, PyTorch, the environment, and what this algorithm draws."""
        super().set_random_seed(seed)
        if seed is not None:
            self._seed_generators(seed)

    def _seed_generators(self, seed: int) -> None:
        assert self.policy.generator is not None
        self.acting.manual_seed(derive(seed, "act"))
        self.learner.generator.manual_seed(derive(seed, "learn"))
        self.policy.generator.manual_seed(derive(seed, "predict"))

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Act in another environment from now on; its episodes begin anew, and the memory.

        Args:
            env: With the same spaces and number of worlds.
            force_reset: True: what is remembered belongs to the old environment's episodes.
        """
        if not force_reset:
            raise InvalidValueError("force_reset", force_reset, "True (memory is of the old env)")
        super().set_env(env)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """Begin episodes where SB3 does: when steps are counted anew, or none are under way."""
        if self.env is None:
            raise InvalidValueError("env", None, "one given to load(path, env=...) or set_env(env)")
        anew = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if anew:
            self._begin(self.env)
        return result

    def _begin(self, env: VecEnv) -> None:
        """Take over the episodes that SB3 has just begun."""
        self.worlds = VecEnvWorlds(env)
        self.worlds.first = self._last_obs
        stream = Stream(self.worlds, device=self.device)
        self.collector = Collector(stream, self.policy.actor_critic, seed=self.run_seed)
        self.collector.generator = self.acting
        self.collector.begin(0)  # the worlds have begun: no seed reaches them

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: None, n_rollout_steps: int
    ) -> bool:
        """Act for one rollout; return whether it is complete.

        Callbacks find `actions`, `new_obs`, `rewards`, `dones` and `infos` among their `locals`;
        values and log-probabilities are not there yet.
        """
        step = 0

        def after_step(told: dict[str, Any]) -> None:
            nonlocal step
            self.num_timesteps += env.num_envs
            callback.update_locals({"self": self, "env": env, "n_steps": step, **told})
            with torch.enable_grad():  # whatever a callback does, it does as under SB3
                if not callback.on_step():
                    raise _Stopped
            self._update_info_buffer(told["infos"], told["dones"])
            self._last_obs, self._last_episode_starts = told["new_obs"], told["dones"]
            step += 1

        self.learner.settings = settings = self._settings()
        self.worlds.after_step = after_step
        callback.on_rollout_start()
        try:
            self.rollout = self.collector.collect(n_rollout_steps, chunk=settings.chunk)
        except BaseException as error:
            self._last_obs = None  # worlds have moved on and memories with them: begin anew
            if isinstance(error, _Stopped):
                return False
            raise
        callback.update_locals({"rollout": self.rollout})
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Learn from the rollout that was just collected, and record the losses.

        Raises:
            DivergedError: If a loss is not finite.
        """
        rollout: Rollout = self.rollout
        lengths = {
            name: getattr(self.learner.settings, name)  # as when the rollout began
            for name in ("rollout", "chunk", "minibatches")
        }
        settings = dataclasses.replace(self._settings(), **lengths)
        self.learner.settings = settings
        returns = self.learner.advantages(rollout) + rollout.value
        losses = self.learner.update(rollout, progress=1.0)
        for name, value in losses.items():
            if not math.isfinite(value):
                raise DivergedError(name, value, self.num_timesteps)
        self.policy.actor_critic.observe_statistics(rollout.inputs.observation)
        self._n_updates += settings.epochs
        self._record(losses, settings, rollout.value, returns)

    def _record(
        self,
        losses: dict[str, float],
        settings: PPOSettings,
        value: torch.Tensor,
        returns: torch.Tensor,
    ) -> None:
        """Log what SB3 logs, as means over all minibatches of all epochs."""
        losses = dict(losses)
        policy, squared, entropy = (
            losses.pop(name) for name in ("policy_loss", "value_loss", "entropy")
        )
        kl, _, gradient = (losses.pop(name) for name in ("kl", "ratio_error", "gradient"))
        loss = policy + settings.value * squared - settings.entropy * entropy + sum(losses.values())
        guessed, right = (x.flatten().numpy(force=True) for x in (value, returns))
        told = {
            "learning_rate": settings.final_learning_rate,
            "entropy_loss": -entropy,
            "policy_gradient_loss": policy,
            "value_loss": 2 * squared,  # SB3's is not halved
            "approx_kl": kl,
            "gradient_norm": gradient,
            "loss": loss,
            "explained_variance": float(explained_variance(guessed, right)),
            "clip_range": schedules.now(self.clip_range, self._current_progress_remaining),
            **losses,
        }
        if isinstance(self.action_space, spaces.Box):
            log_std = self.policy.actor_critic.head.log_std
            assert isinstance(log_std, torch.Tensor)
            told["std"] = float(log_std.detach().exp().mean())
        for name, number in told.items():
            self.logger.record(f"train/{name}", number)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Act; see `MemoryPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic)
