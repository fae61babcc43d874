"""Acting in many processes: Ray actors that get weights and give rollouts, replaced when they die.

Weights go out once, through Ray's object store, and every worker maps them. A rollout comes back in
arrays that are mapped here; with one worker it is learnt from as it lies there, with several it is
copied once, side by side.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram.agents import checkpoint, parcel
from engram.agents.cluster import ClusterError, RaySettings
from engram.agents.rollout import Rollout
from engram.agents.seeds import derive
from engram.agents.worker import Make, Worker
from engram.kernels.errors import one_line
from engram.memory import state as states
from engram.policies.actor_critic import ActorCritic

log = logging.getLogger(__name__)

COMPLAINTS = {
    "begin": "did not start",
    "load": "did not take up its state",
    "collect": "delivered no rollout",
}
"""What a worker has not done that keeps us waiting."""


class Workers:
    """Acts through workers; to a training run it is a collector.

    Synchronous workers act with the weights of the moment: the run is the same, bit for bit, as one
    in which as many collectors with the workers' seeds act in one process; a single worker has the
    seed of the run. Asynchronous ones act while the learner learns, so their rollouts are drawn
    with weights exactly one update old; the clipped ratio of PPO, taken to the probabilities they
    acted with, corrects for it, and `facts` reports the staleness.

    A worker whose process or node dies is replaced. The new one begins where the last rollout that
    was delivered had ended, so no step is counted twice, and the run is the one that would have
    been; where the environment cannot be copied, its episodes begin anew.

    Args:
        make: Builds environments and policy of a worker; it is pickled.
        policy: Whose weights are sent out.
        settings: How many workers, and how long to wait for them.
        seed: Of the run, or of this learner's share of it.
        bfloat16: Whether policies run in mixed precision.
        threads: Of torch in each worker.

    Raises:
        ClusterError: If a worker cannot be started in time, raises, or keeps dying.
    """

    def __init__(
        self,
        make: Make,
        policy: ActorCritic,
        settings: RaySettings,
        *,
        seed: int,
        bfloat16: bool = False,
        threads: int = 1,
    ):
        assert settings.workers > 0
        self.policy, self.settings = policy, settings
        self.device = policy.value.weight.device
        self.seconds = {"environment": 0.0, "acting": 0.0, "transfer": 0.0}
        self.facts: dict[str, float] = {}
        self.steps = self.replaced = 0
        count = settings.workers
        seeds = [seed] if count == 1 else [derive(seed, f"worker {i}") for i in range(count)]
        self._start = _starter(make, seeds, settings, bfloat16, threads)
        self._deaths = [0] * count
        self._actors = [self._start(i) for i in range(count)]
        self._after: list[dict[str, Any]] = [{} for _ in range(count)]
        """What decides how each worker goes on after the last rollout that it delivered."""
        self._weights_out: Any = None
        """The weights, in the object store, of rollouts that are under way or to be redone."""
        self._orders: list[list[_Order]] = [[] for _ in range(count)]
        """What each worker has been told and has not yet done; a worker does it in this order."""
        for i in range(count):
            self._order(i, "begin")
        for i, begun in enumerate(self._fulfilled()):
            self._after[i] = _copied(begun)

    def collect(self, steps: int, *, chunk: int) -> Rollout:
        """Have every worker act for `steps` steps; return their rollouts side by side."""
        began = time.perf_counter()
        stale = self._weights_out is not None
        if not stale:
            self._weights_out = self._put_weights()
        if not any(self._orders):
            self._send_off(steps, chunk)
        parcels: list[parcel.Parcel] = self._fulfilled()
        waited = time.perf_counter() - began
        rollouts = []
        for i, delivered in enumerate(parcels):
            rollouts.append(parcel.unpack(delivered, self._memory(i, delivered), self.device))
            # A copy: one array would keep all of the parcel in the object store.
            self._after[i] = _copied(delivered.after)
        self._weights_out = None
        if self.settings.asynchronous:
            self._weights_out = self._put_weights()
            self._send_off(steps, chunk)
        joined = parcel.together(rollouts)
        self.steps += joined.reward.numel()
        self._account(parcels, joined.reward.numel(), waited, time.perf_counter() - began, stale)
        return joined

    def tensors(self) -> dict[str, Tensor]:
        """Name everything that decides how acting goes on, rollouts under way included."""
        tensors = {
            f"worker.{i}.{name}": parcel.tensor(array)
            for i, after in enumerate(self._after)
            for name, array in after.items()
        }
        if self.settings.asynchronous:  # what is under way will be acted anew, by these weights
            import ray

            out: Any = self._weights()
            if self._weights_out is not None:
                out = ray.get(self._weights_out, timeout=self.settings.timeout)
            tensors |= {f"flown.{name}": parcel.tensor(array) for name, array in out.items()}
        return tensors | {"flying": torch.tensor(self._weights_out is not None)}

    def load(self, tensors: dict[str, Tensor], *, steps: int, source: Path) -> None:
        """Go on from what `tensors` returned.

        Raises:
            DataError: If they are of another policy, environment, or number of workers; nothing is
                loaded then.
        """
        import ray

        checkpoint.check(tensors, self.tensors(), source)
        if any(self._orders):
            self._fulfilled()
        self._weights_out = None
        self.steps = steps
        for i in range(len(self._actors)):
            found = checkpoint.part(tensors, f"worker.{i}")
            self._after[i] = {name: value.cpu().numpy() for name, value in found.items()}
            self._order(i, "load", self._after[i], self.steps, str(source))
        self._fulfilled()
        if bool(tensors["flying"]):
            out = checkpoint.part(tensors, "flown")
            self._weights_out = ray.put({name: value.cpu().numpy() for name, value in out.items()})

    def close(self) -> None:
        """Close the environments and end the workers."""
        import ray

        closing = [actor.close.remote() for actor in self._actors]
        ray.wait(closing, num_returns=len(closing), timeout=self.settings.timeout)
        for actor in self._actors:
            ray.kill(actor)

    def _weights(self) -> dict[str, Any]:
        tensors = self.policy.state_dict()
        # A copy: the optimiser writes into the parameters while the workers read.
        return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}

    def _put_weights(self) -> Any:
        import ray

        return ray.put(self._weights())

    def _send_off(self, steps: int, chunk: int) -> None:
        for i in range(len(self._actors)):
            self._order(i, "collect", self._weights_out, steps, chunk)

    def _order(self, number: int, method: str, *arguments: Any) -> None:
        """Tell a worker to do something after what it was told before."""
        answer = getattr(self._actors[number], method).remote(*arguments)
        self._orders[number].append(_Order(method, arguments, answer))

    def _fulfilled(self) -> list[Any]:
        """Wait until every worker has done what it was told; return their last answers.

        A worker that died is replaced at once, by one that is told the same.

        Raises:
            ClusterError: If a worker takes too long, raises, or keeps dying.
        """
        import ray

        last: list[Any] = [None] * len(self._actors)
        while waiting := {o[0].answer: i for i, o in enumerate(self._orders) if o}:
            acting = any(self._orders[i][0].method == "collect" for i in waiting.values())
            wait = self.settings.patience if acting else self.settings.timeout
            done, _ = ray.wait([*waiting], num_returns=1, timeout=wait)
            if not done:
                number = next(iter(waiting.values()))
                raise ClusterError(
                    f"worker {number} {COMPLAINTS[self._orders[number][0].method]} within "
                    f"{wait:g} s; allowed: more time (ray.timeout for a start, ray.patience for a "
                    "rollout), or fewer processes on this cluster"
                )
            number = waiting[done[0]]
            try:
                last[number] = self._answer(number, done[0])
            except _Lost as lost:
                self._replace(number, str(lost))
                continue
            if self._orders[number].pop(0).method == "collect":
                self._deaths[number] = 0
        return last

    def _replace(self, number: int, reason: str) -> None:
        """Start another worker where the last delivered rollout of a dead one ended."""
        import ray

        self._deaths[number] += 1
        if self._deaths[number] > self.settings.restarts:
            raise ClusterError(
                f"worker {number} died {self._deaths[number]} times in a row before it delivered "
                f"a rollout ({reason}); allowed: {self.settings.restarts} (ray.restarts)"
            )
        log.warning("worker %d is replaced: %s", number, reason)
        self.replaced += 1
        ray.kill(self._actors[number])  # it may live on where only what it made was lost
        self._actors[number] = self._start(number)
        told, self._orders[number] = self._orders[number], []
        self._order(number, "begin")
        if self._after[number]:
            self._order(number, "load", self._after[number], self.steps, "of a run")
        for order in told:
            if order.method == "collect":
                self._order(number, "collect", *order.arguments)

    def _answer(self, number: int, answer: Any) -> Any:
        """Return what a worker answered.

        Raises:
            _Lost: If it died, or its node did.
            ClusterError: If it raised an error of its own.
        """
        import ray
        from ray import exceptions

        full = (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)
        try:
            return ray.get(answer, timeout=self.settings.timeout)
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if isinstance(cause, full):
                raise _full(number, self.settings, cause) from None
            told = f"worker {number} raised {type(cause).__name__}: {one_line(cause)}"
            raise ClusterError(told) from cause
        except full as error:
            raise _full(number, self.settings, error) from None
        except (exceptions.RuntimeEnvSetupError, exceptions.ActorUnschedulableError) as error:
            told = f"worker {number} cannot be started: {one_line(error)[-300:]}"
            raise ClusterError(f"{told}; allowed: what the cluster's nodes can run") from None
        except exceptions.RayError as error:  # its process or node is gone: killed, out of memory
            raise _Lost(str(error).strip().splitlines()[0]) from None

    def _memory(self, number: int, delivered: parcel.Parcel) -> Any:
        """Return the memory state before a rollout."""
        batch = delivered.last_value.shape[0]
        like = self.policy.initial_state(batch)
        kept = {k: parcel.tensor(v) for k, v in self._after[number].items()}
        if any(name.startswith("memory.") for name in kept):
            return states.unflatten(checkpoint.part(kept, "memory"), like)
        found = parcel.as_tensors(delivered.memory, self.device)
        return found if states.nbytes(like) else like

    def _account(
        self, parcels: list[parcel.Parcel], steps: int, waited: float, wall: float, stale: bool
    ) -> None:
        """Say where the time went, and what travelled."""
        slowest = max((p.seconds for p in parcels), key=lambda s: s["environment"] + s["acting"])
        self.seconds = {name: slowest[name] for name in ("environment", "acting")}
        hidden = waited if self.settings.asynchronous else sum(self.seconds.values())
        self.seconds["transfer"] = max(wall - hidden, 0.0)
        sizes = [parcel.nbytes(delivered) for delivered in parcels]
        sums = {name: sum(size[name] for size in sizes) / steps for name in sizes[0]}
        self.facts = {f"{name}_bytes_per_step": value for name, value in sums.items()}
        self.facts |= {"staleness": float(stale), "replaced_workers": float(self.replaced)}
        if self.settings.asynchronous:
            self.facts["waiting_seconds"] = waited


class _Lost(Exception):
    """A worker's process is gone, and with it what it was doing."""


