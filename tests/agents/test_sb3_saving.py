"""Saving and loading a MemoryPPO: what is exact, and what is refused."""

import io
import json
import os
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from engram.agents import sb3_file
from engram.agents.sb3 import MemoryPPO
from engram.agents.seeds import derive
from engram.kernels.errors import DataError, InvalidValueError
from engram.memory.sequence import GRU, HCAM, SequenceMemory, stack

Env = type[gymnasium.Env]
SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 3, "device": "cpu"}
SMALL["policy_kwargs"] = {"width": 8}
CHUNKS = {"chunk": 3, "capacity": 3, "top_k": 2, "heads": 2}


def model_for(env: Any, memory: Any = GRU, **changed: Any) -> MemoryPPO:
    return MemoryPPO(memory, env, **{**SMALL, **changed})


def everything(model: MemoryPPO) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model._tensors().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "memory, settings", [(GRU, {}), (stack, {"layer": partial(HCAM, **CHUNKS), "layers": 1})]
)
def test_a_loaded_model_learns_on_exactly_in_worlds_of_the_same_seeds(
    memory: Any, settings: dict[str, Any], cue: Env, tmp_path: Path
):
    through = model_for(
        make_vec_env(cue, 2), memory, memory_kwargs=settings, learning_rate="lin_1e-2"
    )
    through.learn(32)
    through.save(tmp_path / "run")
    at_save = everything(through)

    torch.manual_seed(99)  # nothing may hang on the global generator
    loaded = MemoryPPO.load(tmp_path / "run.zip", env=make_vec_env(cue, 2), device="cpu")
    assert same(everything(loaded), at_save)
    assert loaded.num_timesteps == 32 and loaded._n_updates == through._n_updates == 4
    loaded.learn(48, reset_num_timesteps=False)

    through.set_env(make_vec_env(cue, 2))
    assert through.env is not None
    through.env.seed(derive(3, "worlds after 32 steps"))
    through.learn(48, reset_num_timesteps=False)
    assert same(everything(loaded), everything(through))
    assert not same(everything(loaded), at_save)


def test_without_an_environment_it_predicts_as_before(drift: Env, tmp_path: Path):
    model = model_for(make_vec_env(drift, 2)).learn(16)
    model.save(tmp_path / "run")
    loaded = MemoryPPO.load(tmp_path / "run", device="cpu")
    assert loaded.get_env() is None
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    x, a, b = np.ones((2, 2), dtype=np.float32), None, None
    for _ in range(4):
        mine, a = model.predict(x, a)
        theirs, b = loaded.predict(x, b)
        assert (mine == theirs).all()
    with pytest.raises(InvalidValueError, match=r"env is None; allowed: one given to load"):
        loaded.learn(1)
    loaded.set_env(make_vec_env(drift, 2))
    assert loaded.learn(1, reset_num_timesteps=False).num_timesteps == 32


def test_the_number_of_worlds_and_settings_may_change(cue: Env, tmp_path: Path):
    model_for(make_vec_env(cue, 2), verbose=0).save(tmp_path / "run")
    loaded = MemoryPPO.load(
        tmp_path / "run", env=make_vec_env(cue, 4), device="cpu", n_epochs=1, learning_rate=0.5
    )
    loaded.learn(1)
    assert loaded.num_timesteps == 32 and loaded._n_updates == 1
    assert loaded.learner.optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(InvalidValueError, match=r"batch_size is 16; allowed: divisors of .* = 24"):
        MemoryPPO.load(tmp_path / "run", env=make_vec_env(cue, 3), device="cpu")


def test_an_open_file_serves_as_well_as_a_path(cue: Env):
    model, file = model_for(make_vec_env(cue, 2)), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert same(everything(MemoryPPO.load(file, device="cpu")), everything(model))


def test_parameters_can_be_read_from_a_file(cue: Env, tmp_path: Path):
    giver, taker = model_for(make_vec_env(cue, 2)).learn(16), model_for(make_vec_env(cue, 2))
    giver.save(tmp_path / "run")
    taker.set_parameters(tmp_path / "run")
    for name, tensor in everything(giver).items():
        assert name.startswith("random.") or torch.equal(tensor, everything(taker)[name])


def test_another_architecture_is_refused_and_changes_nothing(cue: Env, tmp_path: Path):
    model_for(make_vec_env(cue, 2), policy_kwargs={"width": 6}).save(tmp_path / "run")
    taker = model_for(make_vec_env(cue, 2))
    before = everything(taker)
    with pytest.raises(DataError, match=r"run: optimizer\.0\.exp_avg is \[4, 6\]; allowed: \[4, 8"):
        taker.set_parameters(tmp_path / "run")
    assert same(everything(taker), before)
    with pytest.raises(DataError, match=r"run: .* is .*; allowed: "):
        MemoryPPO.load(tmp_path / "run", memory=HCAM, memory_kwargs={"heads": 2}, device="cpu")


