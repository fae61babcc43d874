"""PPO's learner with advantages standardised over the steps that are learned from."""

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets
from torch import Tensor

from engram.kernels.errors import InvalidValueError


class MaskedAdvantages(ConnectorV2):
    """Learner: generalised advantages, standardised over real steps alone.

    RLlib's piece leaves padding out but not the artificial step behind each episode, whose
    advantage runs on into the next episode of the batch. In episodes of 13 steps that is one number
    in 14 of those from which mean and deviation are taken. Targets and, up to that scale,
    advantages are RLlib's. Values need no gradient here and record none.

    Args:
        gamma: γ.
        lambda_: λ.
    """

    def __init__(self, *args: Any, gamma: float, lambda_: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.gamma, self.lambda_ = gamma, lambda_

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Add ADVANTAGES and VALUE_TARGETS to each module's columns."""
        for name, columns in batch.items():
            if isinstance(rl_module[name], ValueFunctionAPI):
                self._estimate(rl_module[name], columns)
        return batch

    @torch.no_grad()
    def _estimate(self, module: Any, columns: dict[str, Any]) -> None:
        value = module.compute_values(columns)
        real = torch.ones_like(value, dtype=torch.bool)
        if Columns.SEQ_LENS in columns:
            place = torch.arange(value.shape[1], device=value.device)
            real = place < columns[Columns.SEQ_LENS][:, None]

        def flat(x: Tensor) -> np.ndarray:
            return x[real].numpy(force=True)

        values = flat(value)
        targets = compute_value_targets(
            values,
            flat(columns[Columns.REWARDS]),
            flat(columns[Columns.TERMINATEDS]),
            flat(columns[Columns.TRUNCATEDS]),
            self.gamma,
            self.lambda_,
        )
        advantages = targets - values
        learned = advantages[flat(columns[Columns.LOSS_MASK])]
        advantages = (advantages - learned.mean()) / max(1e-4, learned.std())
        for name, numbers in (
            (Postprocessing.ADVANTAGES, advantages),
            (Postprocessing.VALUE_TARGETS, targets),
        ):
            columns[name] = torch.zeros_like(value, dtype=torch.float32)
            columns[name][real] = torch.from_numpy(numbers).to(value.device)


class MemoryPPOLearner(PPOTorchLearner):
    """RLlib's PPO with `MaskedAdvantages` in the place of its own estimate.

    Raises:
        InvalidValueError: If a minibatch has no room for a sequence, from which RLlib would make
            empty minibatches.
    """

    def build(self) -> None:
        """Build as RLlib does, then exchange one piece."""
        super().build()
        _check_room(self.module, self.config.minibatch_size)
        pipeline = self._learner_connector
        if pipeline is None:
            return
        for theirs in pipeline.connectors[:]:
            if isinstance(theirs, GeneralAdvantageEstimation):
                pipeline.remove(type(theirs))
                pipeline.append(MaskedAdvantages(gamma=theirs.gamma, lambda_=theirs.lambda_))


def _check_room(modules: Any, room: int | None) -> None:
    for module in modules.values():
        length = (module.model_config or {}).get("max_seq_len", 0)
        if module.is_stateful() and room is not None and room < length:
            raise InvalidValueError("minibatch_size", room, f"max_seq_len = {length} or more")
