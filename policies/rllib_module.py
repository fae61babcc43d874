"""An RLModule of RLlib's new API stack that carries any sequence memory as its state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Shaped
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.policies.actor_critic import ActorCritic, Inputs
from engram.policies.heads import (
    Categorical,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
    at_least_float32,
)
from engram.policies.rllib_arrays import Arrays, decode, encode, unbatched


class _Answer(NamedTuple):
    """What the policy makes of a batch, batch first."""

    logits: Tensor
    value: Tensor
    features: Tensor
    state: Any


class MemoryModule(TorchRLModule, ValueFunctionAPI):
    """An RLModule whose policy is an `ActorCritic` around any memory.

    Keys of `model_config`:
        memory: Builds the memory, given its input width: a class of `engram.memory.sequence`, or
            any callable, such as a partial of `stack`.
        memory_kwargs: Keywords for it; none unless given.
        width: Features of the observation's code; 64 unless given.
        max_seq_len: Steps that gradients flow through.

    `policy` holds all parameters. RLlib shows a module neither the previous action nor the
    previous reward, so neither is an input.

    An episode is a memory scope, and RLlib never puts two into one sequence. So `start` is false
    everywhere: the initial state alone says that nothing came before. Padding, at the end of a
    sequence, is overwritten before it is encoded; its outputs mean nothing, but are finite.

    Box actions have RLlib's Gaussian, clipped where it leaves the bounds, not engram's squashed
    one: PPO needs an entropy and a divergence, and RLlib's squashed Gaussian has neither.

    Raises:
        InvalidValueError: On settings and spaces that it does not take.
    """

    policy: ActorCritic

    def setup(self) -> None:
        """Build the policy; RLlib calls it once."""
        settings = self.model_config
        if not isinstance(settings, Mapping):
            raise InvalidValueError("model_config", settings, "a dict with memory and max_seq_len")
        length, width = settings.get("max_seq_len"), settings.get("width", 64)
        if not isinstance(length, int) or length < 1:
            allowed = "a whole number, 1 or more"
            raise InvalidValueError('model_config["max_seq_len"]', length, allowed)
        self.action_dist_cls = _distribution(self.action_space)
        self.policy = ActorCritic(
            self.observation_space,
            self.action_space,
            _builder(settings.get("memory"), settings.get("memory_kwargs", {})),
            width=width,
            previous_action=False,
            previous_reward=False,
        )

    def get_initial_state(self) -> Arrays:
        """Return the empty state of one environment."""
        return unbatched(self.policy.initial_state(1))

    def draw_initial_state(self) -> Arrays:
        """Return an empty state from which the memory draws as in training (see `randomize`).

        Its seed comes from torch's global generator, which RLlib seeds.
        """
        state = self.policy.initial_state(1)
        seeds = torch.randint(1, 2**62, (1,)).to(self.policy.value.weight.device)
        return unbatched(self.policy.memory.randomize(state, seeds))

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return V, `[B]` or `[B, T]`; given `embeddings`, without running the memory again."""
        if embeddings is None:
            return self._run(batch).value
        return at_least_float32(self.policy.value(embeddings)[..., 0])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        answer = self._run(batch)
        return {Columns.ACTION_DIST_INPUTS: answer.logits, Columns.STATE_OUT: encode(answer.state)}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # Without the state: behind padding it is not that of the last step.
        answer = self._run(batch)
        return {Columns.ACTION_DIST_INPUTS: answer.logits, Columns.EMBEDDINGS: answer.features}

    def _run(self, batch: dict[str, Any]) -> _Answer:
        """Run the policy over `[B, ...]` or `[B, T, ...]`; the batch stays as it is."""
        observation = batch[Columns.OBS]
        like = self.policy.initial_state(1)
        # Learners run one batch several times, and a memory may write into what it is given.
        state = states.snapshot(decode(batch[Columns.STATE_IN], like))
        shape = _lead(observation, self.observation_space)
        still = torch.zeros(shape[::-1], device=self.policy.value.weight.device)
        start = torch.zeros_like(still, dtype=torch.bool)
        if len(shape) == 1:
            output, state = self.policy.step(Inputs(observation, still, still, start), state)
            return _Answer(_logits(output.policy), output.value, output.features, state)
        observation = states.tree_map(lambda x: x.transpose(0, 1), observation)
        if Columns.SEQ_LENS in batch:
            observation = overwrite_padding(observation, batch[Columns.SEQ_LENS])
        output, state = self.policy(Inputs(observation, still, still, start), state)
        logits, features = _logits(output.policy).transpose(0, 1), output.features.transpose(0, 1)
        return _Answer(logits, output.value.t(), features, state)


def overwrite_padding(observation: Any, lengths: Shaped[Tensor, " B"]) -> Any:
    """Put each sequence's first observation `[T, B, ...]` in the place of what pads it.

    Zeros need be no observation: a Discrete space may begin at 1. RLlib's minibatches hold
    lengths as floats on the host.
    """

    def overwrite(x: Tensor) -> Tensor:
        padding = torch.arange(len(x), device=x.device)[:, None] >= lengths.to(x.device)
        return torch.where(padding.view(*padding.shape, *[1] * (x.ndim - 2)), x[:1], x)

    return states.tree_map(overwrite, observation)


def _builder(memory: Any, settings: Any) -> Callable[[int], Any]:
    if not callable(memory):
        raise InvalidValueError('model_config["memory"]', memory, "callables, such as HCAM")
    if not isinstance(settings, Mapping):
        raise InvalidValueError('model_config["memory_kwargs"]', settings, "a dict of keywords")

    def build(width: int) -> Any:
        try:
            return memory(width, **settings)
        except TypeError as error:
            allowed = f"keywords that the memory takes ({error})"
            raise InvalidValueError('model_config["memory_kwargs"]', settings, allowed) from error

    return build


def _distribution(space: spaces.Space[Any]) -> Any:
    """Choose RLlib's distribution over the actions of a space."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return TorchCategorical
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        several: Any = TorchMultiCategorical
        return several.get_partial_dist_cls(input_lens=space.nvec.tolist())
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if len(space.shape) == 1 and space.is_bounded():
            return TorchDiagGaussian
    # RLlib hands the environment the integers that it drew, without adding where a space begins.
    allowed = "Discrete from 0, MultiDiscrete [n] from 0, bounded Box [n] of floats"
    raise InvalidValueError("action space", space, allowed)


def _logits(policy: Distribution) -> Float[Tensor, "*n A"]:
    """Return the numbers from which RLlib builds the same distribution."""
    if isinstance(policy, Categorical):
        return policy.log_p
    if isinstance(policy, MultiCategorical):
        return torch.cat([part.log_p for part in policy.parts], -1)
    assert isinstance(policy, SquashedGaussian), f"no distribution of RLlib for {policy}"
    return torch.cat([policy.mean, policy.log_std], -1)


def _lead(observation: Any, space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return the leading axes of an observation: B, or B and T."""
    while isinstance(space, spaces.Dict):
        name, space = next(iter(space.items()))
        observation = observation[name]
    return tuple(observation.shape[: observation.ndim - len(space.shape or ())])