def test_other_spaces_are_refused(cue: Env, drift: Env, tmp_path: Path):
    model_for(make_vec_env(cue, 2)).save(tmp_path / "run")
    with pytest.raises(DataError, match=r"run: observation_space of env is Box.*; allowed: Disc"):
        MemoryPPO.load(tmp_path / "run", env=drift())


def test_normalised_environments_are_found_again(drift: Env, tmp_path: Path):
    model = model_for(VecNormalize(DummyVecEnv([drift, drift]))).learn(16)
    model.save(tmp_path / "run")
    env = VecNormalize(DummyVecEnv([drift, drift]))
    assert MemoryPPO.load(tmp_path / "run", env=env).get_vec_normalize_env() is env


def layers(width: int) -> SequenceMemory[Any]:
    return stack(width, layer=GRU, layers=2)


def test_what_is_code_is_not_saved_and_is_wanted_again(cue: Env, tmp_path: Path):
    model = model_for(make_vec_env(cue, 2), layers, clip_range=lambda left: 0.1 + left)
    with pytest.warns(UserWarning, match=r"run holds no clip_range and no memory: .* wants the sa"):
        model.save(tmp_path / "run")
    with pytest.raises(InvalidValueError, match=r"load\(path, clip_range=\.\.\., memory=\.\.\.\)"):
        MemoryPPO.load(tmp_path / "run")
    again: dict[str, Any] = {"memory": layers, "clip_range": lambda left: 0.1 + left}
    for given in (again, {"custom_objects": again}):
        loaded = MemoryPPO.load(tmp_path / "run", device="cpu", **given)
        assert same(everything(loaded), everything(model))


def test_a_schedule_of_sb3_is_saved(cue: Env, tmp_path: Path):
    model = model_for(make_vec_env(cue, 2), learning_rate=LinearSchedule(1e-2, 1e-3, 0.5))
    model.save(tmp_path / "run")
    loaded = MemoryPPO.load(tmp_path / "run", device="cpu")
    for left in (1.0, 0.7, 0.2):
        assert loaded.lr_schedule(left) == model.lr_schedule(left)
    replaced = {"lr_schedule": lambda _: 0.25}
    loaded = MemoryPPO.load(tmp_path / "run", device="cpu", custom_objects=replaced)
    assert loaded.lr_schedule(0.5) == 0.25


def test_the_versions_that_wrote_a_file_are_printed(
    cue: Env, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model_for(make_vec_env(cue, 2)).save(tmp_path / "run")
    MemoryPPO.load(tmp_path / "run", print_system_info=True)
    told = capsys.readouterr().out
    assert told.count(f"- PyTorch: {torch.__version__}") == 2 and "SAVED MODEL" in told


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"force_reset": False}, r"force_reset is False; allowed: True"),
        ({"custom_objects": {"policy_class": 1}}, r"custom_objects\['policy_class'\] is 1; allow"),
        ({"policy_kwargs": {"width": 4}}, r"policy_kwargs is {'width': 4}; allowed: as saved"),
        ({"target_kl": 0.1}, r"target_kl is 0.1; allowed: None"),
        ({"colour": 1}, r"setting is 'colour'; allowed: memory, env,"),
    ],
)
def test_what_load_cannot_do_is_refused(
    arguments: dict[str, Any], message: str, cue: Env, tmp_path: Path
):
    model_for(make_vec_env(cue, 2)).save(tmp_path / "run")
    with pytest.raises(InvalidValueError, match=message):
        MemoryPPO.load(tmp_path / "run", **arguments)


def test_what_a_file_holds_is_settled(cue: Env, tmp_path: Path):
    model = model_for(make_vec_env(cue, 2))
    for name in ("exclude", "include"):
        with pytest.raises(InvalidValueError, match=rf"{name} is \['env'\]; allowed: None"):
            model.save(tmp_path / "run", **{name: ["env"]})
    assert not list(tmp_path.iterdir())


def test_a_file_made_on_another_kind_of_device_goes_on_with_new_random_states(
    cue: Env, tmp_path: Path
):
    model_for(make_vec_env(cue, 2)).learn(16).save(tmp_path / "run")
    tensors, facts = sb3_file.read(tmp_path / "run")
    for name in ("act", "learn", "predict"):
        tensors[f"random.{name}"] = torch.zeros(16, dtype=torch.uint8)  # as CUDA's are
    sb3_file.write(tmp_path / "gpu", tensors, {**facts, "device": "cuda"})
    one, two = (
        MemoryPPO.load(tmp_path / "gpu", env=make_vec_env(cue, 2), device="cpu") for _ in range(2)
    )
    one.learn(16, reset_num_timesteps=False)
    two.learn(16, reset_num_timesteps=False)
    assert same(everything(one), everything(two))


