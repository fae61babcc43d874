"""RLlib's PPO with our module against its own LSTM, and engram's trainer against RLlib's.

Every side has the same environments, steps per update, epochs, minibatch, sequence length, learning
rate, discount and one thread in one process. RLlib's own network is one LSTM of width 64 that
policy and value share, on as many layers as engram's encoder has; on RepeatFirst it reads one-hot
suits. RLlib cuts sequences at every episode's end and pads them, engram's trainer does not.
"""

import importlib.util
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Limit, Row, alternate, compared, not_run

from engram.agents.ppo import PPOSettings
from engram.agents.training import Training
from engram.envs.adapter import GymnasiumEnv
from engram.envs.vector import Stream
from engram.memory.sequence import HCAM, LSTM
from engram.policies import ActorCritic

ENVS, WIDTH, ROLLOUT, EPOCHS, MINIBATCHES = 32, 64, 128, 4, 8
SEQUENCE, CARDS = 32, 64
"""Steps that gradients flow through, on CartPole and on RepeatFirst (a whole episode of 51)."""
STEPS = ENVS * ROLLOUT
RATE, DISCOUNT, TRACE, ENTROPY = 1e-3, 0.99, 0.95, 0.01
SCORED = 50
"""Iterations after which scores on RepeatFirst are compared."""


def ours() -> Training:
    """Return engram's training on CartPole."""
    stream = Stream(GymnasiumEnv(ENVS, environment="CartPole-v1"))
    spaces = stream.env.single_observation_space, stream.env.single_action_space
    policy = ActorCritic(*spaces, LSTM, width=WIDTH)
    settings = PPOSettings(
        rollout=ROLLOUT,
        chunk=SEQUENCE,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        learning_rate=RATE,
        discount=DISCOUNT,
        trace=TRACE,
        entropy=ENTROPY,
    )
    return Training(stream, policy, settings, seed=0, budget=10**9)


def configured(environment: Any) -> Any:
    """Return RLlib's configuration, without a module."""
    from ray.rllib.algorithms.ppo import PPOConfig

    config = PPOConfig().environment(environment).debugging(seed=0, log_level="ERROR")
    config.env_runners(
        num_env_runners=0, num_envs_per_env_runner=ENVS, rollout_fragment_length=ROLLOUT
    )
    config.training(
        train_batch_size_per_learner=STEPS,
        minibatch_size=STEPS // MINIBATCHES,
        num_epochs=EPOCHS,
        lr=RATE,
        gamma=DISCOUNT,
        lambda_=TRACE,
        entropy_coeff=ENTROPY,
        vf_loss_coeff=0.5,
        clip_param=0.2,
        grad_clip=0.5,
        use_kl_loss=False,
    )
    return config


def with_rllib_lstm(environment: Any, layers: list[int], sequence: int) -> Any:
    """Return RLlib's algorithm with its own LSTM."""
    from ray.rllib.connectors.env_to_module import FlattenObservations
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    config = configured(environment)
    config.env_runners(env_to_module_connector=_flattening(FlattenObservations))
    config.rl_module(
        model_config=DefaultModelConfig(
            fcnet_hiddens=layers,
            fcnet_activation="relu",
            head_fcnet_hiddens=[],
            vf_share_layers=True,
            use_lstm=True,
            lstm_cell_size=WIDTH,
            max_seq_len=sequence,
        )
    )
    return config.build_algo()


def _flattening(piece: Callable[[], object]) -> Callable[..., object]:
    def build(env: Any, spaces: Any, device: Any) -> object:
        return piece()

    return build


def with_our_lstm(environment: Any) -> Any:
    """Return RLlib's algorithm with the module of engram."""
    from engram.policies.rllib import memory_config

    config = memory_config(configured(environment), LSTM, width=WIDTH, max_seq_len=CARDS)
    return config.build_algo()


