"""Demonstrations on disk, as LeRobot data sets of version 3.0."""

from engram.agents.demonstrations.feature import Episode, Feature
from engram.agents.demonstrations.pending import set_aside
from engram.agents.demonstrations.reader import Demonstrations, check
from engram.agents.demonstrations.writer import DemonstrationWriter

__all__ = ["DemonstrationWriter", "Demonstrations", "Episode", "Feature", "check", "set_aside"]
