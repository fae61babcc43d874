"""What a policy sees, reads and feels, as perceptual tokens and a cognitive token."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.streams import Streams
from engram.policies.attention import Reader
from engram.policies.language import WordEncoder
from engram.policies.vision import ConvPatches


class Sight(NamedTuple):
    """One observation, batched; what a robot does not have is of size 0."""

    images: dict[str, UInt8[Tensor, "*batch S S 3"]]
    """By camera."""
    proprioception: Float[Tensor, "*batch P"]
    """Joint angles and the like."""
    words: Int[Tensor, "*batch W"]
    """The instruction, as a `Language` numbers it."""
    objects: Float[Tensor, "*batch K F"]
    """Features of visible objects, where these are given instead of images."""
    oracle: Float[Tensor, "*batch Q"]
    """What must be remembered, for the control that is told."""


class SightSize(NamedTuple):
    """Sizes of the parts of a `Sight`."""

    cameras: tuple[str, ...]
    image: int
    """Height and width of every image [pixels]."""
    proprioception: int
    words: int
    """Words that the policy knows; tokens, with a vision-language model."""
    length: int
    """Words that an instruction may have; tokens of a whole prompt, likewise."""
    objects: tuple[int, int]
    """K and F."""
    oracle: int


class SightStatistics(NamedTuple):
    """Mean and standard deviation of numbers that a policy sees, over demonstrations."""

    proprioception: tuple[Float[Tensor, " P"], Float[Tensor, " P"]]
    objects: tuple[Float[Tensor, " F"], Float[Tensor, " F"]]
    """Of the objects that are in view."""
    cue: tuple[Float[Tensor, " Q"], Float[Tensor, " Q"]]
    """Of what must be remembered, once it is known."""


def plain_statistics(sizes: SightSize) -> SightStatistics:
    """Return those that change nothing."""
    counts = sizes.proprioception, sizes.objects[1], sizes.oracle
    return SightStatistics(*((torch.zeros(n), torch.ones(n)) for n in counts))


class Standardization(nn.Module):
    """(x − mean) / std; a number that never changes is only shifted.

    Args:
        mean: Of every number.
        std: Standard deviation of every number.
    """

    def __init__(self, mean: Float[Tensor, " F"], std: Float[Tensor, " F"]):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.where(std > 1e-6, std, 1.0))

    def forward(self, x: Float[Tensor, "*n F"]) -> Float[Tensor, "*n F"]:
        """Standardize."""
        return (x - self.mean) / self.std


class Felt(nn.Module):
    """What a robot feels, and is told, in as many features as asked for: W [P; Q], standardized.

    Args:
        sizes: Of the parts of a sight; with neither number it is 0.
        statistics: By which they are standardized.
        features: How many.
    """

    def __init__(self, sizes: SightSize, statistics: SightStatistics, features: int):
        super().__init__()
        self.features, count = features, sizes.proprioception + sizes.oracle
        self.standard = Standardization(*statistics.proprioception)
        self.standard_told = Standardization(*(x[: sizes.oracle] for x in statistics.cue))
        self.out = nn.Linear(count, features) if count else None

    def forward(self, sight: Sight) -> Float[Tensor, "*batch E"]:
        """Encode proprioception and the oracle's numbers."""
        felt, told = self.standard(sight.proprioception), self.standard_told(sight.oracle)
        if self.out is None:
            return felt.new_zeros(*felt.shape[:-1], self.features)
        return self.out(torch.cat([felt, told], -1))


class Compression(nn.Module):
    """Squeeze and excitation over tokens, then fewer features (MemoryVLA, §3.2).

    z = ReLU(W_1 LN v),  w = σ(W_3 ReLU(W_2 mean_n z_n)),  p_n = LN W_4 (z_n ⊙ w): features are
    compressed, not tokens. The squeeze follows the reduction, as in the first published code.

    Deviation: both norms. Without them tokens of a young network are a few thousandths, next to
    nothing beside the normed features that a bank mixes in, and its attention over them is flat.

    Args:
        features: Of the encoder's tokens.
        inside: Between W_1 and W_4.
        out: Of the perceptual tokens.
        reduction: By which W_2 narrows.
    """

    def __init__(self, features: int, inside: int, out: int, *, reduction: int = 16):
        super().__init__()
        self.reduce = nn.Linear(features, inside, bias=False)
        narrow = max(inside // reduction, 4)
        self.squeeze = nn.Sequential(
            nn.Linear(inside, narrow), nn.ReLU(), nn.Linear(narrow, inside), nn.Sigmoid()
        )
        self.out = nn.Linear(inside, out, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(features), nn.LayerNorm(out)])

    def forward(self, tokens: Float[Tensor, "n N V"]) -> Float[Tensor, "n N D"]:
        """Compress the tokens of one view."""
        z = F.relu(self.reduce(self.norms[0](tokens)))
        return self.norms[1](self.out(z * self.squeeze(z.mean(1, keepdim=True))))


