"""Rollouts: what acting records for learning, with one memory state per chunk."""

import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engram.agents import checkpoint
from engram.agents.seeds import derive
from engram.envs.vector import BatchedEnv, Stream
from engram.memory import state as states
from engram.policies.actor_critic import ActorCritic, Inputs, Output


class Rollout(NamedTuple):
    """R steps of B environments."""

    inputs: Inputs
    """What the policy saw, `[R, B, ...]`."""
    action: Tensor
    """What it drew, `[R, B, ...]`, as its head encodes actions."""
    log_prob: Float[Tensor, "R B"]
    value: Float[Tensor, "R B"]
    reward: Float[Tensor, "R B"]
    terminated: Bool[Tensor, "R B"]
    truncated: Bool[Tensor, "R B"]
    restarted: Bool[Tensor, "R B"]
    """Whether a new memory scope begins after the step: an episode, or a trial of several."""
    final_value: Float[Tensor, "R B"]
    """Value of the last observation where an episode was truncated and its scope ended with it,
    with the memory before the reset."""
    last_value: Float[Tensor, " B"]
    """Value of the observation after the last step."""
    states: list[Any]
    """Detached memory state before every chunk's first step, R / chunk of them."""
    measurements: dict[str, Float[Tensor, "R B *n"]]
    """The environment's measurements, to be read where an episode ended."""
    scores: Float[Tensor, "R B"]
    """Return, undiscounted, of the episode that ended at a step; NaN elsewhere."""


class Cursor(NamedTuple):
    """Where acting stands between two rollouts; with the environment's own state, all of it."""

    inputs: Inputs
    state: Any
    score: Float[Tensor, " B"]
    """Reward so far in the running episode."""


@runtime_checkable
class Acting(Protocol):
    """What a training run asks of whoever acts: one collector, or workers elsewhere."""

    seconds: dict[str, float]
    """Where the time of the last rollout went [s]: environment, acting, transfer."""
    facts: dict[str, float]
    """What else is to be reported of the last rollout."""

    def collect(self, steps: int, *, chunk: int) -> Rollout:
        """Act for `steps` steps, keeping the memory state before every `chunk`th."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Name everything that decides how acting goes on."""
        ...

    def load(self, tensors: dict[str, Tensor], *, steps: int, source: Path) -> None:
        """Go on from what `tensors` returned after `steps` steps of the run."""
        ...

    def close(self) -> None:
        """Close the environments."""
        ...


