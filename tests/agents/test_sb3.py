"""MemoryPPO under SB3's own callbacks, loggers and helpers, all of them unchanged."""

import copy
import csv
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.results_plotter import load_results, ts2xy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    unwrap_vec_normalize,
)

from engram.agents.sb3 import MemoryPPO
from engram.agents.training import DivergedError
from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, HCAM

Env = type[gymnasium.Env]
SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 3, "device": "cpu"}
SMALL["policy_kwargs"] = {"width": 8}


def model_for(env: Any, memory: Any = GRU, **changed: Any) -> MemoryPPO:
    return MemoryPPO(memory, env, **{**SMALL, **changed})


def weights(model: MemoryPPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.policy.parameters()])


class Diary(callbacks.BaseCallback):
    """Writes down what a callback is told; stops when its time has come."""

    def __init__(self, stop_at: int = 10**9):
        super().__init__()
        self.stop_at = stop_at
        self.told: list[Any] = []

    def _on_training_start(self) -> None:
        self.told.append("training starts")

    def _on_rollout_start(self) -> None:
        self.told.append("rollout starts")

    def _on_step(self) -> bool:
        seen = self.locals
        assert torch.is_grad_enabled()
        assert seen["new_obs"].shape == seen["rewards"].shape == seen["dones"].shape == (2,)
        assert len(seen["infos"]) == 2 and seen["actions"].shape == (2,)
        assert self.training_env is self.model.get_env()
        self.told.append(self.num_timesteps)
        return self.n_calls < self.stop_at

    def _on_rollout_end(self) -> None:
        self.told.append("rollout ends")

    def _on_training_end(self) -> None:
        self.told.append("training ends")


def test_callbacks_hear_what_sb3_tells_them(cue: Env):
    model, diary = model_for(DummyVecEnv([cue, cue])), Diary()
    assert isinstance(model, BaseAlgorithm) and isinstance(model, OnPolicyAlgorithm)
    assert model.learn(17, callback=[diary]) is model
    steps = [*range(2, 17, 2)], [*range(18, 33, 2)]
    rollouts = [["rollout starts", *s, "rollout ends"] for s in steps]
    assert diary.told == ["training starts", *rollouts[0], *rollouts[1], "training ends"]
    assert model.num_timesteps == 32 and model._n_updates == 4


def test_a_function_may_be_the_callback_and_stop_at_once(cue: Env):
    model = model_for(DummyVecEnv([cue, cue]))
    model.learn(100, callback=lambda told, _: told["self"].num_timesteps < 6)
    assert model.num_timesteps == 6


def begins_anew(model: MemoryPPO) -> bool:
    """Whether the latest rollout began with first observations, and said so."""
    inputs = model.rollout.inputs
    return bool((inputs.observation[0] < 2).all() and inputs.start[0].all())


def test_a_rollout_cut_short_is_dropped_and_the_next_begins_anew(cue: Env):
    stopped, diary = model_for(DummyVecEnv([cue, cue])).learn(16), Diary(stop_at=3)
    before = weights(stopped)
    stopped.learn(100, callback=diary, reset_num_timesteps=False)
    assert diary.told == ["training starts", "rollout starts", 18, 20, 22, "training ends"]
    assert stopped.num_timesteps == 22 and torch.equal(weights(stopped), before)
    # The worlds stand in the middle of episodes: going on starts new ones, remembering nothing.
    stopped.learn(1, reset_num_timesteps=False)
    assert stopped.num_timesteps == 22 + 16 and begins_anew(stopped)
    assert not torch.equal(weights(stopped), before)


def test_after_an_error_in_a_callback_episodes_begin_anew(cue: Env):
    model = model_for(DummyVecEnv([cue, cue])).learn(16)

    def fail(told: dict[str, Any], _: dict[str, Any]) -> bool:
        raise KeyError("of the callback")

    with pytest.raises(KeyError, match="of the callback"):
        model.learn(16, callback=fail, reset_num_timesteps=False)
    model.learn(16, reset_num_timesteps=False)
    assert begins_anew(model)


