"""Hyperparameter files of SB3's zoo, read for a `MemoryPPO`."""

import ast
from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from engram.agents.sb3 import MemoryPPO
from engram.kernels.errors import InvalidValueError

POLICIES = [f"{kind}{lstm}Policy" for kind in ("Mlp", "Cnn", "MultiInput") for lstm in ("", "Lstm")]


def from_zoo(
    memory: Any, env_id: str, hyperparameters: dict[str, Any], **settings: Any
) -> MemoryPPO:
    """Build what the zoo would build for one entry of its YAML files, with a memory.

    The zoo's own keys make the environment: `n_envs` copies of it, under `VecNormalize` where
    `normalize` says so (true, or its keywords), and `VecFrameStack` where `frame_stack` does. The
    memory takes the place of `policy`. `n_timesteps` is the budget that `learn` is given. All
    other keys are settings of `MemoryPPO`, which refuses those without a meaning here.

    Args:
        memory: As `MemoryPPO` takes it.
        env_id: Of a Gymnasium environment.
        hyperparameters: The entry, as YAML loads it.
        settings: Further arguments of `MemoryPPO`, in place of those in the entry.

    Raises:
        InvalidValueError: If a key cannot be read, or names code (wrappers and callbacks).
    """
    rest = dict(hyperparameters)
    steps = rest.pop("n_timesteps", 1)
    if isinstance(steps, bool) or not isinstance(steps, int | float) or steps < 1:
        raise InvalidValueError("n_timesteps", steps, "1 or more")
    policy = rest.pop("policy", POLICIES[0])
    if policy not in POLICIES:
        raise InvalidValueError("policy", policy, f"{', '.join(POLICIES)}: the memory replaces it")
    for name in ("env_wrapper", "vec_env_wrapper", "callback"):
        if rest.pop(name, None) is not None:
            allowed = "nothing: make the environment, or give the callback to learn, yourself"
            raise InvalidValueError(name, hyperparameters[name], allowed)
    rest["policy_kwargs"] = keywords("policy_kwargs", rest.get("policy_kwargs") or {})
    copies, stacked = rest.pop("n_envs", 1), rest.pop("frame_stack", None)
    for name, count in (("n_envs", copies), ("frame_stack", 1 if stacked is None else stacked)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidValueError(name, count, "a whole number, 1 or more")
    normalize = rest.pop("normalize", False)
    if not isinstance(normalize, bool):
        normalize = keywords("normalize", normalize)
    rest |= settings
    env: VecEnv = make_vec_env(env_id, n_envs=copies, seed=rest.get("seed"))
    if normalize is not False:
        # Returns are discounted as the learner discounts them.
        scaling = {} if normalize is True else normalize
        env = VecNormalize(env, **{"gamma": rest.get("gamma", 0.99), **scaling})
    if stacked is not None:
        env = VecFrameStack(env, stacked)
    return MemoryPPO(memory, env, **rest)


def keywords(name: str, value: Any) -> dict[str, Any]:
    """Read keywords: a dict, or the text of one, `"dict(a=1)"` or `"{'a': 1}"`; nothing is run.

    Raises:
        InvalidValueError: If it is neither, or holds more than literals.
    """
    allowed = 'a dict, or text such as "dict(a=1)" with plain values'
    if isinstance(value, dict):
        return value
    try:
        call = ast.parse(str(value).strip(), mode="eval").body
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "dict" and not call.args:
            return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        read = ast.literal_eval(call)
    except (SyntaxError, ValueError):
        raise InvalidValueError(name, value, allowed) from None
    if not isinstance(read, dict):
        raise InvalidValueError(name, value, allowed)
    return read