class Collector:
    """Acts in an environment and records rollouts.

    Args:
        stream: The environment.
        policy: Who acts.
        seed: Seed of actions, of what the memory draws, and of the environment.
        bfloat16: Whether the policy runs in mixed precision, as it will where it learns.
    """

    def __init__(self, stream: Stream, policy: ActorCritic, *, seed: int, bfloat16: bool = False):
        self.stream, self.policy, self.seed, self.bfloat16 = stream, policy, seed, bfloat16
        self.seconds = {"environment": 0.0, "acting": 0.0, "transfer": 0.0}
        self.facts: dict[str, float] = {}
        self.generator = torch.Generator(stream.device).manual_seed(derive(seed, "act"))
        self.batch = stream.env.num_envs
        self.begin(derive(seed, "worlds"))

    def begin(self, seed: int) -> None:
        """Start every episode anew, and with it the memory.

        Args:
            seed: Of the environment.
        """
        stream, policy = self.stream, self.policy
        observation, start = stream.reset(seed=seed)
        seeds = torch.randint(
            1, 2**62, (self.batch,), generator=self.generator, device=stream.device
        )
        state = policy.memory.randomize(policy.initial_state(self.batch), seeds)
        zeros = torch.zeros(self.batch, device=stream.device)
        inputs = Inputs(observation, policy.no_action(self.batch), zeros, start)
        self.cursor = Cursor(inputs, state, zeros)

    @torch.no_grad()
    def collect(self, steps: int, *, chunk: int) -> Rollout:
        """Act for `steps` steps, keeping the memory state before every `chunk`th.

        Args:
            steps: Length R of the rollout.
            chunk: Length of the sequences that gradients will flow through; it divides R.
        """
        assert steps % chunk == 0, f"rollout of {steps} steps in chunks of {chunk}"
        began, in_environment = time.perf_counter(), 0.0
        inputs, state, score = self.cursor
        kept, rows, ends = [], [], []
        for t in range(steps):
            if t % chunk == 0:
                kept.append(states.snapshot(state))
            output, state = self._decide(inputs, state)
            action = output.policy.sample(self.generator)
            sent = self.policy.head.to_env(action)
            left = time.perf_counter()
            step = self.stream.step(sent)
            in_environment += time.perf_counter() - left
            done = step.terminated | step.truncated
            score = score + step.reward
            final = torch.zeros_like(output.value)
            # To look costs a host round trip per step, in environments that truncate at all.
            if self.stream.truncates and bool((step.truncated & step.start).any()):
                last = Inputs(step.final_observation, action, step.reward, torch.zeros_like(done))
                final = self._decide(last, states.snapshot(state))[0].value
            rows.append((inputs, action, output.policy.log_prob(action), output.value, final))
            ends.append((step, torch.where(done, score, torch.nan)))
            score = torch.where(done, 0.0, score)
            inputs = Inputs(step.observation, action, step.reward, step.start)
        last_value = self._decide(inputs, states.snapshot(state))[0].value
        self.cursor = Cursor(inputs, state, score)
        names = [k for k, v in ends[0][0].info.items() if isinstance(v, Tensor) and k != "start"]
        rollout = Rollout(
            inputs=states.tree_map(lambda *parts: torch.stack(parts), *(row[0] for row in rows)),
            action=torch.stack([row[1] for row in rows]),
            log_prob=torch.stack([row[2] for row in rows]),
            value=torch.stack([row[3] for row in rows]),
            reward=torch.stack([step.reward for step, _ in ends]),
            terminated=torch.stack([step.terminated for step, _ in ends]),
            truncated=torch.stack([step.truncated for step, _ in ends]),
            restarted=torch.stack([step.start for step, _ in ends]),
            final_value=torch.stack([row[4] for row in rows]),
            last_value=last_value,
            states=kept,
            measurements={
                name: torch.stack([step.info[name] for step, _ in ends]) for name in names
            },
            scores=torch.stack([ended for _, ended in ends]),
        )
        # As the host sees it: what it put on an accelerator may still be running.
        acting = time.perf_counter() - began - in_environment
        self.seconds |= {"environment": in_environment, "acting": acting}
        return rollout

    def tensors(self) -> dict[str, Tensor]:
        """Name everything that decides how acting goes on, copied.

        Where the environment cannot be copied (a simulator outside engram), it is left out, and
        with it the memory of its episodes.
        """
        tensors = {"random.act": self.generator.get_state()}
        if isinstance(self.stream.env, BatchedEnv):
            cursor = self.cursor
            tensors |= {f"memory.{k}": v for k, v in states.flatten(cursor.state).items()}
            tensors |= {f"inputs.{k}": v for k, v in states.flatten(cursor.inputs).items()}
            tensors["cursor.score"] = cursor.score
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            tensors |= {f"env.{k}": v for k, v in self.stream.env.save().items()}
        return tensors

    def load(self, tensors: dict[str, Tensor], *, steps: int, source: Path) -> None:
        """Go on from what `tensors` returned.

        Where the environment could not be copied its episodes begin anew, and with them the memory.

        Args:
            tensors: On the stream's device.
            steps: Of the run so far.
            source: Where they were read, for the message.

        Raises:
            DataError: If they are of another policy or environment; nothing is loaded then.
        """
        checkpoint.check(tensors, self.tensors(), source)
        self.generator.set_state(tensors["random.act"].cpu())
        if not isinstance(self.stream.env, BatchedEnv):
            # Not the seed of the beginning: its episodes have been seen.
            self.begin(derive(self.seed, f"worlds after {steps} steps"))
            return
        self.stream.env.load(checkpoint.part(tensors, "env"))
        here = self.cursor
        state = states.unflatten(checkpoint.part(tensors, "memory"), here.state)
        inputs = states.unflatten(checkpoint.part(tensors, "inputs"), here.inputs)
        self.cursor = Cursor(inputs, states.snapshot(state), tensors["cursor.score"])

    def close(self) -> None:
        """Close the environment."""
        self.stream.env.close()

    def _decide(self, inputs: Inputs, state: Any) -> tuple[Output, Any]:
        with mixed_precision(self.stream.device, enabled=self.bfloat16):
            return self.policy.step(inputs, state)


def mixed_precision(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Return the context in which products run in bfloat16; states and losses stay float32.

    Acting and learning share it: the ratio of their probabilities starts from 1, but for products
    that round differently in a sequence and in a step.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