def test_learning_in_two_calls_is_learning_in_one(cue: Env):
    once, twice = (model_for(make_vec_env(cue, 2, seed=5), HCAM) for _ in range(2))
    once.learn(64)
    twice.learn(32)
    twice.learn(32, reset_num_timesteps=False)
    assert torch.equal(weights(once), weights(twice))
    # An episode of five steps was under way when the second call began.
    assert not twice.rollout.inputs.start[0].any()
    twice.learn(16)
    assert twice.num_timesteps == 16 and begins_anew(twice)


def test_equal_seeds_learn_the_same_and_others_do_not(cue: Env):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))  # nothing may hang on the global generator
        model = model_for(make_vec_env(cue, 2), seed=seed)
        results.append(weights(model.learn(32)))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_without_a_seed_the_global_generator_decides(cue: Env):
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return weights(model_for(DummyVecEnv([cue, cue]), seed=None))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_watching_changes_nothing(cue: Env):
    watched, other = (model_for(make_vec_env(cue, 2, seed=5)) for _ in range(2))
    evaluation = callbacks.EvalCallback(
        make_vec_env(cue, 3, seed=9), eval_freq=3, deterministic=False, verbose=0
    )
    watched.learn(64, callback=evaluation)
    other.learn(64)
    assert evaluation.n_calls == 32 and np.isfinite(evaluation.last_mean_reward)
    assert torch.equal(weights(watched), weights(other))


@pytest.mark.parametrize("episodes, worlds", [(5, 1), (7, 3)])
def test_evaluate_policy_counts_a_remembered_cue(cue: Env, episodes: int, worlds: int):
    model = model_for(make_vec_env(cue, 2))
    env = make_vec_env(cue, worlds, seed=1)
    for agent in (model, model.policy):
        mean, deviation = evaluate_policy(agent, env, n_eval_episodes=episodes)
        assert 0 <= mean <= 1 and deviation >= 0
    told: list[Any] = []
    evaluate_policy(model, env, callback=lambda seen, _: told.append(seen["states"]))
    assert len(told[-1].action) == worlds


def test_evaluation_saves_the_best_and_stops_at_a_threshold(cue: Env, tmp_path: Path):
    reached = callbacks.StopTrainingOnRewardThreshold(reward_threshold=-1.0, verbose=0)
    evaluation = callbacks.EvalCallback(
        make_vec_env(cue, 2, seed=2),
        callback_on_new_best=reached,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path),
        eval_freq=5,
        verbose=0,
    )
    model = model_for(make_vec_env(cue, 2)).learn(1000, callback=evaluation)
    assert model.num_timesteps == 10
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [10]
    best = MemoryPPO.load(tmp_path / "best" / "best_model", device="cpu")
    assert torch.equal(weights(best), weights(model))


def test_checkpoints_are_written_on_the_way(cue: Env, tmp_path: Path):
    keep = callbacks.CheckpointCallback(save_freq=6, save_path=str(tmp_path), name_prefix="m")
    stop = callbacks.StopTrainingOnMaxEpisodes(max_episodes=4, verbose=0)
    every = callbacks.CallbackList([keep, stop])
    model = model_for(make_vec_env(cue, 2)).learn(10_000, callback=every)
    assert model.num_timesteps == 40  # four episodes of five steps in each of two worlds
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"m_{steps}_steps.zip" for steps in (12, 24, 36)}
    loaded = MemoryPPO.load(tmp_path / "m_24_steps", device="cpu")
    assert loaded.num_timesteps == 24


