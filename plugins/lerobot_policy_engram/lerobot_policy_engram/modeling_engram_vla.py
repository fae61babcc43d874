"""engram's vision-language-action policy (MemoryVLA's plan, arXiv 2508.19236) as LeRobot's."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.policies.action_expert import ActionExpert
from engram.policies.action_scale import ActionScale
from engram.policies.denoising import Diffusion, Flow
from engram.policies.language import Vocabulary
from engram.policies.perception import Perception, Sight, SightSize
from engram.policies.recollection import Recollection
from engram.policies.vla import VLA, ActingState, Remembered
from lerobot_policy_engram.configuration_engram_vla import EngramVLAConfig
from lerobot_policy_engram.frames import check_finite, window_starts
from lerobot_policy_engram.named_memory import make_stream_memory
from lerobot_policy_engram.named_vision import make_vision
from lerobot_policy_engram.whole_checkpoint import load_whole


class EngramVLAPolicy(PreTrainedPolicy):
    """Perception, memory and action expert, in LeRobot's form.

    Acting, every call of `select_action` writes the frame into the memory, and each row draws its
    own chunk when its own is used up. Learning, `forward` runs the memory over a window and learns
    the actions of its last `config.moments` frames; `forward_chunk` learns those of every frame of
    a stream and hands the state on.

    Args:
        config: Settings.
        dataset_meta: Of a LeRobotDataset, for the words of its tasks where the settings name none.
        kwargs: Ignored: LeRobot passes to all policies what some of them need.
    """

    config_class = EngramVLAConfig
    name = "engram_vla"
    config: EngramVLAConfig

    def __init__(self, config: EngramVLAConfig, dataset_meta: Any = None, **kwargs: Any):
        super().__init__(config)
        config.validate_features()
        if not config.words:
            if dataset_meta is None:
                raise InvalidValueError("policy.words", [], "one or more, or a dataset's tasks")
            tasks = [str(task) for task in dataset_meta.tasks.index]
            words = Vocabulary.of(tasks, length=config.instruction_length)
            words.encode(tasks)  # one that is too long is to be refused now, and not in training
            config.words = words.words
        self.vocabulary = Vocabulary(config.words, length=config.instruction_length)
        self.vla = _build(config, len(self.vocabulary.words))
        self.recollection = (
            Recollection(self.vla.perception, 0, past=config.past) if config.past else None
        )
        self.reset()

    def get_optim_params(self) -> Any:
        """Return all weights."""
        return self.parameters()

    def initial_state(self, rows: int) -> Any:
        """Return the empty memory of `rows` rows, for `forward_chunk`."""
        return self.vla.memory.initial_state(rows)

    def reset(self) -> None:
        """Begin a new episode in every row."""
        self._state: ActingState | None = None
        self._begins = torch.zeros(0, dtype=torch.bool)

    def reset_rows(self, mask: Bool[Tensor, " B"]) -> None:
        """Begin a new episode in some rows of the batch, at the next call of `select_action`.

        Raises:
            InvalidValueError: If the mask has another length than the batch.
        """
        if self._state is None:
            return  # nothing was seen yet: every row begins
        if mask.shape != self._begins.shape or mask.dtype != torch.bool:
            raise InvalidValueError(
                "mask", f"{mask.dtype} {list(mask.shape)}", f"bool {list(self._begins.shape)}"
            )
        self._begins = self._begins | mask.to(self._begins.device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Write the frame, and act on what the memory then reads."""
        sight, state = self._sight_and_state(batch)
        action, self._state = self.vla.act(sight, state, self._begins)
        self._begins = torch.zeros_like(self._begins)
        return action

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Write the frame, and return the chunk `[B, C, A]` that is drawn after it."""
        return self.vla.draw(self._written(batch))

    @torch.no_grad()
    def observe(self, batch: dict[str, Any]) -> None:
        """Write a frame and plan nothing, for whoever plans apart from acting."""
        self._written(batch)

    def forward(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss on the last `moments` frames of each window.

        Args:
            batch: As a dataset with this policy's delta indices gives, with `task`.
            kwargs: Ignored.
        """
        keys = list(self.config.input_features)
        start = window_starts(batch, keys)  # [T, B]
        frames = {key: batch[key].transpose(0, 1) for key in keys}
        sight = self._sight(frames, batch)
        remembered, _ = self.vla(sight, self.initial_state(start.shape[1]), start)
        last = self.config.moments
        learnt: Remembered = states.tree_map(lambda x: x[-last:].flatten(0, 1), remembered)
        padded = batch[f"{keys[0]}_is_pad"].t()  # [T, B]
        wanted = last - 1 + self.config.chunk_size
        if batch[ACTION].shape[1] != wanted:
            raise DataError(f"{ACTION} has {batch[ACTION].shape[1]} steps; allowed: {wanted}")
        # Chunk c of a row begins at its learnt frame c.
        action = rearrange(
            batch[ACTION].unfold(1, self.config.chunk_size, 1), "B M A C -> (M B) C A"
        )
        absent = rearrange(
            batch[f"{ACTION}_is_pad"].unfold(1, self.config.chunk_size, 1), "B M C -> M B C"
        )
        real = ~(absent | padded[-last:, :, None]).flatten(0, 1)
        loss, remarks = self._loss(learnt, action, real)
        return self._with_past(loss, remarks, remembered, sight, start, ~padded)

    def forward_chunk(
        self, batch: dict[str, Any], state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Tensor, dict[str, float], Any]:
        """Return the loss on every frame of a chunk, remarks, and the memory's state after it.

        Args:
            batch: T·B samples, time first, as `EpisodeChunkSampler` orders them, of a dataset with
                the delta indices of `config.frame_config()`.
            state: Of the memory before the chunk; `initial_state(B)` at first, then what the chunk
                before returned, detached.
            start: Samples that are the first of their episode.
        """
        if len(batch[ACTION]) != start.numel():
            raise InvalidValueError("samples", len(batch[ACTION]), f"T·B = {start.numel()}")
        keys = list(self.config.input_features)
        frames = {key: batch[key][:, -1].unflatten(0, start.shape) for key in keys}
        sight = self._sight(frames, batch)
        remembered, state = self.vla(sight, state, start)
        learnt: Remembered = states.tree_map(lambda x: x.flatten(0, 1), remembered)
        loss, remarks = self._loss(learnt, batch[ACTION], ~batch[f"{ACTION}_is_pad"])
        every = torch.ones_like(start)
        return *self._with_past(loss, remarks, remembered, sight, start, every), state

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        """Fill a policy from its checkpoint.

        Raises:
            DataError: If the file is missing, damaged, or lacks a weight or has one too many.
        """
        del strict
        load_whole(model, model_file, map_location)
        return model

    def _loss(self, learnt: Remembered, action: Tensor, real: Tensor) -> Any:
        error = self.vla.loss(learnt, action, repeats=self.config.repeats)
        loss = torch.where(real, error, 0.0).sum() / real.sum().clamp(min=1)
        return loss, {"action_loss": loss.item()}

    def _with_past(
        self,
        loss: Tensor,
        remarks: dict[str, float],
        remembered: Remembered,
        sight: Sight,
        start: Bool[Tensor, "T B"],
        real: Bool[Tensor, "T B"],
    ) -> tuple[Tensor, dict[str, float]]:
        """Add the loss on what was seen before, where there is one.

        Raises:
            InvalidValueError: If there is, and single frames, which have no past.
        """
        if self.recollection is None:
            return loss, remarks
        if len(start) < 2:
            raise InvalidValueError("frames", len(start), "2 or more, with policy.past")
        no_cue = sight.proprioception[..., :0]
        looked = self.vla.look(remembered.fused)  # what is acted on
        recalled = self.recollection(looked, sight, no_cue, start, real=real)["recall"]
        return loss + recalled, {**remarks, "past_loss": recalled.item()}

    def _written(self, batch: dict[str, Any]) -> Remembered:
        sight, state = self._sight_and_state(batch)
        remembered, memory = self.vla.step(sight, state.memory, self._begins)
        self._state = state._replace(memory=memory)
        self._begins = torch.zeros_like(self._begins)
        return remembered

    def _sight_and_state(self, batch: dict[str, Any]) -> tuple[Sight, ActingState]:
        self.eval()  # as LeRobot's policies do
        keys = list(self.config.input_features)
        check_finite(batch, keys)
        sight = self._sight({key: batch[key] for key in keys}, batch)
        rows = len(sight.proprioception)
        if self._state is None:
            device = sight.proprioception.device
            self._state = self.vla.initial_state(rows)
            self._begins = torch.ones(rows, dtype=torch.bool, device=device)
        elif len(self._begins) != rows:
            raise InvalidValueError("rows of the batch", rows, f"{len(self._begins)} until reset()")
        return sight, self._state

    def _sight(self, frames: dict[str, Tensor], batch: dict[str, Any]) -> Sight:
        """Convert frames `[*shape, ...]`; tasks are one per frame, or per row of the last axis."""
        felt = torch.cat([frames[key] for key in (OBS_STATE, OBS_ENV_STATE) if key in frames], -1)
        shape = felt.shape[:-1]
        images = {key: self._image(frames[key]) for key in self.config.image_features}
        tasks = batch.get("task")
        if isinstance(tasks, str) or tasks is None or len(tasks) not in (shape[-1], shape.numel()):
            raise DataError(f"task is {tasks!r}; allowed: a list of {shape[-1]} instructions")
        words = self.vocabulary.encode(list(tasks)).to(felt.device)
        every = len(words) == shape.numel()
        words = words.unflatten(0, shape) if every else words.expand(*shape, -1)
        return Sight(images, felt, words, felt.new_zeros(*shape, 0, 0), felt.new_zeros(*shape, 0))

    def _image(self, image: Tensor) -> Tensor:
        """Turn `[*batch, 3, h, w]` in [0, 1] into `[*batch, S, S, 3]` bytes."""
        flat, side = image.flatten(0, -4), self.config.image_size
        if flat.shape[-2:] != (side, side):
            flat = F.interpolate(flat, (side, side), mode="bilinear", antialias=True)
        pixels = (flat * 255).round().clamp(0, 255).to(torch.uint8)
        return rearrange(pixels, "n c h w -> n h w c").unflatten(0, image.shape[:-3])


def _build(config: EngramVLAConfig, words: int) -> VLA:
    states_felt = (config.robot_state_feature, config.env_state_feature)
    sizes = SightSize(
        cameras=tuple(config.image_features),
        image=config.image_size,
        proprioception=sum(state.shape[0] for state in states_felt if state),
        words=words,
        length=config.instruction_length,
        objects=(0, 0),
        oracle=0,
    )
    perception = Perception(
        sizes,
        vision=make_vision(config.vision),
        perceptual=config.perceptual_width,
        cognitive=config.cognitive_width,
    )
    assert config.action_feature is not None
    one = torch.ones(config.action_feature.shape[0])
    denoising = Diffusion if config.diffusion else Flow
    return VLA(
        perception,
        partial(make_stream_memory, config.memory),
        partial(
            ActionExpert,
            width=config.expert_width,
            depth=config.expert_depth,
            modulated=config.modulated,
        ),
        ActionScale(-one, one),  # LeRobot's processors scale by the quantiles
        chunk=config.chunk_size,
        execute=config.n_action_steps,
        denoising=denoising(config.denoising_steps),
        looks=config.looks,
        guidance=config.guidance,
        temperature=config.temperature,
    )
