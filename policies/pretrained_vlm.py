"""Vision-language models that were trained elsewhere, from a folder on this machine."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory.sequence.streams import Streams
from engram.policies.perception import (
    Compression,
    Felt,
    Perceiver,
    Sight,
    SightSize,
    SightStatistics,
    plain_statistics,
)
from engram.policies.pretrained_folder import LOCAL, config_of, load, reading, transformers
from engram.policies.pretrained_frozen import Frozen

TYPES = ("token_type_ids", "mm_token_type_ids")
"""Names under which models are told which tokens are of an image."""


class Prompts:
    """Instructions as a vision-language model reads them: whole prompts, images included.

    A prompt is what the model's own processor makes of one image per camera and the instruction,
    by the model's chat template where it has one, else the images first. Numbers are those of the
    tokenizer plus one; number 0 is no word, as in a `Vocabulary`.

    Args:
        path: The folder of the model.
        cameras: Images in a prompt.
        image: Their height and width [pixels].
        spare: Most tokens of an instruction.
    """

    def __init__(self, path: str, *, cameras: int, image: int, spare: int = 32):
        if cameras < 1:
            raise InvalidValueError("cameras", cameras, "1 or more")
        self.folder, _ = config_of(path)
        with reading(self.folder):
            self.processor = transformers().AutoProcessor.from_pretrained(self.folder, **LOCAL)
        if not hasattr(self.processor, "image_processor"):
            raise InvalidValueError("path", str(path), "folders of vision-language models")
        self.blank = [np.zeros((image, image, 3), dtype=np.uint8)] * cameras
        self.known: dict[str, Tensor] = {}
        self.words = range(len(self.processor.tokenizer))
        self.length = len(self._numbers("")) + spare

    def encode(self, instructions: Iterable[str]) -> Int[Tensor, "n W"]:
        """Return the numbers of the prompts, zero padded at the end.

        Raises:
            InvalidValueError: If an instruction is empty, or too long.
        """
        rows = []
        for text in instructions:
            if not text.strip():
                raise InvalidValueError("instruction", text, "one word or more")
            numbers = self._numbers(text)
            if len(numbers) > self.length:
                allowed = f"{self.length} tokens with the images; this has {len(numbers)}"
                raise InvalidValueError("instruction", text, allowed)
            rows.append(nn.functional.pad(numbers, (0, self.length - len(numbers))))
        return torch.stack(rows)

    def prepare(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Return what the model takes of images, by its own processor, and dummy text."""
        text = [self._text("")] * len(images)
        return dict(self.processor(text=text, images=images, return_tensors="pt"))

    def _numbers(self, text: str) -> Tensor:
        if text not in self.known:
            made = self.processor(text=[self._text(text)], images=[self.blank], return_tensors="pt")
            self.known[text] = made["input_ids"][0] + 1
        return self.known[text]

    def _text(self, text: str) -> str:
        count = len(self.blank)
        if getattr(self.processor, "chat_template", None) is None:
            return self.processor.image_token * count + text
        content = [{"type": "image"}] * count + [{"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )


class PretrainedVLM(Perceiver):
    """A vision-language model as perception: its image tokens, and where it ends reading.

    Perceptual tokens are the image tokens where they enter the language model, compressed. The
    cognitive token is the last hidden state at the last token of the prompt (MemoryVLA, §3.2).

    Deviations: image tokens are read after the model's own projector, not before it; what the
    robot feels is added to the cognitive token, which is normalised.

    Args:
        sizes: Of the parts of a sight; `words` and `length` are those of the model's `Prompts`.
        path: The folder of the model.
        spare: Most tokens of an instruction.
        perceptual: Features of a perceptual token.
        cognitive: Features of the cognitive token; as many as the model's unless given.
        inside: Features within the compression.
        trained: Whether the model learns; else it is `Frozen`.
        bfloat16: Whether it is loaded and runs in half precision.
        statistics: By which proprioception and the oracle's numbers are standardized; not at all
            unless given.

    Raises:
        InvalidValueError: If there is no such folder, no vision-language model in it, or if there
            are no cameras, or objects, which the model cannot read.
        DataError: If the folder is damaged, lacks weights or holds another kind of model.
        MissingPackageError: If the library is not installed.
    """

    def __init__(
        self,
        sizes: SightSize,
        *,
        path: str,
        spare: int = 32,
        perceptual: int = 256,
        cognitive: int | None = None,
        inside: int = 512,
        trained: bool = False,
        bfloat16: bool = False,
        statistics: SightStatistics | None = None,
    ):
        super().__init__()
        if trained and bfloat16:
            # Steps of 1e-5 and averages of weights are rounded away in half precision.
            raise InvalidValueError("bfloat16", bfloat16, "False where the model is trained")
        if sizes.objects[0]:
            raise InvalidValueError("objects", list(sizes.objects), "none: the model sees images")
        prompts = Prompts(path, cameras=len(sizes.cameras), image=sizes.image, spare=spare)
        for name, size, wanted in (
            ("words", sizes.words, len(prompts.words)),
            ("length", sizes.length, prompts.length),
        ):
            if size != wanted:
                raise InvalidValueError(name, size, [wanted])
        self.sizes, self.prompts, self.trained = sizes, prompts, trained
        kind = transformers().AutoModelForImageTextToText
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        whole, missing = load(prompts.folder, kind, dtype=dtype)
        model: Any = whole.base_model  # without what predicts words
        lacking = [name for name in missing if not name.startswith("lm_head")]
        if lacking:
            raise DataError(f"{prompts.folder} lacks weights: {', '.join(lacking)}")
        self.held = model.train(self.training) if trained else Frozen(model, prompts.folder)
        config = model.config
        self.image = int(getattr(config, "image_token_id", None) or config.image_token_index)
        tokens = int((prompts.encode(["a"]) == self.image + 1).sum())
        if not tokens:
            raise DataError(f"{prompts.folder}: prompts have no token {self.image} of images")
        width = int(config.get_text_config().hidden_size)
        self.perceptual, self.cognitive = (tokens, perceptual), (1, cognitive or width)
        self.compression = Compression(width, inside, perceptual)
        self.sum_up = nn.Linear(width, cognitive) if cognitive else nn.Identity()
        self.felt = Felt(sizes, statistics or plain_statistics(sizes), cognitive or width)
        self.norm = nn.LayerNorm(cognitive or width)

    @property
    def model(self) -> Any:
        """The library's."""
        return self.held.model if isinstance(self.held, Frozen) else self.held

    def forward(self, sight: Sight) -> Streams:
        """Perceive sights; there is one cognitive token. Images are prepared on the host."""
        batch = sight.proprioception.shape[:-1]
        self._check(sight, len(batch))
        words = sight.words.flatten(0, len(batch) - 1)
        views = [
            sight.images[n].flatten(0, len(batch) - 1).cpu().numpy() for n in self.sizes.cameras
        ]
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            seen, meant = self._read(words, [list(row) for row in zip(*views, strict=True)])
        felt = self.felt(sight).flatten(0, len(batch) - 1)
        dtype = sight.proprioception.dtype  # not that of `felt`, which mixed precision rounds
        perceptual = self.compression(seen.to(dtype))
        cognitive = self.norm(self.sum_up(meant.to(dtype)) + felt)[:, None]
        return Streams(perceptual.unflatten(0, batch), cognitive.unflatten(0, batch))

    def _read(self, words: Tensor, images: list[list[np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Return image tokens `[n, N, D]` and the last hidden state `[n, D]`."""
        device, present = words.device, words > 0
        tokens = torch.where(present, words - 1, 0)
        pictured = (tokens == self.image) & present
        counts = pictured.sum(1)
        if bool((counts != self.perceptual[0]).any()):
            allowed = f"prompts of `Prompts`, with {self.perceptual[0]} image tokens"
            raise InvalidValueError("words", f"{counts.tolist()} image tokens", allowed)
        given = self.prompts.prepare(images)
        for name in ("input_ids", "attention_mask"):
            given.pop(name)
        for name in TYPES:
            if name in given:
                given[name] = pictured.long()
        given = {
            name: x.to(device, self.model.dtype if x.is_floating_point() else None)
            for name, x in given.items()
        }
        entered: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            entered.append(named["inputs_embeds"])

        handle = _decoder(self.model).register_forward_pre_hook(keep, with_kwargs=True)
        try:
            found = self.model(
                input_ids=tokens, attention_mask=present.long(), use_cache=False, **given
            )
        finally:
            handle.remove()
        (embedded,) = entered
        last = present.sum(1) - 1
        seen = embedded[pictured].unflatten(0, (len(words), self.perceptual[0]))
        return seen, found.last_hidden_state[torch.arange(len(words), device=device), last]


def _decoder(model: Any) -> nn.Module:
    """Return the language model within."""
    for name in ("language_model", "text_model"):
        if hasattr(model, name):
            return getattr(model, name)
    return model.get_decoder()
