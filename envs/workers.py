"""Many copies of a Gymnasium environment in a few processes, with observations in shared memory.

Gymnasium's AsyncVectorEnv starts a process per copy. Where a step takes a millisecond, as many
processes as cores are faster, and what a process loads once (a simulator, an OpenGL context) is
shared by its copies.
"""

import copy
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import (
    batch_space,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)

from engram.envs.processes import without_sigint
from engram.kernels.errors import EngramError, InvalidValueError

_PATIENCE = 5.0
"""How long a worker may take to end before it is killed [s]."""


class WorkerError(EngramError, RuntimeError):
    """A process with environments ended, or raised what nobody expected."""

    def __init__(self, worker: int, count: int, what: str):
        super().__init__(f"worker {worker + 1} of {count}: {what}")


class Workers(gymnasium.vector.VectorEnv):
    """N copies in W processes, reset in the step in which they end.

    Copies are dealt out in order, as evenly as possible; copy i does what it would do alone,
    whatever W is. `final_obs` in `info` is a whole batch: rows that did not end equal the returned
    observation. Of the copies' own info only `measures` come back.

    Args:
        copies: One function per copy that makes it; the functions are pickled.
        processes: Number of processes W, 1 to N. They are spawned, so a script must guard its
            entry with `if __name__ == "__main__"`.
        measures: Names of the numbers in the copies' info to report; NaN where absent.

    Raises:
        InvalidValueError: If there are fewer copies than processes.
        WorkerError: If a process ends, or an environment raises anything but an EngramError.
    """

    def __init__(
        self,
        copies: Sequence[Callable[[], gymnasium.Env]],
        processes: int,
        *,
        measures: Sequence[str] = (),
    ):
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        if not 1 <= processes <= len(copies):
            raise InvalidValueError("processes", processes, f"1 to {len(copies)}, the copies")
        self.num_envs = len(copies)
        self.measures = tuple(measures)
        model = copies[0]()
        self.metadata = {**model.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = model.observation_space
        self.single_action_space = model.action_space
        self.observation_space = batch_space(model.observation_space, self.num_envs)
        self.action_space = batch_space(model.action_space, self.num_envs)
        model.close()
        context = multiprocessing.get_context("spawn")
        space = self.single_observation_space
        self.present, self.final = (
            create_shared_memory(space, self.num_envs, context) for _ in range(2)
        )
        self.rows = np.array_split(np.arange(self.num_envs), processes)
        with without_sigint():
            for rows in self.rows:
                here, there = context.Pipe()
                mine = [copies[row] for row in rows]
                arguments = (there, mine, int(rows[0]), space, self.present, self.final, measures)
                process = context.Process(target=work, args=arguments, daemon=True)
                process.start()
                there.close()
                self.pipes.append(here)
                self.processes.append(process)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset every copy, or those that `reset_mask` in options names."""
        options = dict(options) if options else {}
        mask = options.pop("reset_mask", np.ones(self.num_envs, dtype=bool))
        if isinstance(seed, int):
            seed = [seed + row for row in range(self.num_envs)]
        seeds = seed or [None] * self.num_envs
        self._ask(
            "reset",
            [([seeds[row] for row in rows], mask[rows], options or None) for rows in self.rows],
        )
        return self._read(self.present), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act in every copy.

        Raises:
            EngramError: What a copy raised; some have stepped and some have not, so reset them all.
        """
        actions = np.asarray(actions)
        replies = self._ask("step", [actions[rows] for rows in self.rows])
        reward, terminated, truncated, measures = map(np.concatenate, zip(*replies, strict=True))
        present = self._read(self.present)
        info: dict[str, Any] = {"final_obs": present}
        if (ended := terminated | truncated).any():
            info["final_obs"] = _replaced(present, self._read(self.final), ended)
        for column, name in enumerate(self.measures):
            info[name] = measures[:, column]
            info[f"_{name}"] = np.ones(self.num_envs, dtype=bool)
        return present, reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes."""
        for pipe in self.pipes:
            try:
                pipe.send(("close", None))
            except OSError:
                pass  # it is gone already
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()

    def _read(self, memory: Any) -> Any:
        space = self.single_observation_space
        return copy.deepcopy(read_from_shared_memory(space, memory, self.num_envs))

    def _ask(self, command: str, arguments: list[Any]) -> list[Any]:
        """Send a command to all workers; return all replies, or raise the first failure."""
        replies: list[Any] = []
        count = len(self.pipes)
        for worker, (pipe, argument) in enumerate(zip(self.pipes, arguments, strict=True)):
            try:
                pipe.send((command, argument))
            except OSError as error:
                raise self._ended(worker) from error
        for worker, pipe in enumerate(self.pipes):
            try:
                replies.append(pipe.recv())
            except (EOFError, OSError) as error:
                raise self._ended(worker) from error
        for worker, reply in enumerate(replies):
            if isinstance(reply, EngramError):
                raise reply
            if isinstance(reply, str):
                last = reply.strip().splitlines()[-1]
                raise WorkerError(worker, count, last) from RuntimeError(reply)
        return replies

    def _ended(self, worker: int) -> WorkerError:
        process = self.processes[worker]
        process.join(_PATIENCE)
        return WorkerError(worker, len(self.pipes), f"ended with exit code {process.exitcode}")


def work(
    pipe: Connection,
    copies: list[Callable[[], gymnasium.Env]],
    first: int,
    space: gymnasium.Space,
    present: Any,
    final: Any,
    measures: Sequence[str],
) -> None:
    """Serve some copies, whose rows begin at `first`, until told to close."""
    envs: list[gymnasium.Env] = []
    while True:
        try:
            command, argument = pipe.recv()
        except (EOFError, OSError):
            break  # whoever asked is gone
        if command == "close":
            break
        try:
            envs = envs or [make() for make in copies]
            if command == "reset":
                for row, (env, seed, asked) in enumerate(zip(envs, *argument[:2], strict=True)):
                    if asked:
                        observation, _ = env.reset(seed=seed, options=argument[2])
                        write_to_shared_memory(space, first + row, observation, present)
                pipe.send(None)
            else:
                rows = [
                    advance(env, action, first + row, space, present, final, measures)
                    for row, (env, action) in enumerate(zip(envs, argument, strict=True))
                ]
                reward, terminated, truncated, numbers = zip(*rows, strict=True)
                shaped = np.array(numbers, dtype=np.float32).reshape(len(envs), len(measures))
                pipe.send((np.array(reward), np.array(terminated), np.array(truncated), shaped))
        except EngramError as error:
            pipe.send(error)
        except Exception:
            pipe.send(traceback.format_exc())
    for env in envs:
        env.close()


def advance(
    env: gymnasium.Env,
    action: Any,
    row: int,
    space: gymnasium.Space,
    present: Any,
    final: Any,
    measures: Sequence[str],
) -> tuple[float, bool, bool, list[float]]:
    """Step a copy and restart it if it ended; observations go to shared memory."""
    observation, reward, terminated, truncated, info = env.step(action)
    if terminated or truncated:
        write_to_shared_memory(space, row, observation, final)
        observation, _ = env.reset()
    write_to_shared_memory(space, row, observation, present)
    numbers = [float(info.get(name, np.nan)) for name in measures]
    return float(reward), bool(terminated), bool(truncated), numbers


def _replaced(present: Any, final: Any, ended: np.ndarray) -> Any:
    """Return a batch with the rows that ended taken from another."""
    if isinstance(present, dict):
        return {name: _replaced(part, final[name], ended) for name, part in present.items()}
    batch = present.copy()
    batch[ended] = final[ended]
    return batch
