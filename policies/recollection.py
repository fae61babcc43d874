"""What makes a memory learn in cloning: losses that only a memory can lower."""

import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.streams import Streams
from engram.policies.auxiliary import Auxiliary
from engram.policies.perception import Perceiver, Sight, Standardization

SMALL = 8
"""Height and width of the past images that are recalled [pixels]."""


class Recollection(nn.Module):
    """Two losses on the streams that come out of the memory.

    Cloning alone seldom teaches a memory what to keep: until it is kept, a wrong choice cannot be
    told from a right one, and the actions before and after the choice are fitted without it.

    cue: the cue, where the recording says what it was and once it was in view; needs no images.
    Half of it is the mean over the frames that show the cue, half that over all later ones.
    past: what was seen δ frames ago, images shrunk to 8 x 8, for δ drawn per frame up to
    `horizon`; needs no labels.

    Args:
        perception: Whose streams these are.
        cues: Numbers in a cue, 0 where recordings have none.
        statistics: Mean and standard deviation of every number of a cue, by which it is
            standardized, so that neither its unit nor how many choices there are weighs the loss;
            as it is unless given.
        cue: Weight of the first loss.
        past: Weight of the second.
        horizon: Largest δ.
        width: Features that the heads share.
    """

    def __init__(
        self,
        perception: Perceiver,
        cues: int,
        statistics: tuple[Float[Tensor, " Q"], Float[Tensor, " Q"]] | None = None,
        *,
        cue: float = 1.0,
        past: float = 0.0,
        horizon: int = 32,
        width: int = 128,
    ):
        super().__init__()
        for name, value in (("cue", cue), ("past", past)):
            if not 0 <= value < float("inf"):
                raise InvalidValueError(f"recollection.{name}", value, "finite, 0 or more")
        sizes = perception.sizes
        self.cameras, self.weight = sizes.cameras, cue
        (_, d), (_, e) = perception.perceptual, perception.cognitive
        self.standard = Standardization(*statistics) if statistics else nn.Identity()
        self.read = nn.Linear(d + e, width)
        self.cue = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, cues))
            if cue and cues
            else None
        )
        shape = (SMALL, SMALL, 3 * len(sizes.cameras))
        seen = (
            spaces.Box(0, 255, shape, dtype="uint8")  # type: ignore[arg-type]
            if sizes.cameras
            else spaces.Box(-float("inf"), float("inf"), sizes.objects)
        )
        self.past = Auxiliary(seen, width, 0, recall=past, horizon=horizon)

    def forward(
        self,
        fused: Streams,
        sight: Sight,
        cue: Float[Tensor, "T B Q"],
        start: Bool[Tensor, "T B"],
        generator: torch.Generator | None = None,
        *,
        real: Bool[Tensor, "T B"] | None = None,
        shown: Bool[Tensor, "T B"] | None = None,
    ) -> dict[str, Tensor]:
        """Return each loss that has a weight, weighted, as a scalar.

        Args:
            fused: What came out of the memory, after the second look, `[T, B, ...]`.
            sight: What was seen.
            cue: NaN where it is not known, or was not yet in view.
            start: Where the memory begins.
            generator: For δ.
            real: Which frames are no padding; all unless given. Padding is asked nothing.
            shown: Where the cue is in view. These few frames then weigh as much as all others
                together: what cannot be named while it is seen cannot be remembered.
        """
        if real is None:
            real = torch.ones_like(start)
        features = self.read(torch.cat([fused.perceptual.mean(-2), fused.cognitive[..., 0, :]], -1))
        losses: dict[str, Tensor] = {}
        if self.cue is not None:
            known = ~cue.isnan() & real[..., None]
            wanted = torch.where(known, self.standard(cue), 0.0)
            error = (self.cue(features).float() - wanted).square()
            groups = (
                [known] if shown is None else [known & part[..., None] for part in (shown, ~shown)]
            )
            sizes = torch.stack([group.sum() for group in groups])
            sums = torch.stack([torch.where(group, error, 0.0).sum() for group in groups])
            # The mean over the groups that are not empty.
            mean = (sums / sizes.clamp(min=1)).sum() / (sizes > 0).sum().clamp(min=1)
            losses["cue"] = self.weight * mean
        if self.past.active:
            ended = torch.zeros_like(start)
            none = features.new_zeros(*start.shape, 0)
            seen = self._shrink(sight) if self.cameras else sight.objects
            # A frame that begins a scope has no past to be asked for.
            losses |= self.past(features, seen, none, start | ~real, ended, generator)
        return losses

    def _shrink(self, sight: Sight) -> UInt8[Tensor, "T B h w c"]:
        parts = []
        for name in self.cameras:
            image = sight.images[name]
            flat = image.flatten(0, 1).movedim(-1, 1).float()
            small = F.adaptive_avg_pool2d(flat, SMALL).round().to(torch.uint8)
            parts.append(small.movedim(1, -1).unflatten(0, image.shape[:2]))
        return torch.cat(parts, -1)