class Perceiver(nn.Module):
    """Sights to streams: what a `VLA` sees with."""

    sizes: SightSize
    perceptual: tuple[int, int]
    """Number and features of the perceptual tokens."""
    cognitive: tuple[int, int]
    """Number and features of the cognitive tokens."""

    def forward(self, sight: Sight) -> Streams:
        """Perceive sights `[*batch, ...]`; the streams are `[*batch, N, D]` and `[*batch, M, E]`.

        Raises:
            InvalidValueError: If a camera is missing, a part has another size, or an image is
                not of bytes.
        """
        raise NotImplementedError

    def _check(self, sight: Sight, axes: int) -> None:
        sizes = self.sizes
        for name in sizes.cameras:
            if name not in sight.images:
                raise InvalidValueError("cameras", sorted(sight.images), list(sizes.cameras))
            shape = list(sight.images[name].shape[axes:])
            if shape != [sizes.image, sizes.image, 3]:
                raise InvalidValueError(f"image of {name!r}", shape, [sizes.image, sizes.image, 3])
            if (dtype := sight.images[name].dtype) != torch.uint8:
                raise InvalidValueError(f"image of {name!r}", dtype, [torch.uint8])
        for name, seen, allowed in (
            ("proprioception", sight.proprioception, (sizes.proprioception,)),
            ("objects", sight.objects, sizes.objects),
            ("oracle", sight.oracle, (sizes.oracle,)),
            ("words", sight.words, (sizes.length,)),
        ):
            if tuple(seen.shape[axes:]) != tuple(allowed):
                raise InvalidValueError(name, list(seen.shape[axes:]), list(allowed))


class Perception(Perceiver):
    """Turns sights into the two streams that a memory keeps.

    Every camera's image becomes tokens by an encoder that the cameras share, marked by camera;
    objects are tokens of their own. They are compressed into perceptual tokens. The cognitive
    token begins as what the robot feels and is told, and reads the tokens in `depth` layers.

    Args:
        sizes: Of the parts of a sight.
        perceptual: Features of a perceptual token.
        cognitive: Features of the cognitive token.
        vision: Builds the image encoder, given image size and features; with attributes `tokens`
            and `width`. `ConvPatches` unless given.
        features: Of the encoder's tokens, as asked for; the encoder may have its own.
        depth: Layers in which the cognitive token reads.
        heads: Attention heads of these.
        statistics: By which proprioception, objects and the oracle's numbers are standardized; not
            at all unless given.
    """

    def __init__(
        self,
        sizes: SightSize,
        *,
        perceptual: int = 64,
        cognitive: int = 128,
        vision: Callable[[int, int], nn.Module] = ConvPatches,
        features: int = 128,
        depth: int = 2,
        heads: int = 4,
        statistics: SightStatistics | None = None,
    ):
        super().__init__()
        self.sizes = sizes
        count, object_features = sizes.objects
        if not sizes.cameras and not count:
            raise InvalidValueError("cameras", "none", "one or more, or objects")
        if heads < 1 or cognitive % heads:
            raise InvalidValueError("heads", heads, f"divisors of cognitive = {cognitive}")
        self.vision: nn.Module | None = None
        tokens, width = 0, features
        if sizes.cameras:
            self.vision = vision(sizes.image, features)
            tokens, width = int(self.vision.tokens), int(self.vision.width)  # type: ignore
            self.camera = nn.Parameter(torch.randn(len(sizes.cameras), 1, width) * 0.02)
        if count:
            self.object_in = nn.Sequential(
                nn.Linear(object_features, width), nn.GELU(), nn.Linear(width, width)
            )
        statistics = statistics or plain_statistics(sizes)
        self.standard_object = Standardization(*statistics.objects)
        self.perceptual = (len(sizes.cameras) * tokens + count, perceptual)
        self.cognitive = (1, cognitive)
        self.compression = Compression(width, width, perceptual)
        self.words = WordEncoder(sizes.words, cognitive, length=sizes.length)
        self.felt = Felt(sizes, statistics, cognitive)
        self.readers = nn.ModuleList(Reader(cognitive, width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(cognitive)

    def forward(self, sight: Sight) -> Streams:
        """Perceive sights; there is one cognitive token."""
        batch = sight.proprioception.shape[:-1]
        self._check(sight, len(batch))
        views = []
        if self.vision is not None:
            names = self.sizes.cameras
            images = torch.stack([sight.images[name].flatten(0, len(batch) - 1) for name in names])
            seen = self.vision(images.flatten(0, 1))
            seen = rearrange(seen, "(v n) N D -> v n N D", v=len(names)) + self.camera[:, None]
            views += list(seen)
        if self.sizes.objects[0]:
            objects = sight.objects.flatten(0, len(batch) - 1)
            in_view = (objects != 0).any(-1, keepdim=True)
            objects = torch.where(in_view, self.standard_object(objects), 0.0)
            views.append(self.object_in(objects))
        perceptual = torch.cat([self.compression(view) for view in views], 1)
        words = self.words(sight.words.flatten(0, len(batch) - 1))
        query = (words + self.felt(sight).flatten(0, len(batch) - 1))[:, None]
        everything = torch.cat(views, 1)
        for reader in self.readers:
            query = reader(query, everything)
        cognitive = self.norm(query)
        return Streams(perceptual.unflatten(0, batch), cognitive.unflatten(0, batch))
