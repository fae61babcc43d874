"""Image encoders that were trained elsewhere, from a folder on this machine."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from engram.kernels.errors import DataError, InvalidValueError
from engram.policies.pretrained_folder import LOCAL, config_of, load, reading, timm, transformers
from engram.policies.pretrained_frozen import Frozen

LEADING = 16
"""Most tokens that an encoder may put before those of the patches: class, registers."""
FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""How images may be resized, by the numbers and names that folders use."""


class Input(NamedTuple):
    """What an encoder was trained on."""

    size: tuple[int, int]
    """Height and width [pixels]."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of red, green and blue, between 0 and 1."""
    filter: str


class PretrainedVision(nn.Module):
    """An image encoder of `timm` or `transformers`; one patch, one token.

    The folder is what these libraries save: `config.json`, safetensors and, of transformers, the
    settings of the image processor. Of a model of images and text the image tower is taken.
    Images are resized and normalised as the encoder was trained. Class and register tokens are
    left out.

    Deviation: where the processor resizes to more than the encoder takes and crops the middle,
    the whole image is resized: what a robot grasps may stand at the border.

    Args:
        size: Height and width of the images [pixels].
        features: What the policy asks for; not used, the encoder has its own `width`.
        path: The folder.
        trained: Whether the encoder learns; else it is `Frozen`.

    Raises:
        InvalidValueError: If there is no such folder, or no image encoder in it.
        DataError: If the folder is damaged, or lacks weights that the tokens depend on.
        MissingPackageError: If the library is not installed.
    """

    def __init__(self, size: int, features: int, *, path: str, trained: bool = False):
        super().__init__()
        if size < 1:
            raise InvalidValueError("image size", size, "1 or more")
        folder, config = config_of(path)
        self.size, self.trained = size, trained
        build = _from_timm if "architecture" in config else _from_transformers
        model, self.input, missing, self._encode = build(folder)
        for name, value in (("mean", self.input.mean), ("std", self.input.std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        # Heads that nobody reads need no weights, and would be trained by nothing.
        weights = dict(model.named_parameters())
        image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        tokens = self._encode(model.eval(), self.prepare(image))
        _, self.tokens, self.width = tokens.shape
        used = torch.autograd.grad(tokens.sum(), list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), used, strict=True):
            weight.requires_grad_(trained and gradient is not None)
            if gradient is not None and name in missing:
                raise DataError(f"{folder} lacks the weights {name}")
        self.held = model.train(self.training) if trained else Frozen(model, folder)

    @property
    def model(self) -> nn.Module:
        """The library's."""
        return self.held.model if isinstance(self.held, Frozen) else self.held

    def forward(self, image: UInt8[Tensor, "n S S 3"]) -> Float[Tensor, "n N D"]:
        """Encode images."""
        if tuple(image.shape[1:]) != (self.size, self.size, 3):
            allowed = [self.size, self.size, 3]
            raise InvalidValueError("image shape", list(image.shape[1:]), allowed)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return self._encode(self.model, self.prepare(image))

    def prepare(self, image: UInt8[Tensor, "n S S 3"]) -> Float[Tensor, "n 3 h w"]:
        """Resize and normalise images."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        # Where channels lie last, torch 2.13 corrupts memory in the backward pass of strided 1 x 1
        # convolutions on the CPU.
        x = rearrange(image, "n h w c -> n c h w").to(mean.dtype).contiguous()
        if tuple(x.shape[2:]) != self.input.size:
            x = F.interpolate(x, self.input.size, mode=self.input.filter, antialias=True)
            x = x.clamp(0, 255).round()  # between two resizings images are bytes everywhere
        return (x / 255 - mean) / std


Encode = Callable[[Any, Tensor], Tensor]
Built = tuple[nn.Module, Input, list[str], Encode]


def _from_transformers(folder: Path) -> Built:
    library = transformers()
    with reading(folder):
        config = library.AutoConfig.from_pretrained(folder, **LOCAL)
        config = getattr(config, "vision_config", config)
        processor = library.AutoImageProcessor.from_pretrained(folder, **LOCAL)
    model, missing = load(folder, library.AutoModel, config=config, dtype=torch.float32)
    if getattr(model, "main_input_name", None) != "pixel_values":
        seen = f"{folder} ({config.model_type})"
        raise InvalidValueError("path", seen, "folders of image encoders")
    with reading(folder):
        cropped = getattr(processor, "do_center_crop", False)
        pixels = dict(processor.crop_size if cropped else processor.size)
        side = pixels.get("shortest_edge")
        size = (pixels.get("height") or side, pixels.get("width") or side)
        plain = not getattr(processor, "do_normalize", True)
        scale = getattr(processor, "rescale_factor", None) or 1 / 255
        if not getattr(processor, "do_rescale", True) or abs(scale * 255 - 1) > 1e-6:
            raise DataError(f"{folder} rescales pixels by {scale}; allowed: by 1/255")
        taken = Input(
            (int(size[0]), int(size[1])),  # type: ignore[arg-type]
            (0.0, 0.0, 0.0) if plain else tuple(processor.image_mean),
            (1.0, 1.0, 1.0) if plain else tuple(processor.image_std),
            _filter(folder, processor.resample),
        )
    return model, taken, missing, _encode_transformers


def _encode_transformers(model: Any, x: Tensor) -> Tensor:
    patch = getattr(model.config, "patch_size", None)
    found = model(pixel_values=x).last_hidden_state
    if found.ndim == 4:
        return rearrange(found, "n d h w -> n (h w) d")
    if isinstance(patch, int):
        cells = (x.shape[2] // patch) * (x.shape[3] // patch)
        leading = found.shape[1] - cells
        if 0 <= leading <= LEADING:
            return found[:, leading:]
    if math.isqrt(found.shape[1]) ** 2 != found.shape[1]:
        seen = f"{model.config.model_type} ({found.shape[1]} tokens)"
        raise InvalidValueError("encoder", seen, "encoders with a token per patch")
    return found


def _from_timm(folder: Path) -> Built:
    library = timm()
    with reading(folder):
        model = library.create_model(
            f"local-dir:{folder.resolve()}", pretrained=True, num_classes=0
        )
        data = library.data.resolve_model_data_config(model)
        taken = Input(
            tuple(data["input_size"][1:]),
            tuple(data["mean"]),
            tuple(data["std"]),
            _filter(folder, data["interpolation"]),
        )
    return model, taken, [], _encode_timm


def _encode_timm(model: Any, x: Tensor) -> Tensor:
    found = model.forward_features(x)
    if found.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return rearrange(found, "n h w d -> n (h w) d")
    if found.ndim == 4:
        return rearrange(found, "n d h w -> n (h w) d")
    return found[:, getattr(model, "num_prefix_tokens", 0) :]


def _filter(folder: Path, seen: Any) -> str:
    key = seen if isinstance(seen, str) else int(seen)
    if key not in FILTERS:
        raise DataError(f"{folder}: images are resized by {seen!r}; allowed: bilinear, bicubic")
    return FILTERS[key]