def module_rows(rounds: int) -> list[Row]:
    """Compare the modules on RepeatFirst, in speed and in return."""
    from popgym.envs.repeat_first import RepeatFirstEasy

    def environment(config: Any) -> RepeatFirstEasy:
        return RepeatFirstEasy()

    from ray.tune.registry import register_env

    register_env("repeat_first", environment)
    makers = (
        partial(with_our_lstm, "repeat_first"),
        partial(with_rllib_lstm, "repeat_first", [WIDTH], CARDS),
    )
    mine, peer = (make() for make in makers)
    for algorithm in (mine, peer):
        algorithm.train()
    cost, other = alternate(mine.train, peer.train, rounds=rounds)
    mine.stop()
    peer.stop()
    scores = [score(make) for make in makers]
    name = f"RLlib's PPO + LSTM {WIDTH}, RepeatFirst"
    speed = compared(
        f"{name}: our module [training steps/s]",
        f"{STEPS / cost.wall:,.0f}",
        f"RLlib's own {STEPS / other.wall:,.0f}",
        (other.wall / cost.wall, other.cpu / cost.cpu),
        Limit("≥", 1),
    )
    return [
        speed,
        not_run(f"{name}: return at {SCORED * STEPS:,} steps, one seed", scores[0], scores[1], ""),
    ]


def score(make: Callable[[], Any]) -> str:
    """Return the mean return after `SCORED` iterations; alone, since RLlib draws globally."""
    torch.manual_seed(0)
    algorithm = make()
    results = [algorithm.train() for _ in range(SCORED)]
    algorithm.stop()
    return f"{results[-1]['env_runners']['episode_return_mean']:.2f}"


def trainer_row(rounds: int) -> Row:
    """Compare the trainers on CartPole."""
    mine, peer = ours(), with_rllib_lstm("CartPole-v1", [WIDTH, WIDTH], SEQUENCE)
    for warm in (mine.iterate, peer.train):
        warm()
    cost, other = alternate(mine.iterate, peer.train, rounds=rounds)
    peer.stop()
    return compared(
        f"PPO + LSTM {WIDTH}, CartPole, {ENVS} environments [training steps/s]",
        f"{STEPS / cost.wall:,.0f}",
        f"RLlib {STEPS / other.wall:,.0f}",
        (other.wall / cost.wall, other.cpu / cost.cpu),
        Limit("≥", 40),
    )


def bytes_row() -> Row:
    """Compare what an episode of RLlib stores of an HCAM's states."""
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    from engram.policies.rllib import MemoryModule, memory_config

    settings = {"memory": HCAM, "width": WIDTH, "max_seq_len": SEQUENCE}
    every = configured("CartPole-v1").rl_module(
        rl_module_spec=RLModuleSpec(MemoryModule, model_config=settings)
    )
    sparse = memory_config(configured("CartPole-v1"), HCAM, width=WIDTH, max_seq_len=SEQUENCE)
    stored = []
    for config in (sparse, every):
        config.env_runners(num_envs_per_env_runner=1)
        episodes = SingleAgentEnvRunner(config=config).sample(num_timesteps=ROLLOUT)
        steps = sum(len(episode) for episode in episodes)
        stored.append(sum(len(pickle.dumps(episode)) for episode in episodes) / steps)
    return compared(
        f"HCAM {WIDTH} in RLlib's episodes of CartPole [bytes/step]",
        f"{stored[0]:,.0f}",
        f"RLlib's own connectors {stored[1]:,.0f}",
        (stored[0] / stored[1], None),
        Limit("≤", 0.2),
    )


def rows(rounds: int) -> list[Row]:
    """Measure; without RLlib or the task, say how to install it."""
    wanted = {"ray": "rllib", "popgym": "dev"}
    extras = [extra for name, extra in wanted.items() if importlib.util.find_spec(name) is None]
    if extras:
        install = f"pip install -e '.[{','.join(extras)}]' -c constraints.txt"
        return [not_run("PPO + LSTM against RLlib", "", f"RLlib is missing: {install}", "≥ 40")]
    import ray

    ray.init(
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    table = [*module_rows(rounds), trainer_row(rounds), bytes_row()]
    ray.shutdown()
    return table
