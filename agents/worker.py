"""One worker: environments and a copy of the policy, in a process of its own."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from engram.agents.parcel import Parcel, pack, tensor
from engram.agents.rollout import Collector
from engram.envs.vector import Stream
from engram.policies.actor_critic import ActorCritic

Make = Callable[[int], tuple[Stream, ActorCritic]]
"""Builds the environments and the policy of a worker, given its number; on the host."""


class Worker:
    """Acts with the weights it is given. Ray runs it as an actor; it knows nothing of Ray.

    Args:
        make: Builds environments and policy.
        number: Which worker this is.
        seed: Of everything random here.
        bfloat16: Whether the policy runs in mixed precision, as it will where it learns.
        threads: That torch may use here.
    """

    def __init__(self, make: Make, number: int, *, seed: int, bfloat16: bool, threads: int):
        self.make, self.number, self.seed = make, number, seed
        self.bfloat16, self.threads = bfloat16, threads

    def begin(self) -> dict[str, np.ndarray]:
        """Build environments and policy; return what decides how acting goes on.

        Apart from the constructor, because Ray reports what goes wrong there as a death.
        """
        torch.set_num_threads(self.threads)
        stream, self.policy = self.make(self.number)
        self.collector = Collector(stream, self.policy, seed=self.seed, bfloat16=self.bfloat16)
        return {name: value.numpy() for name, value in self.collector.tensors().items()}

    def collect(self, weights: dict[str, np.ndarray], steps: int, chunk: int) -> Parcel:
        """Act for `steps` steps with these weights."""
        self.policy.load_state_dict({name: tensor(array) for name, array in weights.items()})
        rollout = self.collector.collect(steps, chunk=chunk)
        after = self.collector.tensors()
        return pack(
            rollout,
            after,
            self.collector.seconds,
            with_memory=not any(name.startswith("memory.") for name in after),
        )

    def load(self, tensors: dict[str, np.ndarray], steps: int, source: str) -> None:
        """Go on from what `begin` or a parcel told, after `steps` steps of the run."""
        given = {name: tensor(array).clone() for name, array in tensors.items()}
        self.collector.load(given, steps=steps, source=Path(source))

    def process(self) -> int:
        """Return the id of the process, for whoever looks for it in a process list."""
        return os.getpid()

    def close(self) -> None:
        """Close the environments."""
        self.collector.close()
