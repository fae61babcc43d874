"""Checkpoints: the memory is in LeRobot's own files, whole or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy
from safetensors.torch import load_file, save_file

from engram.kernels.errors import DataError, InvalidValueError
from lerobot_policy_engram import MemoryConfig, attach_memory, load_policy

MEMORY = MemoryConfig("hcam", {"layer": {"chunk": 2}}, width=8, window=3, lr=0.1)


@pytest.fixture
def policy(plain: Any) -> Any:
    policy = attach_memory(plain, MEMORY)
    torch.nn.init.normal_(policy.engram.reading.weight)
    return policy


def equal(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_saved_and_loaded_it_is_the_same_policy(policy: Any, tmp_path: Path):
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    assert type(again) is type(policy) and equal(again, policy)
    assert again.config.memory == MEMORY and not again.training


def test_a_checkpoint_is_one_config_and_one_file_of_weights(policy: Any, tmp_path: Path):
    policy.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["type"] == policy.name and config["memory"]["name"] == "hcam"
    assert "engram.reading.weight" in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_factory_of_lerobot_loads_it(policy: Any, dataset: Any, tmp_path: Path):
    policy.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.pretrained_path = tmp_path
    assert equal(make_policy(config, ds_meta=dataset().meta), policy)


def test_checkpoint_without_memory_gets_a_new_one(plain: Any, tmp_path: Path):
    plain.save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    config = attach_memory(plain, MEMORY).config  # as the command line gives it
    loaded = get_policy_class(config.type).from_pretrained(tmp_path, config=config)
    after = loaded.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not after["engram.reading.weight"].any()


def damaged(policy: Any, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    policy.save_pretrained(folder)
    file = folder / "model.safetensors"
    return file, load_file(file)


@pytest.mark.parametrize("kind", ["act"], indirect=True)
class TestDamage:
    def test_part_of_a_memory_is_refused(self, policy: Any, tmp_path: Path):
        file, weights = damaged(policy, tmp_path)
        del weights["engram.told.0.weight"]
        save_file(weights, file)
        with pytest.raises(DataError, match=r"lacks \['engram.told.0.weight'\]"):
            load_policy(tmp_path)

    def test_a_missing_weight_of_the_policy_is_refused(self, policy: Any, tmp_path: Path):
        file, weights = damaged(policy, tmp_path)
        del weights["model.action_head.bias"]
        save_file(weights, file)
        with pytest.raises(DataError, match=r"lacks \['model.action_head.bias'\]"):
            load_policy(tmp_path)

    def test_a_weight_too_many_is_refused(self, policy: Any, tmp_path: Path):
        file, weights = damaged(policy, tmp_path)
        save_file({**weights, "engram.more": torch.zeros(1)}, file)
        with pytest.raises(DataError, match=r"has \['engram.more'\]"):
            load_policy(tmp_path)

    def test_a_weight_of_another_shape_is_refused(self, policy: Any, tmp_path: Path):
        file, weights = damaged(policy, tmp_path)
        save_file({**weights, "engram.reading.weight": torch.zeros(2, 2)}, file)
        with pytest.raises(DataError, match=r"engram\.reading\.weight"):
            load_policy(tmp_path)

    def test_a_file_cut_short_is_refused(self, policy: Any, tmp_path: Path):
        file, _ = damaged(policy, tmp_path)
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DataError, match="does not fit"):
            load_policy(tmp_path)

    def test_missing_files_are_named(self, policy: Any, tmp_path: Path):
        with pytest.raises(DataError, match=r"has no config.json"):
            load_policy(tmp_path)
        file, _ = damaged(policy, tmp_path)
        file.unlink()
        with pytest.raises(DataError, match=r"model.safetensors does not exist"):
            load_policy(tmp_path)

    def test_a_config_names_no_code(self, policy: Any, tmp_path: Path):
        damaged(policy, tmp_path)
        file = tmp_path / "config.json"
        config = json.loads(file.read_text())
        for name, settings in (
            ("gru", {"_target_": "os.system"}),
            ("hcam", {"layer": {"_target_": "os.system"}}),
            ("os.system", {}),
        ):
            config["memory"].update(name=name, settings=settings)
            file.write_text(json.dumps(config))
            with pytest.raises(InvalidValueError, match=r"policy.memory"):
                load_policy(tmp_path)


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_a_policy_without_memory_is_not_what_is_loaded(plain: Any, tmp_path: Path):
    plain.save_pretrained(tmp_path)
    with pytest.raises(InvalidValueError, match=r"type is 'act'; allowed: engram_vla, engram_act"):
        load_policy(tmp_path)
