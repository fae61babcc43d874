"""What a `MemoryPPO` writes into a file, and how it is rebuilt from one."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch import Tensor

from engram.agents import checkpoint, sb3_file, sb3_memory, sb3_schedules, sb3_spaces
from engram.agents.sb3_algorithm import Env, MemoryAlgorithm
from engram.agents.seeds import derive
from engram.kernels.errors import DataError, InvalidValueError

A = TypeVar("A", bound="SavedAlgorithm")

SAVED = (
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "chunk",
    "stats_window_size",
    "tensorboard_log",
    "policy_kwargs",
    "verbose",
    "seed",
)
"""Arguments that a file holds as they are."""
COUNTS = ("num_timesteps", "_n_updates", "_episode_num")
SCHEDULES = ("learning_rate", "clip_range")


class SavedAlgorithm(MemoryAlgorithm):
    """Saves and loads, without pickle, what `MemoryAlgorithm` learns."""

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: Any = "auto"
    ) -> None:
        """Take weights and optimiser from `get_parameters`, or from a file that `save` wrote.

        Raises:
            DataError: If the file is damaged or of another architecture; nothing has changed then.
        """
        if not isinstance(load_path_or_dict, dict):
            tensors, _ = sb3_file.read(load_path_or_dict)
            load_path_or_dict = self._parameters(tensors, sb3_file.title(load_path_or_dict))
        super().set_parameters(load_path_or_dict, exact_match, device)

    def save(
        self,
        path: sb3_file.Target,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write weights, optimiser, random states, settings and counts; no pickle.

        A memory that is no class of its own, settings of it that JSON cannot hold, and schedules
        that are code are not written: a warning names them, and `load` wants them again.

        Args:
            path: Gets `.zip` unless it has a suffix; or an open binary file.
            exclude: None: what a file holds is settled.
            include: Likewise.
        """
        for name, value in (("exclude", exclude), ("include", include)):
            if value is not None:
                raise InvalidValueError(name, value, "None (what a file holds is settled)")
        arguments = {name: getattr(self, name, None) for name in SAVED}
        arguments["stats_window_size"] = self._stats_window_size
        arguments |= {name: sb3_schedules.describe(getattr(self, name)) for name in SCHEDULES}
        facts = {
            "memory": sb3_memory.describe(self.memory, self.memory_kwargs),
            "arguments": arguments,
            "observation_space": sb3_spaces.describe(self.observation_space),
            "action_space": sb3_spaces.describe(self.action_space),
            "counts": {name: getattr(self, name) for name in COUNTS},
            "n_envs": self.n_envs,
            "run_seed": self.run_seed,
            "device": self.device.type,
            "system": get_system_info(print_info=False)[0],
        }
        lacking = [name for name in SCHEDULES if arguments[name] is None]
        lacking += [] if facts["memory"] else ["memory"]
        sb3_file.write(path, self._tensors(), facts)
        if lacking:
            again = ", ".join(f"{name}=..." for name in lacking)
            warnings.warn(
                f"model {sb3_file.title(path)} holds no {' and no '.join(lacking)}: only pickle "
                f"could write that; load(path, {again}) wants the same again",
                stacklevel=2,
            )

    @classmethod
    def load(  # type: ignore[override]
        cls: type[A],
        path: sb3_file.Target,
        env: Env | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> A:
        """Rebuild what `save` wrote.

        Exact: weights, optimiser, step counts, settings, and, on a device of the same kind, all
        random states. Not kept: the environment, which cannot be copied, and so its running
        episodes, their memory and the windows of statistics; where there is a seed, the new
        episodes have seeds that the run has not seen.

        Args:
            path: As given to `save`.
            env: With the spaces of the old one; without any, only `predict` works.
            device: Where to go on.
            custom_objects: `memory`, `learning_rate` (or `lr_schedule`) and `clip_range`, in place
                of what the file holds or lacks.
            print_system_info: Whether to print the versions that wrote the file, and those here.
            force_reset: True: the memory of running episodes is not in the file.
            kwargs: Arguments in place of those in the file; policy_kwargs cannot change.

        Raises:
            DataError: If the file is damaged, or the memory or the spaces are others.
            InvalidValueError: If an argument is needed or cannot be changed.
        """
        if not force_reset:
            raise InvalidValueError("force_reset", force_reset, "True (no episode is in the file)")
        tensors, facts = sb3_file.read(path)
        source = sb3_file.title(path)
        given = {**_custom(custom_objects or {}), **kwargs}
        try:
            model = cls._unset(facts, given, device)
            counts = {name: int(facts["counts"][name]) for name in COUNTS}
            model.n_envs, run_seed = int(facts["n_envs"]), int(facts["run_seed"])
            system, made_on = dict(facts["system"]), str(facts["device"])
        except (KeyError, TypeError) as error:
            raise DataError(f"model {source} is damaged: {error!r} in its facts") from error
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print("== SAVED MODEL SYSTEM INFO ==")
            print("\n".join(f"- {name}: {value}" for name, value in system.items()))
        if env is not None:
            model._adopt(env, source)
        model._setup_model()
        parameters = model._parameters(tensors, source)
        super(SavedAlgorithm, model).set_parameters(parameters)
        for name, count in counts.items():
            setattr(model, name, count)
        model._go_on(tensors, run_seed if "seed" not in given else model.run_seed, made_on)
        return model

    @classmethod
    def _unset(cls: type[A], facts: dict[str, Any], given: dict[str, Any], device: Any) -> A:
        """Make the algorithm that a file describes, without environment and networks."""
        arguments = {**facts["arguments"], **given}
        shape = facts["arguments"]["policy_kwargs"]
        if given.get("policy_kwargs", shape) != shape:
            raise InvalidValueError("policy_kwargs", given["policy_kwargs"], f"as saved, {shape}")
        described = facts["memory"]
        memory, settings = arguments.pop("memory", None), arguments.pop("memory_kwargs", None)
        if memory is None and described is not None:
            memory, saved = sb3_memory.rebuild(described)
            settings = saved if settings is None else settings
        lacking = [name for name in SCHEDULES if arguments[name] is None]
        lacking += [] if memory is not None else ["memory"]
        if lacking:
            again = ", ".join(f"{name}=..." for name in lacking)
            allowed = f"load(path, {again}), as it was: the file holds none"
            raise InvalidValueError(lacking[0], None, allowed)
        model = cls(
            memory,
            None,
            memory_kwargs=settings,
            device=device,
            **arguments,
            _init_setup_model=False,
        )
        model.observation_space = sb3_spaces.rebuild(facts["observation_space"])
        model.action_space = sb3_spaces.rebuild(facts["action_space"])
        return model

    def _adopt(self, env: Env, source: Path) -> None:
        """Take an environment with the spaces in the file, whatever its number of worlds."""
        wrapped = self._wrap_env(maybe_make_env(env, self.verbose), self.verbose)  # type: ignore[arg-type]
        for name in ("observation_space", "action_space"):
            seen, allowed = getattr(wrapped, name), getattr(self, name)
            if seen != allowed:
                raise DataError(f"model {source}: {name} of env is {seen}; allowed: {allowed}")
        self.env, self.n_envs = wrapped, wrapped.num_envs
        self._vec_normalize_env = unwrap_vec_normalize(wrapped)

    def _go_on(self, tensors: dict[str, Tensor], run_seed: int, made_on: str) -> None:
        """Continue the random sequences of the run, in worlds that it has not seen."""
        assert self.policy.generator is not None
        self.run_seed = run_seed
        if made_on == self.device.type:
            self.acting.set_state(tensors["random.act"])
            self.learner.generator.set_state(tensors["random.learn"])
            self.policy.generator.set_state(tensors["random.predict"])
        else:  # each kind of device has random states of its own
            self._seed_generators(derive(run_seed, f"after {self.num_timesteps} steps"))
        if self.env is not None and self.seed is not None:
            self.env.seed(derive(run_seed, f"worlds after {self.num_timesteps} steps"))

    def _tensors(self) -> dict[str, Tensor]:
        """Name every tensor of a file."""
        assert self.policy.generator is not None
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        for index, moments in self.learner.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        tensors["random.act"] = self.acting.get_state()
        tensors["random.learn"] = self.learner.generator.get_state()
        tensors["random.predict"] = self.policy.generator.get_state()
        return tensors

    def _parameters(self, tensors: dict[str, Tensor], source: Path) -> dict[str, Any]:
        """Return a file's weights and moments as `get_parameters` does, once they fit."""
        mine = self._tensors()
        random = {name for name in mine if name.startswith("random.")}
        if lacking := sorted(random - tensors.keys()):
            raise DataError(f"model {source}: {lacking[0]} is missing; allowed: random states")
        weights = {k: v for k, v in tensors.items() if k not in random}
        checkpoint.check(weights, {k: v for k, v in mine.items() if k not in random}, source)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.part(weights, "optimizer").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.learner.optimizer.state_dict()["param_groups"]
        optimizer = {"state": moments, "param_groups": groups}
        return {"policy": checkpoint.part(weights, "policy"), "policy.optimizer": optimizer}


def _custom(objects: dict[str, Any]) -> dict[str, Any]:
    """Return SB3's `custom_objects` as arguments."""
    names = {name: name for name in ("memory", *SCHEDULES)} | {"lr_schedule": "learning_rate"}
    for name, value in objects.items():
        if name not in names:
            raise InvalidValueError(f"custom_objects[{name!r}]", value, f"keys {', '.join(names)}")
    # A saved schedule is what lr_schedule replaces in SB3, whatever learning_rate says.
    return {names[name]: value for name, value in objects.items()}
