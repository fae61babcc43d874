"""What RLlib's PPO learns from: values with the right memory, and nothing that pads."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("ray.rllib", reason="needs the extra rllib", exc_type=ImportError)

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.connectors.learner import AddOneTsToEpisodesAndTruncate
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.evaluation.postprocessing import Postprocessing

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, HCAM
from engram.policies.rllib import CarryStates, memory_config
from engram.policies.rllib_states import states_of

# RLlib registers its environment anew for every runner.
pytestmark = pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env")

LENGTH, GAMMA, LAMBDA = 4, 0.9, 0.8


class Noise(gymnasium.Env[np.ndarray, int]):
    """Noise and random rewards, in episodes of 1 to 13 steps that end in either way."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, config: Any = None):
        del config

    def see(self) -> np.ndarray:
        return self.np_random.normal(size=3).clip(-9, 9).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 14))
        self.terminates = bool(self.np_random.random() < 0.5)
        return self.see(), {}

    def step(self, action: int):
        self.left -= 1
        done = self.left == 0
        reward = float(self.np_random.normal())
        return self.see(), reward, done and self.terminates, done and not self.terminates, {}


def config_of(learner: type | None = None) -> PPOConfig:
    config = PPOConfig().environment(Noise).debugging(seed=0)
    config.training(gamma=GAMMA, lambda_=LAMBDA)
    config.env_runners(
        num_env_runners=0, num_envs_per_env_runner=4, rollout_fragment_length=3 * LENGTH
    )
    if learner is not None:
        config.learners(learner_class=learner)
    keywords = {"chunk": 2, "capacity": 3, "heads": 2}
    return memory_config(config, HCAM, memory_kwargs=keywords, width=8, max_seq_len=LENGTH)


class Sampled:
    """A learner, episodes, and the columns that it makes of them."""

    def __init__(self, learner: type | None = None):
        config = config_of(learner)
        runner = SingleAgentEnvRunner(config=config)
        torch.manual_seed(0)
        for parameter in runner.module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        runner.sample()  # some episodes of the next sample are under way
        self.learner = config.build_learner(env=runner.env)
        self.module = self.learner.module["default_policy"]
        self.module.load_state_dict(runner.module.state_dict())
        self.episodes = runner.sample()
        self.chunks = [
            (
                states_of(e).before[0],
                np.array(e.get_observations()),
                np.array(e.get_rewards()),
                bool(e.is_terminated),
            )
            for e in self.episodes
        ]
        self.columns = self.learner._learner_connector(
            rl_module=self.learner.module,
            batch={},
            episodes=self.episodes,
            shared_data={},
            metrics=self.learner.metrics,
        )["default_policy"]

    @torch.no_grad()
    def values(self, state: dict[str, np.ndarray], observations: np.ndarray) -> list[float]:
        """V of every observation of a chunk, the last included, one step after another."""
        carried = {k: torch.as_tensor(v)[None] for k, v in state.items()}
        values = []
        for now in observations:
            batch = {Columns.OBS: torch.as_tensor(now)[None], Columns.STATE_IN: carried}
            values.append(self.module.compute_values(batch).item())
            carried = self.module.forward_exploration(batch)[Columns.STATE_OUT]
        return values

    def by_hand(self) -> tuple[list[float], list[float]]:
        """Advantages, not standardised, and value targets of all real steps."""
        advantages, targets = [], []
        for state, observations, rewards, terminated in self.chunks:
            values = self.values(state, observations)
            if terminated:
                values[-1] = 0.0
            rows, running = [], 0.0
            for t in reversed(range(len(rewards))):
                error = rewards[t] + GAMMA * values[t + 1] - values[t]
                running = error + GAMMA * LAMBDA * running
                rows.append(running)
            advantages += rows[::-1]
            targets += [a + v for a, v in zip(rows[::-1], values[:-1], strict=True)]
        return advantages, targets


@pytest.fixture(scope="module")
def ours() -> Sampled:
    return Sampled()


@pytest.fixture(scope="module")
def theirs() -> Sampled:
    return Sampled(PPOTorchLearner)


@pytest.mark.parametrize("learner", ["ours", "theirs"])
def test_values_behind_the_last_step_are_those_of_the_memory_then(
    learner: str, request: pytest.FixtureRequest
):
    sampled: Sampled = request.getfixturevalue(learner)
    _, wanted = sampled.by_hand()
    lengths = [len(rewards) for _, _, rewards, _ in sampled.chunks]
    ends = [terminated for *_, terminated in sampled.chunks]
    # An artificial step alone in its sequence, and one among others; both kinds of ends.
    assert {n % LENGTH == 0 for n, end in zip(lengths, ends, strict=True) if not end} == {
        True,
        False,
    }
    assert True in ends
    mask = sampled.columns[Columns.LOSS_MASK]
    assert mask.sum() == sum(lengths)
    targets = sampled.columns[Postprocessing.VALUE_TARGETS][mask]
    np.testing.assert_allclose(targets.numpy(), wanted, atol=1e-4)


