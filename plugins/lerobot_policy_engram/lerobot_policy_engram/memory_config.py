"""Which memory a policy gets, and how it is trained, as it stands in LeRobot's config.json."""

from dataclasses import dataclass, field
from typing import Any

from engram.kernels.errors import InvalidValueError


@dataclass
class MemoryConfig:
    """The memory that is attached to a policy.

    A value on the command line is written `--policy.memory.name=hcam`.
    """

    name: str = "gru"
    """A preset of engram: a file in its `configs/memory`, or in its `configs/streams` for
    `engram_vla`. Or `memoryvla`, `memoryvla_plus`, or the dotted path of a `SequenceMemory` class
    that takes its width as first argument."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What to change in the preset, nested as its file is, or the other arguments of the class."""
    width: int = 128
    """Features of the memory's input."""
    window: int = 16
    """Frames, the present one included, that one training sample goes back in time. It is the
    length of the gradient, not of the memory: acting, the memory runs as long as an episode."""
    grid: int = 3
    """Cells along each side of a camera's feature map, each averaged, that the memory is given."""
    through_features: bool = True
    """Whether the past frames train the policy's image encoder too. False saves most of the
    activations of a window; the present frame trains the encoder in either case."""
    lr: float | None = None
    """Learning rate of the memory; the policy's where None. Policies are often fine-tuned at rates
    too low for what starts from nothing."""

    def check(self, n_obs_steps: int) -> None:
        """Refuse what cannot be trained.

        Args:
            n_obs_steps: Frames that the policy itself looks at.

        Raises:
            InvalidValueError: If a number is too small.
        """
        least = {"width": 1, "window": max(1, n_obs_steps), "grid": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InvalidValueError(
                    f"policy.memory.{name}", getattr(self, name), f"{bound} or more"
                )
        if self.lr is not None and self.lr <= 0:
            raise InvalidValueError("policy.memory.lr", self.lr, "more than 0, or null")
