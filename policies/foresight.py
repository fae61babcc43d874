"""Where a demonstration ends, as a loss that teaches a policy to look."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.streams import Streams
from engram.policies.attention import CrossAttention, Related
from engram.policies.perception import Perceiver, Standardization


class Foresight(nn.Module):
    """Guesses from what leaves the memory how the robot will stand when the demonstration ends.

    A single action says little about its goal: far away, all goals in one direction ask for the
    same. Where the gripper will be in the end names the goal from the first frame of the decision
    on, in tasks that end with one choice of a place; its gradient reaches image encoder and memory
    without the noise of drawn actions in between. Where the end does not depend on what is
    remembered (a count, a push's strength) nothing of it is taught, and of a sequence only the
    last place.

    The fused cognitive token attends to the fused perceptual tokens, each in its light, as an
    action expert that is not modulated sees them; an MLP guesses the standardized proprioception
    of the last frame.

    Args:
        perception: Whose streams these are.
        statistics: Mean and standard deviation of every number of proprioception.
        marked: Whether recordings say when the end can be known; else there is no loss.
        weight: Of the loss; 0 is none.
        width: Features of the head.
        heads: Of its attention.
    """

    def __init__(
        self,
        perception: Perceiver,
        statistics: tuple[Float[Tensor, " P"], Float[Tensor, " P"]],
        *,
        marked: bool = True,
        weight: float = 1.0,
        width: int = 128,
        heads: int = 4,
    ):
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise InvalidValueError("foresight.weight", weight, "finite, 0 or more")
        if width < 1:
            raise InvalidValueError("width", width, "1 or more")
        if heads < 1 or width % heads:
            raise InvalidValueError("heads", heads, f"divisors of width = {width}")
        (_, d), (_, e) = perception.perceptual, perception.cognitive
        felt = perception.sizes.proprioception
        self.weight, self.active = weight, bool(weight and felt and marked)
        if not self.active:
            return
        self.standard = Standardization(*statistics)
        self.query, self.related = nn.Linear(e, width), Related(d, e, width)
        self.attention = CrossAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.guess = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, felt)
        )

    def forward(
        self,
        fused: Streams,
        end: Float[Tensor, "*batch P"],
        asked: Bool[Tensor, "*batch"],
    ) -> dict[str, Tensor]:
        """Return the mean squared error, weighted, as a scalar; nothing where it has no weight.

        Args:
            fused: What came out of the memory, after the second look, `[*batch, ...]`.
            end: Proprioception in the last frame of the episode.
            asked: The frames that are asked.
        """
        if not self.active:
            return {}
        rows = asked.flatten().nonzero()[:, 0]
        if not len(rows):
            return {"goal": end.new_zeros(())}
        axes = asked.ndim - 1
        tokens, cognitive, end = (
            part.flatten(0, axes)[rows] for part in (fused.perceptual, fused.cognitive, end)
        )
        cognitive = cognitive[:, :1]
        query, seen = self.query(cognitive), self.related(tokens, cognitive)
        read = self.norm(query + self.attention(query, self.attention.keys(seen)))
        error = self.guess(read)[:, 0].float() - self.standard(end)
        return {"goal": self.weight * error.square().mean()}
