"""Memory states in RLlib's episodes: one per sequence that will be learned from, not one per step.

RLlib keeps what a module put out at every step, STATE_OUT included, though a learner reads a state
only before each sequence of max_seq_len steps. An HCAM of width 64 would store 35 kB per step.
"""

from typing import Any

from ray.rllib.connectors.common import (
    AddObservationsFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
)
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import AddColumnsFromEpisodesToTrainBatch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from engram.kernels.errors import DataError
from engram.policies.rllib_arrays import Arrays, copied

KEY = "engram.states"
"""Where an episode's `custom_data` holds its `EpisodeStates`."""


class EpisodeStates:
    """The states that one episode object needs.

    Args:
        now: State before its first step.
    """

    def __init__(self, now: Arrays):
        self.now = now
        """State after the last step, from which the next is taken."""
        self.before: list[Arrays] = []
        """States before steps 0, L, 2 L … of this object, L the length of a sequence."""

    def advance(self, step: int, length: int, after: Arrays) -> None:
        """Take in the state after a step.

        Args:
            step: Its number in this object, from 0.
            length: Of a sequence.
            after: The state.
        """
        if step == 0:  # a chunk that continues another brings that one's states along
            self.before = []
        if step % length == 0:
            # A copy: a view would keep the states of all environments.
            self.before.append(copied(self.now))
        self.now = after

    def before_sequences(self, steps: int, length: int) -> list[Arrays]:
        """Return the state before each sequence of the first `steps` steps.

        The artificial step that PPO adds behind the last, for its value, may begin a sequence.

        Raises:
            DataError: If the states were kept for other steps or another length.
        """
        rows = -(-steps // length)
        known = [*self.before, self.now] if (steps - 1) % length == 0 else self.before
        if len(self.before) not in (rows, rows - 1) or len(known) < rows:
            raise DataError(
                f"an episode of {steps} steps has {len(self.before)} memory states; allowed: one "
                f"per {length} steps of an episode as it was sampled"
            )
        return known[:rows]


class CarryStates(ConnectorV2):
    """Env-to-module: hands every running episode's state to the module.

    Where an episode begins the state is the module's initial one; while exploring, one from which
    the memory draws as in training. Observations then have no time axis.
    """

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[Any],
        explore: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add STATE_IN to the batch."""
        if rl_module is None or Columns.STATE_IN in batch:
            return batch
        for episode in episodes:
            held = episode.custom_data.get(KEY)
            if held is None:
                draws = rl_module.draw_initial_state if explore else rl_module.get_initial_state
                held = episode.custom_data[KEY] = EpisodeStates(draws())
            if episode.is_done:
                held.now = copied(held.now)  # else a view keeps the states of all environments
            self.add_batch_item(batch, Columns.STATE_IN, held.now, episode)
        return batch


class KeepStates(ConnectorV2):
    """Module-to-env: takes STATE_OUT away and keeps what a learner will need."""

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Move STATE_OUT from the batch into the episodes."""
        if Columns.STATE_OUT not in batch:
            return batch
        after = batch.pop(Columns.STATE_OUT)
        length = rl_module.model_config["max_seq_len"]
        for episode in episodes:
            # An episode that ended was replaced meanwhile by one that has yet to begin.
            if (episode.id_,) in after:
                (state,) = after[(episode.id_,)]
                episode.custom_data[KEY].advance(len(episode), length, state)
        return batch


class ChunkStates(ConnectorV2):
    """Learner: cuts episodes into padded sequences, each with the state before its first step.

    RLlib's own pieces cut and pad, called from here since they do nothing once STATE_IN is there.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pieces = (
            AddObservationsFromEpisodesToBatch(as_learner_connector=True),
            AddColumnsFromEpisodesToTrainBatch(),
            AddTimeDimToBatchAndZeroPad(as_learner_connector=True),
        )

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Add all columns, then STATE_IN."""
        for piece in self.pieces:
            batch = piece(rl_module=rl_module, batch=batch, episodes=episodes, **kwargs)
        length = rl_module[DEFAULT_MODULE_ID].model_config["max_seq_len"]
        for episode in episodes:
            given = states_of(episode).before_sequences(len(episode), length)
            self.add_n_batch_items(batch, Columns.STATE_IN, given, len(given), episode)
        return batch


def states_of(episode: SingleAgentEpisode) -> EpisodeStates:
    """Return what the other pieces kept.

    Raises:
        DataError: If they kept nothing.
    """
    held = episode.custom_data.get(KEY)
    if not isinstance(held, EpisodeStates):
        raise DataError(
            "an episode has no memory states; allowed: episodes sampled with memory_config, "
            "num_learners 0 or 1 (several learners cut episodes anywhere)"
        )
    return held
