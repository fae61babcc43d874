"""What a memory changes in a LeRobot policy, whichever policy it is."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from lerobot_policy_engram.frames import check_finite, evaluating, window_starts
from lerobot_policy_engram.gated_memory import GatedMemory
from lerobot_policy_engram.whole_checkpoint import load_whole

PREFIX = "engram."
"""What the names of the memory's weights begin with, in a policy and in its checkpoint."""


class RememberingPolicy:
    """A LeRobot policy with a memory; it comes before the policy's own class.

    Acting, every call of `select_action` writes the frame into the memory, also while actions that
    were planned before are still queued. Learning, `forward` runs the memory over a window of
    frames and computes the loss of the last one; `forward_chunk` learns from every frame of a
    stream and hands the state on.

    Each kind of policy says what the memory is told of a frame (`frame_features`), where it listens
    to the memory (`hearing`), and where it queues its actions.
    """

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self.attach()

    def attach(self) -> None:
        """Add the memory that the configuration names, with fresh weights."""
        like = next(self.parameters())
        memory = GatedMemory(self.feature_width(), self.read_width(), self.config.memory)
        self.engram = memory.to(like.device)
        self.reset()

    # What each kind of policy says of itself.

    def feature_width(self) -> int:
        """Width of `frame_features`."""
        raise NotImplementedError

    def read_width(self) -> int:
        """Width of the feature that the reading is added to."""
        raise NotImplementedError

    def frame_features(self, frames: dict[str, Tensor]) -> Tensor:
        """Return what the memory is told: `[N, F]` of N frames, from the policy's own encoders."""
        raise NotImplementedError

    def hearing(self, read: Tensor) -> AbstractContextManager[None]:
        """Add a reading `[N, D]` to the policy's own features while the context lasts."""
        raise NotImplementedError

    def present(self, window: Tensor) -> Tensor:
        """Cut from a window `[B, T, ...]` what the policy itself looks at."""
        raise NotImplementedError

    def newest(self, frames: Tensor) -> Tensor:
        """Cut the last frame from what the policy itself looks at."""
        return frames

    def action_queue(self) -> deque[Tensor] | None:
        """Return the planned actions, each `[B, A]`; None where plans are not queued."""
        raise NotImplementedError

    def plan(self, batch: dict[str, Any]) -> Tensor:
        """Return a plan `[B, n, A]` of every row, without queueing it."""
        # A copy: some policies convert the units of a batch in place.
        copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch.items()}
        return super().predict_action_chunk(copied)  # type: ignore[misc]

    def begin_rows(self, rows: Bool[Tensor, " B"], batch: dict[str, Any]) -> None:
        """Forget what else the policy keeps of the past of some rows."""

    def initial_state(self, rows: int) -> Any:
        """Return the empty memory of `rows` rows, for `forward_chunk`."""
        return self.engram.initial_state(rows)

    # Acting.

    def reset(self) -> None:
        """Begin a new episode in every row."""
        super().reset()  # type: ignore[misc]
        self._state: Any = None
        self._begins: Tensor | None = None
        self._is_hearing = False

    def reset_rows(self, mask: Bool[Tensor, " B"]) -> None:
        """Begin a new episode in some rows of the batch, at the next call of `select_action`.

        The other rows keep their memory and their planned actions. Rows that begin are planned
        anew; their plan then ends with that of the others.

        Raises:
            InvalidValueError: If the mask has another length than the batch, or the policy does
                not queue its actions (ACT's temporal ensemble).
        """
        if self._begins is None:
            return  # nothing was seen yet: every row begins
        if mask.shape != self._begins.shape or mask.dtype != torch.bool:
            raise InvalidValueError(
                "mask", f"{mask.dtype} {list(mask.shape)}", f"bool {list(self._begins.shape)}"
            )
        if self.action_queue() is None:
            raise InvalidValueError("temporal_ensemble_coeff", "set", "none, to reset single rows")
        self._begins = self._begins | mask.to(self._begins.device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Write the frame, and act on what the memory then reads."""
        with self._acting(batch):
            return super().select_action(batch, **kwargs)  # type: ignore[misc]

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Plan; a frame that does not come through `select_action` is written here."""
        if self._is_hearing:
            return super().predict_action_chunk(batch, **kwargs)  # type: ignore[misc]
        with self._acting(batch):
            return super().predict_action_chunk(batch, **kwargs)  # type: ignore[misc]

    @torch.no_grad()
    def observe(self, batch: dict[str, Any]) -> None:
        """Write a frame and plan nothing, for whoever plans apart from acting.

        An engine that calls `predict_action_chunk` now and then passes on the frame of that moment
        alone; the memory is to see those between too, as it did in training.
        """
        with self._acting(batch):
            pass

    @contextmanager
    def _acting(self, batch: dict[str, Any]) -> Iterator[None]:
        self.eval()  # type: ignore[attr-defined]  # as LeRobot's policies do, but before the memory
        check_finite(batch, self._observed())
        features = self._features({key: batch[key] for key in self._observed()})
        rows = len(features)
        if self._begins is None:
            self._state = self.engram.initial_state(rows)
            self._begins = torch.ones(rows, dtype=torch.bool, device=features.device)
            replanned = torch.zeros_like(self._begins)
        elif len(self._begins) != rows:
            raise InvalidValueError("rows of the batch", rows, f"{len(self._begins)} until reset()")
        else:
            replanned = self._begins
        read, self._state = self.engram.step(features, self._state, self._begins)
        self._begins = torch.zeros_like(self._begins)
        with self.hearing(read):
            self._is_hearing = True
            try:
                if replanned.any():
                    self._replan(replanned, batch)
                yield
            finally:
                self._is_hearing = False

    def _replan(self, rows: Bool[Tensor, " B"], batch: dict[str, Any]) -> None:
        self.begin_rows(rows, batch)
        queue = self.action_queue()
        assert queue is not None
        if not queue:
            return  # all rows are planned anyway
        chunk = self.plan(batch)
        for ahead, planned in enumerate(list(queue)):
            queue[ahead] = torch.where(rows[:, None], chunk[:, ahead], planned)

    # Learning.

    def forward(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the policy's loss on the last frame of each window, and its remarks.

        The memory is empty where a window begins, so nothing older than the window is learned.

        Args:
            batch: Observations `[B, T, ...]` with `<key>_is_pad [B, T]`, as a dataset with this
                policy's `observation_delta_indices` gives; the rest as the policy takes it.
            args: Passed on.
            kwargs: Passed on.
        """
        keys = self._observed()
        start = window_starts(batch, keys)  # [T, B]
        frames = {key: batch[key].transpose(0, 1).flatten(0, 1) for key in keys}
        features = self._features(frames).unflatten(0, start.shape)
        reads, _ = self.engram(features, self.engram.initial_state(start.shape[1]), start)
        seen = [*keys, *(f"{key}_is_pad" for key in keys)]
        batch = {**batch, **{key: self.present(batch[key]) for key in seen}}
        with self.hearing(reads[-1]):
            return super().forward(batch, *args, **kwargs)  # type: ignore[misc]

    def forward_chunk(
        self, batch: dict[str, Any], state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Tensor, dict[str, Any] | None, Any]:
        """Return the loss on every frame of a chunk, the policy's remarks, and the state after.

        Args:
            batch: T·B samples, time first, as `EpisodeChunkSampler` orders them; each is what the
                policy without memory learns from (`config.frame_config()`).
            state: Of the memory before the chunk; `initial_state(B)` at first, then
                what the chunk before returned, detached.
            start: Samples that are the first of their episode.
        """
        frames = {key: self.newest(batch[key]) for key in self._observed()}
        features = self._features(frames)
        if len(features) != start.numel():
            raise InvalidValueError("samples", len(features), f"T·B = {start.numel()}")
        reads, state = self.engram(features.unflatten(0, start.shape), state, start)
        with self.hearing(reads.flatten(0, 1)):
            loss, remarks = super().forward(batch)  # type: ignore[misc]
        return loss, remarks, state

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return the policy's own groups, and the memory's with its own learning rate."""
        ours = list(self.engram.parameters())
        known = {id(parameter) for parameter in ours}
        groups = list(super().get_optim_params())  # type: ignore[misc]
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        theirs = [
            {**group, "params": [p for p in group["params"] if id(p) not in known]}
            for group in groups
        ]
        lr = self.config.memory.lr
        return [*theirs, {"params": ours} if lr is None else {"params": ours, "lr": lr}]

    # Loading.

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        """Fill a policy from its own checkpoint, or from one of the policy without memory.

        A checkpoint without any memory leaves the memory new; everything else must be whole.

        Raises:
            DataError: If the file is missing, damaged, or lacks a weight or has one too many.
        """
        del strict
        load_whole(model, model_file, map_location, new=PREFIX)
        return model

    def _observed(self) -> list[str]:
        return list(self.config.input_features)

    def _features(self, frames: dict[str, Tensor]) -> Tensor:
        learn = torch.is_grad_enabled() and self.config.memory.through_features
        with evaluating(self), torch.set_grad_enabled(learn):  # type: ignore[arg-type]
            return self.frame_features(frames).float()
