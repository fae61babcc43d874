"""LeRobot's own commands: found, trained, resumed, fine-tuned and rolled out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts import lerobot_eval, lerobot_train
from safetensors.torch import load_file

from engram.kernels.errors import DataError
from lerobot_policy_engram import MemoryConfig, attach_to_checkpoint, load_policy

TINY = {
    "act": [
        "--policy.pretrained_backbone_weights=null",
        "--policy.dim_model=16",
        "--policy.n_heads=2",
        "--policy.dim_feedforward=32",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=2",
    ],
    "diffusion": [
        "--policy.horizon=8",
        "--policy.n_action_steps=3",
        "--policy.drop_n_last_frames=2",
        "--policy.pretrained_backbone_weights=null",
        "--policy.use_group_norm=true",
        "--policy.down_dims=[16,32]",
        "--policy.n_groups=4",
        "--policy.num_train_timesteps=4",
    ],
}


def arguments(root: Path, out: Path, steps: int = 2) -> list[str]:
    return [
        "--dataset.repo_id=engram/tiny",
        f"--dataset.root={root}",
        f"--output_dir={out}",
        f"--steps={steps}",
        "--batch_size=3",
        "--num_workers=0",
        "--save_freq=2",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
    ]


def train(patch: pytest.MonkeyPatch, *given: str) -> None:
    """Run `lerobot-train` here: a process of its own would import LeRobot once more."""
    patch.setattr(sys, "argv", ["lerobot-train", *given])
    lerobot_train.main()


def saved(out: Path) -> Path:
    return out / "checkpoints" / "last" / "pretrained_model"


def test_a_fresh_process_finds_the_plugin_and_trains(dataset_root: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "lerobot.scripts.lerobot_train",
        *arguments(dataset_root, tmp_path / "run"),
        "--policy.type=engram_act",
        *TINY["act"],
        "--policy.memory.name=hcam",
        "--policy.memory.settings={layer: {chunk: 2, capacity: 4}}",
        "--policy.memory.width=8",
        "--policy.memory.window=3",
        "--policy.memory.lr=0.001",
    ]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=threads, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    policy = load_policy(saved(tmp_path / "run"))
    assert policy.config.memory == MemoryConfig(
        "hcam", {"layer": {"chunk": 2, "capacity": 4}}, width=8, window=3, lr=0.001
    )
    assert policy.engram.reading.weight.any()  # it was trained


def test_diffusion_trains(dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    given = ["--policy.type=engram_diffusion", "--policy.memory.window=3"]
    train(monkeypatch, *arguments(dataset_root, out), *TINY["diffusion"], *given)
    assert load_policy(saved(out)).engram.reading.weight.any()


def test_training_resumes(states_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    given = ["--policy.type=engram_act", "--policy.memory.lr=0.01", "--policy.memory.window=3"]
    train(monkeypatch, *arguments(states_root, out), *TINY["act"], *given)
    state = saved(out).parent / "training_state"
    groups = json.loads((state / "optimizer_param_groups.json").read_text())
    assert groups[-1]["lr"] == 0.01
    before = load_policy(saved(out)).engram.reading.weight.clone()
    train(
        monkeypatch,
        f"--config_path={saved(out) / 'train_config.json'}",
        "--resume=true",
        "--steps=4",
    )
    steps = json.loads((saved(out).parent / "training_state/training_step.json").read_text())
    assert steps["step"] == 4
    assert not torch.equal(load_policy(saved(out)).engram.reading.weight, before)


def test_a_trained_policy_gets_a_memory_and_is_trained_on(
    states_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(
        monkeypatch,
        *arguments(states_root, tmp_path / "base"),
        "--policy.type=act",
        *TINY["act"],
    )
    base = saved(tmp_path / "base")
    memory = MemoryConfig("gru", width=8, window=3, lr=0.01)
    attach_to_checkpoint(base, tmp_path / "attached", memory)
    weights = load_file(base / "model.safetensors")
    attached = load_file(tmp_path / "attached" / "model.safetensors")
    assert all(torch.equal(attached[name], weights[name]) for name in weights)
    train(
        monkeypatch,
        *arguments(states_root, tmp_path / "tuned"),
        f"--policy.path={tmp_path / 'attached'}",
    )
    tuned = load_policy(saved(tmp_path / "tuned"))
    assert tuned.config.memory == memory and tuned.engram.reading.weight.any()
    with pytest.raises(DataError, match="exists; allowed: a new folder"):
        attach_to_checkpoint(base, tmp_path / "attached")
    with pytest.raises(DataError, match=r"no config\.json"):
        attach_to_checkpoint(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


class Still(gym.Env[Any, Any]):
    """An environment in LeRobot's form where nothing happens; it lasts six steps."""

    metadata = {"render_fps": 10}  # noqa: RUF012
    _max_episode_steps = 6
    task_description = task = "pick up the cube"

    def __init__(self):
        box = gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            {"environment_state": box(-1, 1, (3,)), "agent_pos": box(-1, 1, (4,))}
        )
        self.action_space = box(-1, 1, (2,))

    def observe(self) -> dict[str, np.ndarray]:
        return {key: space.sample() for key, space in self.observation_space.items()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> Any:
        return self.observe(), 0.0, False, False, {"is_success": False}


def test_rollout_of_lerobot_writes_every_step(
    states_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    given = ["--policy.type=engram_act", "--policy.memory.window=3"]
    train(monkeypatch, *arguments(states_root, out), *TINY["act"], *given)
    policy = load_policy(saved(out))
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(saved(out)))
    written: list[int] = []
    policy.engram.reading.register_forward_hook(lambda _m, x, _y: written.append(len(x[0])))
    environments = gym.vector.SyncVectorEnv([Still, Still])
    for _episode in range(2):
        result = lerobot_eval.rollout(environments, policy, *unchanged(), pre, post, seeds=[1, 2])
        assert result["action"].shape == (2, 6, 2) and result["action"].isfinite().all()
    assert written == [2] * 12  # two rows, six steps, twice: once each, three plans an episode


def unchanged() -> tuple[Any, Any]:
    return (lambda observation: observation), (lambda action: action)
