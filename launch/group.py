"""Several learners: a data-parallel group of Ray Train, watched by the process that started it."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from engram.agents.cluster import ClusterError, RaySettings
from engram.agents.learners import Group
from engram.agents.training import Report
from engram.kernels.errors import EngramError, one_line
from engram.launch.folder import locked
from engram.launch.training import Job, train


class Board:
    """Where the learner that leads leaves reports, and finds out whether to stop; a Ray actor."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.stop = False
        self.finished = False
        self.failure: str | None = None

    def tell(self, report: Report) -> bool:
        """Leave a report; return whether to stop."""
        self.reports.append(report)
        return self.stop

    def end(self, *, finished: bool, failure: str | None) -> None:
        """Say how the run ended; of several failures the first counts."""
        self.finished = finished
        self.failure = self.failure or failure

    def read(self, *, stop: bool) -> tuple[list[Report], bool, str | None]:
        """Take the reports since the last time, and how the run ended; ask it to stop."""
        self.stop = stop
        reports, self.reports = self.reports, []
        return reports, self.finished, self.failure


def train_in_group(
    job: Job,
    ray_settings: RaySettings,
    *,
    report: Callable[[Report], None],
    stopping: Callable[[], bool],
) -> bool:
    """Train with `ray_settings.learners` learners; return whether the budget is spent.

    Every learner has its share of environments and workers; gradients are averaged by gloo, on
    CUDA by nccl. When one of them dies, Ray Train starts all of them again, `restarts` times in a
    run, and they go on from the last checkpoint. The folder of the run must be the same file system
    for all.

    Raises:
        ClusterError: If the group cannot be started, falls silent, or died too often.
    """
    import ray

    # Paths in the configuration are relative to here; Ray Train would go to a folder of its own.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    board = _board()
    # A learner may run in another folder.
    trainer = _trainer(replace(job, folder=job.folder.resolve()), ray_settings, board)
    ended: list[BaseException | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    # In a thread of its own: Ctrl-C is answered here, with a checkpoint, not by Ray with an abort.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    silence = ray_settings.timeout + ray_settings.patience
    heard = time.monotonic()
    try:
        while True:
            alive = thread.is_alive()
            reading = board.read.remote(stop=stopping())
            reports, finished, failure = ray.get(reading, timeout=ray_settings.timeout)
            for told in reports:
                heard = time.monotonic()
                report(told)
            if failure is not None:
                raise ClusterError(failure)
            if not alive:
                break
            if time.monotonic() - heard > silence:
                raise ClusterError(
                    f"ray.learners={ray_settings.learners} reported nothing for {silence:g} s; "
                    "allowed: more time (ray.timeout, ray.patience), or fewer processes on this "
                    "cluster"
                )
            thread.join(0.2)
    finally:
        ray.kill(board)  # whoever is still learning ends when it has nobody to tell
    if ended[0] is not None:
        raise ClusterError(
            f"the learners ended: {_cause(ended[0])}; allowed: {ray_settings.restarts} deaths in a "
            "run (ray.restarts); resume=true goes on from the last checkpoint"
        ) from ended[0]
    return finished


def _board() -> Any:
    """Start the board, on the machine of the driver: it shall live as long."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(Board)
    return actor.options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    ).remote()


def _trainer(job: Job, ray_settings: RaySettings, board: Any) -> Any:
    """Describe the group to Ray Train."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = job.device.startswith("cuda")
    resources = {"CPU": ray_settings.cpus_per_learner, **({"GPU": 1} if cuda else {})}
    return TorchTrainer(
        _learn,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(
            backend="nccl" if cuda else "gloo", timeout_s=max(int(ray_settings.patience), 1)
        ),
        scaling_config=ScalingConfig(
            num_workers=ray_settings.learners, use_gpu=cuda, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="learners",
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(
                max_failures=ray_settings.restarts,
                controller_failure_limit=ray_settings.restarts,
            ),
        ),
    )


def _learn(config: dict[str, Any]) -> None:
    """Train as one learner of a group; Ray Train runs this in every process of it."""
    import ray
    import torch
    from ray.train.torch import get_device

    job, board = config["job"], config["board"]
    settings = RaySettings(**job.tree["ray"])
    torch.set_num_threads(job.tree["threads"])
    learners = Group(patience=settings.patience)
    job = replace(job, device=str(get_device()), resume=True)
    answers = [False]

    def report(told: Report) -> None:
        answers[0] = bool(ray.get(board.tell.remote(told), timeout=settings.timeout))

    # The learners of a driver that was killed write for some seconds more.
    lock = locked(job.folder / "ray", wait=settings.timeout)
    try:
        with lock if learners.rank == 0 else nullcontext():
            learners.spread(None)
            finished = train(job, learners, report=report, stopping=lambda: answers[0])
            failure = None
    except (EngramError, OSError) as error:  # trying again would not help
        finished, failure = False, f"learner {learners.rank}: {one_line(error)}"
    ending = board.end.remote(finished=finished, failure=failure)
    ray.get(ending, timeout=settings.timeout)


def _cause(error: BaseException) -> str:
    """Say in one line what a group died of: the first who did not merely miss another one."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = {rank: getattr(f, "cause", None) or f for rank, f in sorted(failures.items())}
    lonely = {rank: c for rank, c in causes.items() if "Connection" in str(c) or "peer" in str(c)}
    for rank, cause in [*((r, c) for r, c in causes.items() if r not in lonely), *lonely.items()]:
        return f"learner {rank}: {type(cause).__name__}: {one_line(cause)}"[:400]
    return f"{type(error).__name__}: {one_line(error)}"[:400]
