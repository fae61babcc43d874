"""RLlib's episodes hold one state per sequence, and it is the one that acting had there."""

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("ray.rllib", reason="needs the extra rllib", exc_type=ImportError)

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.minibatch_utils import MiniBatchCyclicIterator

from engram.kernels.errors import DataError
from engram.memory.sequence import HCAM, LSTM, Memo, NoMemory, stack
from engram.policies.rllib import MemoryModule, memory_config
from engram.policies.rllib_states import EpisodeStates, states_of

# RLlib registers its environment anew for every runner.
pytestmark = pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env")

LENGTH = 4
MEMORIES = {
    "hcam": (HCAM, {"chunk": 2, "capacity": 3, "heads": 2}),
    "lstm": (LSTM, {}),
    "memo": (Memo, {"heads": 2, "segment": 3, "summary": 2, "capacity": 2}),
    "none": (stack, {"layer": NoMemory}),
}


class Walk(gymnasium.Env[np.ndarray, int]):
    """Noise, in episodes of 1 to 13 steps that terminate or are truncated."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, config: Any = None):
        del config

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 14))
        self.terminates = bool(self.np_random.random() < 0.5)
        return self.see(), {}

    def see(self) -> np.ndarray:
        return self.np_random.normal(size=3).clip(-9, 9).astype(np.float32)

    def step(self, action: int):
        self.left -= 1
        done = self.left == 0
        return self.see(), 1.0, done and self.terminates, done and not self.terminates, {}


def config_of(memory: str = "hcam", *, runners: dict[str, Any] | None = None, width: int = 8):
    config = PPOConfig().environment(Walk).debugging(seed=0)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=3, **(runners or {}))
    kind, keywords = MEMORIES[memory]
    return memory_config(config, kind, memory_kwargs=keywords, width=width, max_seq_len=LENGTH)


def batch_of(learner: Any, episodes: list[Any]) -> dict[str, Any]:
    """What the learner makes of episodes."""
    batch = learner._learner_connector(
        rl_module=learner.module,
        batch={},
        episodes=episodes,
        shared_data={},
        metrics=learner.metrics,
    )
    return batch["default_policy"]


RUNS = {
    "many": {"rollout_fragment_length": 11},
    "sequences": {"rollout_fragment_length": 2 * LENGTH},
    "one": {"rollout_fragment_length": 7, "num_envs_per_env_runner": 1},
    "no_lookback": {"rollout_fragment_length": 5, "episode_lookback_horizon": 0},
    "long_lookback": {"rollout_fragment_length": 5, "episode_lookback_horizon": 6},
    "complete": {"batch_mode": "complete_episodes"},
}


class Replay:
    """Follows episodes with the memory's own steps, over the chunks that they come in."""

    def __init__(self, module: MemoryModule):
        self.module = module
        self.lived: dict[str, Any] = {}  # state before the last observation of a chunk

    def before_sequences(self, episode: Any, first: Any) -> list[dict[str, np.ndarray]]:
        """States before steps 0, L, 2L … of a chunk; `first` is where an episode begins."""
        seen = episode.get_observations()
        state = self.lived[episode.id_] if episode.t_started else first
        wanted = []
        for t, now in enumerate(seen):
            if t % LENGTH == 0:
                wanted.append(state)
            self.lived[episode.id_] = state
            carried = {k: torch.as_tensor(v)[None] for k, v in state.items()}
            batch = {Columns.OBS: torch.as_tensor(now)[None], Columns.STATE_IN: carried}
            after = self.module.forward_exploration(batch)[Columns.STATE_OUT]
            state = {k: v[0].numpy() for k, v in after.items()}
        return wanted


def check_states(given: dict[str, torch.Tensor], wanted: list[dict[str, np.ndarray]]) -> None:
    for path, rows in given.items():
        expected = np.stack([state[path] for state in wanted])
        assert rows.numpy().dtype == expected.dtype
        tolerance = 0 if rows.dtype == torch.int32 else 1e-5
        np.testing.assert_allclose(rows.numpy(), expected, tolerance, tolerance, err_msg=path)


@pytest.mark.parametrize(
    "run, memory",
    [*((run, "hcam") for run in RUNS), *(("many", m) for m in MEMORIES if m != "hcam")],
)
def test_every_sequence_begins_with_the_state_that_acting_had(run: str, memory: str):
    config = config_of(memory)
    config.env_runners(**RUNS[run])
    runner = SingleAgentEnvRunner(config=config)
    learner = config.build_learner(env=runner.env)
    replay, empty = Replay(runner.module), runner.module.get_initial_state()
    continued = sequences = 0
    for _ in range(3):
        episodes = runner.sample()
        wanted = []
        for episode in episodes:
            first = states_of(episode).before[0]
            if episode.t_started == 0:  # nothing but what memories draw is not empty
                drawn = {path for path, part in empty.items() if (part != first[path]).any()}
                assert drawn == ({"seed"} if memory == "memo" else set())
            continued += episode.t_started > 0
            wanted += replay.before_sequences(episode, first)
        check_states(batch_of(learner, episodes)[Columns.STATE_IN], wanted)
        sequences += len(wanted)
    assert sequences > 15 or run == "one"
    assert continued or run == "complete"


