"""From probabilities to steps of log-odds that fit into a byte."""

import math
from typing import NamedTuple

from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import Evidence

LARGEST = 127
"""Greatest log-odds in steps; −128 stands for unknown."""


class Occupancy(NamedTuple):
    """A sensor's model, as OctoMap's (Hornung et al. 2013), with its defaults.

    l ← clamp(l + logit(p)), p = `hit` where a point lies, `miss` where only rays pass.
    """

    hit: float = 0.7
    """P(occupied | a point lies here), above 0.5."""
    miss: float = 0.4
    """P(occupied | a ray passes), below 0.5."""
    low: float = 0.1192
    """Least probability, which later evidence can still overcome."""
    high: float = 0.971
    """Greatest probability."""
    occupied: float = 0.5
    """Probability from which on a voxel counts as occupied."""

    def evidence(self) -> Evidence:
        """Round to whole steps, of the size that best keeps the ratio of hit to miss.

        Decisions after many scans depend on that ratio: OctoMap's is 2.0896, and 23 : 11 steps
        make it 2.0909.

        Raises:
            InvalidValueError: If the probabilities are not in this order, or too far apart.
        """
        if not 0 < self.low <= self.miss < 0.5 < self.hit <= self.high < 1:
            allowed = "0 < low <= miss < 0.5 < hit <= high < 1"
            raise InvalidValueError("occupancy", tuple(self), allowed)
        if not self.low <= self.occupied <= self.high:
            raise InvalidValueError("occupied", self.occupied, f"{self.low} to {self.high}")
        hit, miss, low, high, threshold = (math.log(p / (1 - p)) for p in self)
        finest = LARGEST / max(-low, high)
        steps = [(m, round(m * hit / -miss)) for m in range(1, int(finest * -miss) + 1)]
        steps = [(m, h) for m, h in steps if 0 < h <= finest * hit + 0.5]
        if not steps:
            allowed = f"probabilities closer together: one step is {1 / finest:.3g} of log-odds"
            raise InvalidValueError("occupancy", tuple(self), allowed)
        m, h = min(steps, key=lambda pair: (abs(pair[1] / pair[0] + hit / miss), -pair[0]))
        scale = m / -miss
        most = round(scale * high)
        return Evidence(h, -m, round(scale * low), most, min(math.ceil(scale * threshold), most))