def test_losses_and_returns_are_logged_under_sb3s_names(cue: Env, tmp_path: Path):
    model = model_for(make_vec_env(cue, 2, monitor_dir=str(tmp_path)), ent_coef=0.1)
    model.set_logger(configure(str(tmp_path / "log"), ["csv", "json"]))
    model.learn(96)
    model.logger.close()
    model.env.close()  # type: ignore[union-attr]
    with (tmp_path / "log" / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    last = {name: float(value) for name, value in rows[-1].items() if name and value}
    names = "loss value_loss policy_gradient_loss entropy_loss approx_kl explained_variance"
    train = {f"train/{name}" for name in names.split()}
    train |= {"train/learning_rate", "train/clip_range", "train/n_updates", "train/gradient_norm"}
    rest = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/iterations"}
    assert last.keys() == train | rest | {"time/time_elapsed", "time/total_timesteps"}
    assert last["rollout/ep_len_mean"] == 5 and 0 <= last["rollout/ep_rew_mean"] <= 1
    assert last["train/n_updates"] == 10 and -0.7 < last["train/entropy_loss"] < -0.5
    total = last["train/policy_gradient_loss"] + 0.5 * last["train/value_loss"]
    assert last["train/loss"] == pytest.approx(total + 0.1 * last["train/entropy_loss"], abs=1e-5)
    # Monitor wrote every episode down.
    results = load_results(str(tmp_path))
    x, y = ts2xy(results, "timesteps")
    assert len(y) == len(x) == 18 and (results["l"] == 5).all() and set(y) <= {0.0, 1.0}


def test_tensorboard_gets_its_events(cue: Env, tmp_path: Path):
    model = model_for(make_vec_env(cue, 2), tensorboard_log=tmp_path)
    model.learn(32, tb_log_name="run").logger.close()
    assert list((tmp_path / "run_1").glob("events.out.tfevents*"))


def test_the_optimiser_follows_the_schedules(drift: Env):
    rates, clips = [], []

    class Watch(callbacks.BaseCallback):
        def _on_rollout_start(self) -> None:
            model = self.model
            assert isinstance(model, MemoryPPO)
            rates.append(model.learner.optimizer.param_groups[0]["lr"])
            clips.append(model.learner.settings.clip)

        def _on_step(self) -> bool:
            return True

    model = model_for(
        DummyVecEnv([drift, drift]), learning_rate="lin_8e-3", clip_range=lambda left: 0.1 + left
    )
    model.learn(40, callback=Watch())  # 48 steps are taken: SB3 counts less than nothing left
    assert model._current_progress_remaining == pytest.approx(-0.2)
    after = [*rates[1:], model.learner.optimizer.param_groups[0]["lr"]]
    assert after == pytest.approx([8e-3 * 0.6, 8e-3 * 0.2, 0.0])
    assert [*clips[1:], model.learner.settings.clip] == pytest.approx([0.7, 0.3, 0.1])


def test_a_callback_may_change_settings_on_the_way(cue: Env):
    class Cool(callbacks.BaseCallback):
        def _on_step(self) -> bool:
            self.model.ent_coef = 0.25  # type: ignore[attr-defined]
            return True

    model = model_for(make_vec_env(cue, 2), ent_coef=0.5).learn(16, callback=Cool())
    assert model.learner.settings.entropy == 0.25


def test_one_environment_and_an_id_are_wrapped_as_sb3_does(cue: Env):
    for env in (cue(), "CartPole-v1"):
        model = model_for(env, batch_size=8)
        inner = model.get_env()
        assert isinstance(inner, DummyVecEnv) and isinstance(inner.envs[0], Monitor)
        assert model.learn(8).num_timesteps == 8


def test_images_are_seen_by_model_and_evaluation_alike():
    class Room(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (36, 40, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
            super().reset(seed=seed)
            return self.np_random.integers(0, 256, (36, 40, 3), np.uint8), {}

        def step(self, action: Any):
            seen = self.np_random.integers(0, 256, (36, 40, 3), np.uint8)
            return seen, 1.0, False, bool(self.np_random.integers(3) == 0), {}

    model = model_for(DummyVecEnv([Room, Room])).learn(16)
    assert model.observation_space.shape == (3, 36, 40)
    assert model.rollout.inputs.observation.shape == (8, 2, 36, 40, 3)
    mean, _ = evaluate_policy(model, DummyVecEnv([lambda: Monitor(Room())]), n_eval_episodes=2)
    assert mean >= 1


def test_normalised_environments_are_kept_in_step(drift: Env):
    def make(training: bool) -> VecNormalize:
        return VecNormalize(VecMonitor(DummyVecEnv([drift, drift])), training=training)

    evaluation = callbacks.EvalCallback(peer := make(False), eval_freq=8, verbose=0)
    model = model_for(make(True))
    model.learn(32, callback=evaluation)
    mine = model.get_vec_normalize_env()
    assert mine is not None and mine is unwrap_vec_normalize(model.env)  # type: ignore[arg-type]
    assert np.array_equal(peer.obs_rms.mean, mine.obs_rms.mean)  # type: ignore[union-attr]
    # Rewards that are learned from are scaled; what Monitor saw is not.
    assert evaluation.last_mean_reward > 0 and model.ep_info_buffer


def test_frames_may_be_stacked(drift: Env):
    env = VecFrameStack(DummyVecEnv([drift, drift]), 3)
    model = model_for(env).learn(16)
    assert model.rollout.inputs.observation.shape == (8, 2, 6)


def test_set_env_begins_new_episodes_there(cue: Env):
    model = model_for(make_vec_env(cue, 2)).learn(16)
    model.set_env(other := make_vec_env(cue, 2))
    assert model.get_env() is other
    model.learn(16, reset_num_timesteps=False)
    assert model.worlds.vec_env is other and model.rollout.inputs.start[0].all()
    with pytest.raises(InvalidValueError, match="force_reset is False"):
        model.set_env(other, force_reset=False)
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env(cue, 3))


def test_episodes_are_reset_once_where_early_resets_are_forbidden(cue: Env):
    model = model_for(DummyVecEnv([lambda: Monitor(cue(), allow_early_resets=False)] * 2))
    assert model.learn(16).num_timesteps == 16


def test_parameters_can_be_taken_and_given(cue: Env):
    giver, taker = model_for(make_vec_env(cue, 2), seed=1), model_for(make_vec_env(cue, 2))
    giver.learn(32)
    parameters = giver.get_parameters()
    assert parameters.keys() == {"policy", "policy.optimizer"}
    taker.set_parameters(parameters)
    assert torch.equal(weights(giver), weights(taker))
    moments = taker.learner.optimizer.state_dict()["state"][0]
    assert moments["step"] == 4 and moments["exp_avg_sq"].any()
    with pytest.raises(ValueError, match="Names of parameters"):
        taker.set_parameters({"policy": parameters["policy"]})


def test_seeding_again_repeats_what_was_drawn(cue: Env):
    model, results = model_for(make_vec_env(cue, 2)), []
    start = copy.deepcopy(model.get_parameters())
    for seed in (11, 11, 12):
        model.set_parameters(copy.deepcopy(start))
        model.set_random_seed(seed)
        drawn, _ = model.predict(np.zeros(64, dtype=np.int64))
        model.learn(32)
        results.append(np.concatenate([drawn, weights(model).numpy()]))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_loss_that_is_not_finite_ends_the_run(drift: Env):
    class Broken(drift):  # type: ignore[misc,valid-type]
        def step(self, action: Any):
            seen, _, ended, late, info = super().step(action)
            return seen, float("nan"), ended, late, info

    with pytest.raises(DivergedError, match=r"policy_loss is nan after 16 steps; allowed: finite"):
        model_for(DummyVecEnv([Broken, Broken])).learn(16)


def test_running_statistics_and_auxiliary_losses_are_options(drift: Env, tmp_path: Path):
    settings = {"width": 8, "normalize": True, "auxiliary": {"recall": 0.1}}
    model = model_for(DummyVecEnv([drift, drift]), policy_kwargs=settings)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(16)
    assert model.policy.actor_critic.encoder.norm.count == 16  # type: ignore[union-attr]
    model.learn(16).logger.close()
    assert "train/recall" in (tmp_path / "progress.json").read_text()