class _Order(NamedTuple):
    """Something that a worker was told to do."""

    method: str
    arguments: tuple[Any, ...]
    answer: Any
    """Ray's reference to the answer."""


def _copied(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array.copy() for name, array in arrays.items()}


def _full(number: int, settings: RaySettings, error: BaseException) -> ClusterError:
    seen = "Ray's own choice" if settings.object_store_memory is None else "that"
    told = one_line(error)[:200]
    return ClusterError(
        f"worker {number}: the object store is full (ray.object_store_memory is "
        f"{settings.object_store_memory}, {seen}); allowed: more bytes, a shorter agent.rollout, "
        f"fewer num_envs ({told})"
    )


def _starter(
    make: Make, seeds: list[int], settings: RaySettings, bfloat16: bool, threads: int
) -> Callable[[int], Any]:
    """Return what starts the worker of a number."""
    import ray

    actor = ray.remote(Worker).options(  # type: ignore[attr-defined]
        num_cpus=settings.cpus_per_worker,
        max_restarts=0,  # a worker of Ray's own restart would have lost its episodes
        scheduling_strategy="DEFAULT",  # also inside a group of learners, which has its own cores
    )
    return lambda number: actor.remote(
        make, number, seed=seeds[number], bfloat16=bfloat16, threads=threads
    )
