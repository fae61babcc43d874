"""Every YAML file composes, builds on the CPU, and runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engram.launch.build import build_training
from engram.launch.clone_config import GROUPS
from engram.launch.config import choices, compose_settings, compose_tree

SMALL = ["agent.rollout=4", "agent.chunk=2", "agent.epochs=1", "num_envs=3", "policy.width=16"]


def iterate(overrides: list[str]) -> dict[str, float | int]:
    tree = compose_tree([*SMALL, *overrides])
    training = build_training(tree, device=torch.device("cpu"), seed=0, budget=24)
    report = training.iterate()
    training.collector.close()
    return report


@pytest.mark.parametrize("memory", choices("memory"))
def test_every_memory_trains(memory: str) -> None:
    assert iterate([f"memory={memory}"])["steps"] == 12


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "warp_mujoco" else [])
        for name in choices("env")
        if name != "maniskill"  # one world on a CPU: below
    ],
)
def test_every_environment_trains(env: str, tmp_path: Path, monkeypatch: Any) -> None:
    packages = {"manipulation": "mink", "masked_mujoco": "mujoco", "warp_mujoco": "mujoco_warp"}
    if env in packages:
        pytest.importorskip(packages[env], reason="needs an extra")
    monkeypatch.chdir(tmp_path)  # the simulator writes its log where it runs
    assert iterate([f"env={env}"])["steps"] == 12


@pytest.mark.filterwarnings("ignore")  # of what the simulator imports
def test_maniskill_trains() -> None:
    pytest.importorskip("mani_skill", reason="needs engram[maniskill]")
    assert iterate(["env=maniskill", "num_envs=1", "agent.minibatches=1"])["steps"] == 4


@pytest.mark.parametrize("preset", choices("preset"))
def test_every_preset_composes(preset: str) -> None:
    settings = compose_settings([f"preset={preset}"], several=True)
    assert settings.memories and settings.budget > 0


def test_every_yaml_belongs_to_a_group_or_is_a_run() -> None:
    import engram.configs

    (folder,) = engram.configs.__path__
    found = {path.relative_to(folder).parts[0] for path in Path(folder).rglob("*.yaml")}
    groups = {"env", "memory", "agent", "preset", *GROUPS}
    assert found == {*groups, "train.yaml", "clone.yaml"}


def test_auxiliary_losses_and_observation_norms_are_settings() -> None:
    report = iterate(
        [
            "env=street",
            "policy.normalize=true",
            "policy.auxiliary.predict=1.0",
            "policy.auxiliary.recall=0.5",
            "policy.auxiliary.reconstruct=2.0",
        ]
    )
    assert {"predict", "recall", "reconstruct"} <= report.keys()
