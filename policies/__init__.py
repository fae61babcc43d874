"""Policies around any memory: encoders, heads, auxiliary losses, actor-critics."""

from engram.policies.actor_critic import ActorCritic, Inputs, Output
from engram.policies.auxiliary import Auxiliary

__all__ = ["ActorCritic", "Auxiliary", "Inputs", "Output"]
