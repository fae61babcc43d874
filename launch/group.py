"""Several learners: a data-parallel group of Ray Train, watched by the process that started it."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engram.agents.cluster import ClusterError, RaySettings
from engram.agents.learners import Group
from engram.agents.training import Report
from engram.kernels.errors import EngramError
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
    CUDA by nccl. When one of them dies, Ray Train starts all of them again, and they go on from the
    last checkpoint. The folder of the run must be the same file system for all.

    Raises:
        ClusterError: If the group cannot be started, or died too often.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Paths in the configuration are relative to here; Ray Train would go to a folder of its own.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    cuda = job.device.startswith("cuda")
    board: Any = ray.remote(Board).options(num_cpus=0).remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
        _learn,
        # A learner may run in another folder.
        train_loop_config={"job": replace(job, folder=job.folder.resolve()), "board": board},
        torch_config=TorchConfig(
            backend="nccl" if cuda else "gloo", timeout_s=int(max(ray_settings.patience, 1))
        ),
        scaling_config=ScalingConfig(
            num_workers=ray_settings.learners,
            use_gpu=cuda,
            resources_per_worker={
                "CPU": ray_settings.cpus_per_learner,
                **({"GPU": 1} if cuda else {}),
            },
        ),
        run_config=RunConfig(
            name="learners",
            storage_path=str(job.folder.resolve() / "ray"),
            failure_config=FailureConfig(max_failures=ray_settings.restarts),
        ),
    )
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
    began, heard = time.monotonic(), False
    while True:
        alive = thread.is_alive()
        reports, finished, failure = ray.get(board.read.remote(stop=stopping()))
        for told in reports:
            heard = True
            report(told)
        if failure is not None or not alive:
            break  # where one failed the others wait for it: whoever leaves Ray ends them
        if not heard and time.monotonic() - began > ray_settings.timeout + ray_settings.patience:
            raise ClusterError(
                f"ray.learners={ray_settings.learners} reported nothing within "
                f"{ray_settings.timeout + ray_settings.patience:g} s; allowed: more time "
                "(ray.timeout, ray.patience), or fewer processes on this cluster"
            )
        thread.join(0.2)
    if failure is not None:
        raise ClusterError(failure)
    ray.kill(board)
    if ended[0] is not None:
        raise ClusterError(f"the learners ended: {_cause(ended[0])}") from ended[0]
    return finished


def _learn(config: dict[str, Any]) -> None:
    """Train as one learner of a group; Ray Train runs this in every process of it."""
    import ray
    import torch
    from ray.train.torch import get_device

    job, board = config["job"], config["board"]
    torch.set_num_threads(job.tree["threads"])
    learners = Group()
    job = replace(job, device=str(get_device()), resume=True)
    answers = [False]

    def report(told: Report) -> None:
        answers[0] = bool(ray.get(board.tell.remote(told)))

    try:
        finished = train(job, learners, report=report, stopping=lambda: answers[0])
        failure = None
    except EngramError as error:  # trying again would not help
        finished, failure = False, f"learner {learners.rank}: {error}"
    ray.get(board.end.remote(finished=finished, failure=failure))


def _cause(error: BaseException) -> str:
    """Say in one line what a group died of: Ray wraps the error of the first of its members."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", None) or failure
        return " ".join(f"learner {rank}: {type(cause).__name__}: {cause}".split())[:500]
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
