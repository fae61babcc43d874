"""PPO with an LSTM against sb3-contrib's RecurrentPPO: training steps per second.

Both learn the same task (RepeatFirst, POPGym's Easy for the peer) in 64 environments, with the
same rollout, minibatch, epochs, learning rate, network and number of threads. The peer's policy
and value share one LSTM of width 64 with linear heads on it, as engram's do; it reads one-hot
suits, while engram's has an embedding and the previous action and reward besides.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

from measure import Limit, Row, alternate, compared, not_run, once

from engram.agents.ppo import PPOSettings
from engram.agents.training import Training
from engram.envs.repeat import RepeatFirst
from engram.envs.vector import Stream
from engram.memory.sequence import LSTM
from engram.policies import ActorCritic

ENVS, WIDTH, ROLLOUT, EPOCHS, MINIBATCHES = 64, 64, 128, 4, 8
STEPS = ENVS * ROLLOUT
RATE = 3e-4
QUANTITY = f"PPO + LSTM {WIDTH}, {ENVS} environments [training steps/s]"
TARGET = Limit("≥", 20)


def ours() -> Callable[[], object]:
    """Return one iteration of engram's training."""
    stream = Stream(RepeatFirst(ENVS))
    spaces = stream.env.single_observation_space, stream.env.single_action_space
    policy = ActorCritic(*spaces, LSTM, width=WIDTH)
    # Gradients flow through whole rollouts, as RecurrentPPO's do.
    settings = PPOSettings(
        rollout=ROLLOUT,
        chunk=ROLLOUT,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        learning_rate=RATE,
    )
    return Training(stream, policy, settings, seed=0, budget=10**9).iterate


def theirs() -> Callable[[], object]:
    """Return one iteration of the peer's training."""
    from popgym.envs.repeat_first import RepeatFirstEasy
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([RepeatFirstEasy] * ENVS),
        learning_rate=RATE,
        n_steps=ROLLOUT,
        batch_size=STEPS // MINIBATCHES,
        n_epochs=EPOCHS,
        ent_coef=0.01,
        seed=0,
        device="cpu",
        policy_kwargs={
            "lstm_hidden_size": WIDTH,
            "net_arch": [],
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
    )
    return partial(model.learn, STEPS, reset_num_timesteps=False)


def rows(rounds: int) -> list[Row]:
    """Measure; without the peer, say how to install it."""
    mine = ours()
    mine()
    wanted = {"sb3_contrib": "sb3", "popgym": "dev"}
    extras = [extra for name, extra in wanted.items() if importlib.util.find_spec(name) is None]
    if extras:
        (cost,) = alternate(mine, rounds=rounds)
        install = f"pip install -e '.[{','.join(extras)}]' -c constraints.txt"
        why = f"RecurrentPPO is missing: {install}"
        return [not_run(QUANTITY, f"{STEPS / cost.wall:,.0f}", why, str(TARGET))]
    peer = theirs()
    once(peer)
    cost, other = alternate(mine, peer, rounds=rounds)
    return [
        compared(
            QUANTITY,
            f"{STEPS / cost.wall:,.0f}",
            f"RecurrentPPO {STEPS / other.wall:,.0f}",
            (other.wall / cost.wall, other.cpu / cost.cpu),
            TARGET,
        )
    ]