def test_advantages_are_standardised_over_real_steps(ours: Sampled, theirs: Sampled):
    raw, _ = ours.by_hand()
    wanted = (np.array(raw) - np.mean(raw)) / np.std(raw)
    mask = ours.columns[Columns.LOSS_MASK]
    mine = ours.columns[Postprocessing.ADVANTAGES][mask]
    np.testing.assert_allclose(mine.numpy(), wanted, atol=1e-4)
    # RLlib itself takes the artificial steps in, which is why its piece is exchanged.
    other = theirs.columns[Postprocessing.ADVANTAGES][mask]
    assert abs(float(other.mean())) > 0.01 or abs(float(other.std(correction=0)) - 1) > 0.01
    assert torch.equal(mask, theirs.columns[Columns.LOSS_MASK])


def test_small_advantages_are_not_blown_up():
    sampled = Sampled()
    columns = dict(sampled.columns)
    columns[Columns.REWARDS] = torch.zeros_like(columns[Columns.REWARDS])
    torch.nn.init.zeros_(sampled.module.policy.value.weight)
    torch.nn.init.constant_(sampled.module.policy.value.bias, 1e-6)
    (piece,) = (p for p in sampled.learner._learner_connector.connectors if hasattr(p, "gamma"))
    batch = piece(rl_module=sampled.learner.module, batch={"default_policy": columns}, episodes=[])
    assert batch["default_policy"][Postprocessing.ADVANTAGES].abs().max() < 0.1


def test_padding_takes_no_part_in_the_loss(ours: Sampled):
    sampled = ours
    assert sampled.module.is_stateful()
    mask = sampled.columns[Columns.LOSS_MASK]
    padding = torch.arange(LENGTH) >= sampled.columns[Columns.SEQ_LENS][:, None]
    assert padding.any() and not (padding & mask).any()
    assert (~padding & ~mask).sum() == len(sampled.chunks)  # the artificial steps
    results = []
    for garbage in (False, True):
        columns = dict(sampled.columns)
        if garbage:
            for name in (
                Columns.REWARDS,
                Columns.ACTION_LOGP,
                Columns.ACTION_DIST_INPUTS,
                Postprocessing.ADVANTAGES,
                Postprocessing.VALUE_TARGETS,
            ):
                columns[name] = columns[name].clone()
                columns[name][padding] = 3 * torch.randn_like(columns[name][padding])
            columns[Columns.ACTIONS] = torch.where(padding, 1, columns[Columns.ACTIONS])
            columns[Columns.OBS] = torch.where(padding[..., None], torch.nan, columns[Columns.OBS])
        learned = sampled.module.forward_train(columns)
        loss = sampled.learner.compute_loss_for_module(
            module_id="default_policy",
            config=sampled.learner.config,
            batch=columns,
            fwd_out=learned,
        )
        sampled.module.zero_grad()
        loss.backward()
        gradients = [p.grad.clone() for p in sampled.module.parameters() if p.grad is not None]
        results.append([loss.detach(), *gradients])
    assert len(results[0]) > 5
    for plain, dirty in zip(*results, strict=True):
        assert torch.equal(plain, dirty)


def test_a_configuration_keeps_the_connectors_and_the_learner_it_has():
    class Mine(PPOTorchLearner):
        pass

    config = PPOConfig().environment(Noise)
    config.env_runners(
        num_env_runners=0, env_to_module_connector=lambda env, spaces, device: MeanStdFilter()
    )
    config.learners(learner_class=Mine)
    assert memory_config(config, GRU, width=8, max_seq_len=LENGTH) is config
    assert config.learner_class is Mine
    runner = SingleAgentEnvRunner(config=config)
    kinds = [type(piece) for piece in runner._env_to_module.connectors]
    assert kinds[:2] == [MeanStdFilter, CarryStates]
    runner.sample(num_timesteps=2 * LENGTH)


def test_the_learner_exchanges_one_piece_and_leaves_the_rest(ours: Sampled):
    pipeline = ours.learner._learner_connector
    names = [type(piece).__name__ for piece in pipeline.connectors]
    assert names[0] == AddOneTsToEpisodesAndTruncate.__name__
    assert names[-1] == "MaskedAdvantages"
    assert "GeneralAdvantageEstimation" not in names


def test_minibatches_without_room_for_a_sequence_are_refused():
    config = config_of().training(minibatch_size=LENGTH - 1)
    with pytest.raises(InvalidValueError, match="minibatch_size is 3; allowed: max_seq_len = 4"):
        config.build_learner(env=Noise())


def several_policies() -> PPOConfig:
    return PPOConfig().environment(Noise).multi_agent(policies={"a", "b"})


@pytest.mark.parametrize(
    "config, message",
    [
        (PPOConfig().learners(num_learners=2), "num_learners is 2; allowed: 0 or 1"),
        (several_policies(), "policies is .*; allowed: one agent"),
        ({}, "config is 'dict'; allowed: PPOConfig"),
    ],
)
def test_configurations_of_another_kind_are_refused(config: Any, message: str):
    call = getattr(memory_config, "__wrapped__", memory_config)  # past the check of types
    with pytest.raises(InvalidValueError, match=message):
        call(config, GRU)