def test_no_byte_can_change_unnoticed(cue: Env, tmp_path: Path):
    model_for(make_vec_env(cue, 2)).save(tmp_path / "run")
    whole = (tmp_path / "run.zip").read_bytes()
    tensors, facts = sb3_file.read(tmp_path / "run")
    refused = 0
    for place in [*range(0, len(whole), 97), *range(len(whole) - 160, len(whole))]:
        hurt = bytearray(whole)
        hurt[place] ^= 0x21
        (tmp_path / "hurt.zip").write_bytes(hurt)
        try:
            found = sb3_file.read(tmp_path / "hurt")
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
        else:  # dates and attributes of the zip mean nothing
            assert same(found[0], tensors) and found[1] == facts
    assert refused > len(whole) / 97 - 5
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "hurt.zip").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"hurt is damaged: "):
            sb3_file.read(tmp_path / "hurt")


def rewritten(source: Path, target: Path, kind: int = zipfile.ZIP_STORED, **facts: Any) -> Path:
    """A copy with other facts; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        merged = {**json.loads(old.read("facts.json")), **facts}
        kept = {name: fact for name, fact in merged.items() if fact is not None}
        new.writestr("facts.json", json.dumps(kept))
        new.writestr("tensors.safetensors", old.read("tensors.safetensors"))
    return target


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"format": 2}, r"model .* is of another version; allowed: 1"),
        ({"arguments": None}, r"is damaged: KeyError\('arguments'\) in its facts"),
        ({"counts": {}}, r"is damaged: KeyError\('num_timesteps'\) in its facts"),
        ({"memory": 3}, r"is damaged: Type.* in its facts"),
        ({"observation_space": {"kind": "Door"}}, r"space {'kind': 'Door'} is no space"),
        ({"action_space": {"kind": "Discrete", "n": 0, "start": 0}}, r"is no space that was saved"),
        (
            {"memory": {"module": "os", "name": "system", "settings": {}}},
            r"memory is os\.system, which is not imported or no SequenceMemory; allowed: ",
        ),
        (
            {"memory": {"module": "this", "name": "x", "settings": {}}},
            r"memory is this\.x, which is not imported",
        ),
    ],
)
def test_a_file_with_other_facts_is_refused(
    facts: dict[str, Any], message: str, cue: Env, tmp_path: Path
):
    model_for(make_vec_env(cue, 2)).save(tmp_path / "run")
    path = rewritten(tmp_path / "run.zip", tmp_path / "other.zip", **facts)
    with pytest.raises(DataError, match=message):
        MemoryPPO.load(path)
    assert "this" not in sys.modules  # a file chooses no import


def test_other_programs_files_are_refused(cue: Env, tmp_path: Path):
    model_for(make_vec_env(cue, 2)).save(tmp_path / "run")
    with pytest.raises(DataError, match="none does not exist"):
        MemoryPPO.load(tmp_path / "none")
    with zipfile.ZipFile(tmp_path / "sb3.zip", "w") as file:
        file.writestr("data", "{}")
    with pytest.raises(DataError, match=r"sb3 is of another program; allowed: what MemoryPPO.save"):
        MemoryPPO.load(tmp_path / "sb3")
    path = rewritten(tmp_path / "run.zip", tmp_path / "small.zip", zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"facts\.json is compressed"):
        MemoryPPO.load(path)


def test_a_failed_save_leaves_the_old_file(
    cue: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = model_for(make_vec_env(cue, 2))
    model.save(tmp_path / "run")
    before = (tmp_path / "run.zip").read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        model.learn(16).save(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run.zip"]
    assert (tmp_path / "run.zip").read_bytes() == before


def test_dict_spaces_and_infinite_bounds_survive(tmp_path: Path):
    parts = {
        "far": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "eye": spaces.Box(0, 255, (36, 36, 3), np.uint8),
        "bits": spaces.MultiBinary(3),
        "some": spaces.MultiDiscrete([3, 2]),
    }

    class World(gymnasium.Env):
        observation_space = spaces.Dict(parts)
        action_space = spaces.MultiBinary(2)

    model = model_for(DummyVecEnv([World]), batch_size=8)
    model.save(tmp_path / "run")
    loaded = MemoryPPO.load(tmp_path / "run", env=DummyVecEnv([World]))
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
