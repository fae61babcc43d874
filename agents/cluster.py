"""Ray on this machine or a cluster: joined, measured against what is asked for, and left again."""

import contextlib
import math
import os
import socket
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.kernels.errors import EngramError, InvalidValueError, MissingPackageError, one_line


class ClusterError(EngramError):
    """Ray, or a process that it runs, does not do what it was asked to."""


@dataclass(frozen=True)
class RaySettings:
    """How a run is spread over processes by Ray; the defaults use none."""

    workers: int = 0
    """Processes that act, each with an equal share of the environments; with 0, the one that
    learns acts."""
    asynchronous: bool = False
    """Whether workers act while the learner learns, with weights one update old."""
    learners: int = 1
    """Processes that learn, each from an equal share of the rollouts."""
    address: str | None = None
    """A cluster to join: `auto` or HOST:PORT. Without one, Ray is started on this machine."""
    cpus_per_worker: float = 1.0
    """Cores that are set aside for a worker."""
    cpus_per_learner: float = 1.0
    """Cores that are set aside for each of several learners."""
    object_store_memory: int | None = None
    """Bytes of shared memory where Ray is started here; Ray's own choice unless given."""
    timeout: float = 60.0
    """Longest wait for the cluster, its resources, and the start of a process [s]."""
    patience: float = 600.0
    """Longest wait for a rollout, or for another learner [s]."""
    restarts: int = 3
    """How many times in a row a worker may die before it delivered anything; learners, how many
    times in the whole run."""
    wheel: str | None = None
    """A wheel of engram whose content the cluster's processes use instead of what is installed
    there; its dependencies must be."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name, least in (("workers", 0), ("learners", 1), ("restarts", 0)):
            seen = getattr(self, name)
            if isinstance(seen, bool) or not isinstance(seen, int) or seen < least:
                raise InvalidValueError(f"ray.{name}", seen, f"a whole number, {least} or more")
        for name in ("timeout", "patience"):
            seen = getattr(self, name)
            if not 0 < seen < math.inf:
                raise InvalidValueError(f"ray.{name}", seen, "seconds above 0")
        for name in ("cpus_per_worker", "cpus_per_learner"):
            seen = getattr(self, name)
            if not 0 <= seen < math.inf:
                raise InvalidValueError(f"ray.{name}", seen, "cores, 0 or more")
        if self.asynchronous and not self.workers:
            raise InvalidValueError("ray.asynchronous", True, "false where ray.workers is 0")
        least, seen = 75 * 2**20, self.object_store_memory
        if seen is not None and seen < least:
            raise InvalidValueError("ray.object_store_memory", seen, f"{least} bytes or more")

    @property
    def cpus(self) -> float:
        """Cores that all processes together are given."""
        learning = self.learners * self.cpus_per_learner if self.learners > 1 else 0.0
        return self.workers * self.cpus_per_worker + learning

    @property
    def used(self) -> bool:
        """Whether Ray is needed at all."""
        return self.workers > 0 or self.learners > 1


@contextlib.contextmanager
def joined(settings: RaySettings, *, gpus: int = 0) -> Iterator[None]:
    """Be connected to Ray, with enough resources; what was started here is stopped at the end.

    Inside a process of Ray, or where the program has connected itself, that connection is used.

    Args:
        settings: What is needed.
        gpus: Devices that all learners together need.

    Raises:
        MissingPackageError: If `engram[ray]` is not installed.
        ClusterError: If the cluster does not answer, or has not what is needed, in time.
    """
    try:
        import ray
    except ImportError:
        raise MissingPackageError("ray", "ray") from None
    if ray.is_initialized():
        _wait_for_resources(settings, gpus)
        yield
        return
    _start(settings)
    try:
        _wait_for_resources(settings, gpus)
        yield
    finally:
        ray.shutdown()


def _start(settings: RaySettings) -> None:
    """Connect to the cluster, or start Ray here; send what is in the wheel, if there is one."""
    more: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}
    if settings.wheel is None:
        _connect(settings, more)
        return
    # Unpacked: a wheel as such would be installed with all that it depends on, in every node.
    with tempfile.TemporaryDirectory(prefix="engram-wheel-") as folder:
        try:
            with zipfile.ZipFile(settings.wheel) as wheel:
                wheel.extractall(folder)
        except (OSError, zipfile.BadZipFile):
            raise InvalidValueError("ray.wheel", settings.wheel, "a .whl file of engram") from None
        package = Path(folder, "engram")
        if not package.is_dir():
            raise InvalidValueError("ray.wheel", settings.wheel, "a .whl file of engram")
        _connect(settings, {**more, "runtime_env": {"py_modules": [str(package)]}})


def _connect(settings: RaySettings, more: dict[str, Any]) -> None:
    import ray

    # Not set: Ray would hide GPUs from processes that ask for none, and warns that it will not.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.address is None:
        wanted = settings.object_store_memory
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if wanted is not None and wanted > memory:
            allowed = f"at most {memory} bytes, this machine's memory"
            raise InvalidValueError("ray.object_store_memory", wanted, allowed)
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=settings.object_store_memory,
                **more,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ClusterError(f"Ray does not start on this machine: {one_line(error)}") from None
        return
    _knock(settings)
    try:
        ray.init(address=settings.address, **more)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"ray.address is {settings.address!r}: no cluster answers ({one_line(error)}); "
            "allowed: auto where `ray start` has run on this machine, HOST:PORT of a cluster's "
            "head (with RAY_AUTH_MODE=token in the environment where the head asks for its "
            "token), or null"
        ) from None


def _knock(settings: RaySettings) -> None:
    """Ask whether anybody listens: Ray itself would wait for minutes."""
    assert settings.address is not None
    host, colon, port = settings.address.rpartition(":")
    if not colon or "://" in settings.address:
        return
    if not port.isdigit():
        raise InvalidValueError("ray.address", settings.address, "auto, HOST:PORT, or null")
    try:
        socket.create_connection((host, int(port)), timeout=settings.timeout).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"ray.address is {settings.address!r}: nobody answers within {settings.timeout:g} s "
            f"({error}); allowed: HOST:PORT of a cluster's head"
        ) from None


def _wait_for_resources(settings: RaySettings, gpus: int) -> None:
    """Wait until the cluster has what is asked for; one of this machine never grows."""
    import ray

    ends = time.monotonic() + (settings.timeout if settings.address else 0)
    wanted = {"CPU": settings.cpus, "GPU": float(gpus)}
    while True:
        held = ray.cluster_resources()
        missing = {name: n for name, n in wanted.items() if n > held.get(name, 0)}
        if not missing:
            return
        if time.monotonic() >= ends:
            break
        time.sleep(0.5)
    name, number = next(iter(missing.items()))
    raise ClusterError(
        f"ray.workers={settings.workers} and ray.learners={settings.learners} need {number:g} "
        f"{name}; allowed: {held.get(name, 0):g}, which is what the cluster has (fewer processes, "
        "or a smaller share each: ray.cpus_per_worker, ray.cpus_per_learner)"
    )