@pytest.mark.parametrize("memory", ["hcam", "memo"])
def test_the_module_also_works_with_the_connectors_of_rllib(memory: str):
    kind, keywords = MEMORIES[memory]
    settings = {"memory": kind, "memory_kwargs": keywords, "width": 8, "max_seq_len": LENGTH}
    config = PPOConfig().environment(Walk).debugging(seed=0)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=3, rollout_fragment_length=11)
    config.rl_module(rl_module_spec=RLModuleSpec(MemoryModule, model_config=settings))
    runner = SingleAgentEnvRunner(config=config)
    learner = config.build_learner(env=runner.env)
    replay, empty = Replay(runner.module), runner.module.get_initial_state()
    for _ in range(2):
        episodes = runner.sample()
        wanted = [state for e in episodes for state in replay.before_sequences(e, empty)]
        check_states(batch_of(learner, episodes)[Columns.STATE_IN], wanted)


def rows_by_observation(columns: dict[str, Any]) -> dict[tuple[float, ...], dict[str, Any]]:
    """The lengths and states of sequences by what was seen in them."""
    given = {**columns[Columns.STATE_IN], "length": columns[Columns.SEQ_LENS].int()}
    return {
        tuple(seen.flatten().tolist()): {k: v[i] for k, v in given.items()}
        for i, seen in enumerate(columns[Columns.OBS])
    }


def test_minibatches_keep_sequences_with_their_states_and_lengths():
    config = config_of(runners={"rollout_fragment_length": 40})
    runner = SingleAgentEnvRunner(config=config)
    learner = config.build_learner(env=runner.env)
    columns = batch_of(learner, runner.sample())
    wanted = rows_by_observation(columns)
    assert len(wanted) == len(columns[Columns.OBS])
    whole = MultiAgentBatch({"default_policy": SampleBatch(columns, _zero_padded=True)}, 120)
    whole = learner._set_slicing_by_batch_id(whole, value=True)
    seen = 0
    for part in MiniBatchCyclicIterator(whole, num_epochs=3, minibatch_size=30):
        mine = rows_by_observation(part.policy_batches["default_policy"])
        for observation, row in mine.items():
            for column, value in row.items():
                assert torch.equal(value, wanted[observation][column]), column
                assert value.dtype == wanted[observation][column].dtype
        seen += len(mine)
    assert seen >= 3 * len(wanted)


class Endless(Walk):
    """Noise without an end."""

    def reset(self, *, seed: int | None = None, options: Any = None):
        observation, info = super().reset(seed=seed)
        self.left = 10**9
        return observation, info


def test_an_episode_holds_one_state_per_sequence_and_one_for_the_next_step():
    length, steps, envs = 8, 32, 2
    config = PPOConfig().environment(Endless)
    config.env_runners(
        num_env_runners=0, num_envs_per_env_runner=envs, rollout_fragment_length=steps
    )
    settings = {"memory": HCAM, "memory_kwargs": {}, "width": 64, "max_seq_len": length}
    config.rl_module(rl_module_spec=RLModuleSpec(MemoryModule, model_config=settings))
    every = SingleAgentEnvRunner(config=config)
    memory_config(config, HCAM, width=64, max_seq_len=length)
    sparse = SingleAgentEnvRunner(config=config)
    state = sum(part.nbytes for part in sparse.module.get_initial_state().values())
    assert state > 35_000
    for _ in range(2):  # the second chunks continue the first, and hold no more
        stored = [
            [len(pickle.dumps(episode)) for episode in runner.sample()]
            for runner in (every, sparse)
        ]
        assert len(stored[0]) == len(stored[1]) == envs
        kept = steps // length + 1
        for before, after in zip(*stored, strict=True):
            assert before > steps * state
            assert kept * state < after < kept * state + steps * 200


def test_an_episode_that_ended_keeps_no_other_environment_alive():
    runner = SingleAgentEnvRunner(config=config_of(runners={"rollout_fragment_length": 40}))
    ended = [episode for episode in runner.sample() if episode.is_done]
    assert ended
    for episode in ended:
        held = states_of(episode)
        for state in (held.now, *held.before):
            assert all(np.asarray(part).base is None for part in state.values())


def test_evaluation_draws_nothing():
    runner = SingleAgentEnvRunner(config=config_of("memo"))

    def seeds(explore: bool) -> set[tuple[int, ...]]:
        episodes = runner.sample(num_episodes=3, explore=explore)
        return {tuple(states_of(episode).before[0]["seed"].tolist()) for episode in episodes}

    assert len(seeds(True)) == 3
    assert seeds(False) == {(0, 0)}


def test_states_of_steps_count_from_the_chunk():
    held = EpisodeStates({"x": np.array(0)})
    for step in range(6):  # states 1 … 6 after steps 0 … 5, in sequences of 2
        held.advance(step, 2, {"x": np.array(step + 1)})
    assert [int(s["x"]) for s in held.before_sequences(6, 2)] == [0, 2, 4]
    assert [int(s["x"]) for s in held.before_sequences(7, 2)] == [0, 2, 4, 6]
    held.advance(0, 2, {"x": np.array(7)})  # a chunk that continues the episode
    assert [int(s["x"]) for s in held.before_sequences(1, 2)] == [6]
    assert [int(s["x"]) for s in held.before_sequences(2, 2)] == [6]
    with pytest.raises(DataError, match="an episode of 9 steps has 1 memory states; allowed: one"):
        held.before_sequences(9, 2)


def test_a_slice_of_an_episode_is_refused():
    config = config_of(runners={"rollout_fragment_length": 11})
    runner = SingleAgentEnvRunner(config=config)
    learner = config.build_learner(env=runner.env)
    episode = max(runner.sample(), key=len)
    with pytest.raises(DataError, match=r"has no memory states; allowed: .*num_learners"):
        batch_of(learner, [episode[2:]])
