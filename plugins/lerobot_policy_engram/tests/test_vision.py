"""The image encoders that `engram_vla` can see with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vla import act, build, forget, observe, overridden, samples
from torch.utils.data import default_collate

from engram.kernels.errors import DataError, InvalidValueError
from lerobot_policy_engram import VisionConfig, load_policy

SEES = {"conv": {}, "keypoints": {"tokens": 4}, "transformer": {"depth": 1}}
SIDE = {"height": 32, "width": 32}


def save_encoder(folder: Path) -> Path:
    """Save an image encoder of transformers."""
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    config = hf.ViTConfig(image_size=32, patch_size=8, num_attention_heads=2, **sizes)
    hf.ViTModel(config).save_pretrained(folder)
    hf.ViTImageProcessor(size=SIDE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", SEES)
def test_every_image_encoder_learns_and_acts(dataset: Callable[..., Any], name: str):
    policy = build(dataset, vision=VisionConfig(name, SEES[name])).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (3, 9)])
    policy.forward(batch)[0].backward()
    assert all(weight.grad.any() for weight in policy.vla.perception.vision.parameters())
    assert act(policy.eval(), observe()).shape == (2, 2)


@pytest.mark.parametrize("trained", [False, True])
def test_a_pretrained_encoder_is_saved_unless_it_stays_as_it_is(
    trained: bool, dataset: Callable[..., Any], tmp_path: Path
):
    folder = save_encoder(tmp_path / "vit")
    vision = VisionConfig("pretrained", {"path": str(folder), "trained": trained})
    policy = build(dataset, vision=vision).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (3, 9)])
    policy.forward(batch)[0].backward()
    encoder = policy.vla.perception.vision.model
    assert any(weight.grad is not None for weight in encoder.parameters()) is trained
    policy.eval().save_pretrained(tmp_path / "policy")
    saved = load_file(tmp_path / "policy" / "model.safetensors")
    assert any(".vision.held.encoder" in name for name in saved) is trained
    seen = observe()
    acted = act(policy, seen)
    assert torch.equal(act(load_policy(tmp_path / "policy"), seen), acted)
    others = {name: weight + 1 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(others, folder / "model.safetensors", metadata={"format": "pt"})
    if trained:  # the folder says only what it is; its weights are the policy's own
        assert torch.equal(act(load_policy(tmp_path / "policy"), seen), acted)
    else:
        with pytest.raises(DataError, match="fingerprint"):
            load_policy(tmp_path / "policy")


def test_what_was_saved_before_there_was_a_choice_loads_with_convolutions(
    dataset: Callable[..., Any], tmp_path: Path
):
    policy = build(dataset, vision=VisionConfig("conv")).eval()
    policy.save_pretrained(tmp_path)
    forget(tmp_path, "vision")
    with pytest.raises(DataError, match=r"lacks .*perception\.vision"):
        load_policy(tmp_path)
    again, seen = overridden(tmp_path, dataset, "--vision.name=conv"), observe()
    assert torch.equal(act(again, seen), act(policy, seen))


def test_a_pretrained_encoder_that_was_moved_is_named_anew(
    dataset: Callable[..., Any], tmp_path: Path
):
    folder = save_encoder(tmp_path / "vit")
    policy = build(dataset, vision=VisionConfig("pretrained", {"path": str(folder)})).eval()
    policy.save_pretrained(tmp_path / "policy")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(InvalidValueError, match="the folder of a model"):
        load_policy(tmp_path / "policy")
    override = "--vision.settings=" + json.dumps({"path": str(moved)})
    again, seen = overridden(tmp_path / "policy", dataset, override), observe()
    assert torch.equal(act(again, seen), act(policy, seen))


@pytest.mark.parametrize(
    "vision, message",
    [
        (VisionConfig("conf"), "vision.name is 'conf'; allowed: conv, keypoints, pretrained, tra"),
        (VisionConfig("vlm"), "vision.name is 'vlm'; allowed: conv, keypoints, pretrained, trans"),
        (VisionConfig("conv", {"depth": 2}), "settings of conv"),
        (VisionConfig("transformer", {"patch": 7}), "patch"),
        (VisionConfig("keypoints", {"_target_": "os.system"}), "names of settings"),
        (VisionConfig("keypoints", {"tokens": [{"_target_": "os.system"}]}), "names of settings"),
        (VisionConfig("pretrained"), "the folder of a model; nothing is downloaded"),
    ],
)
def test_impossible_encoders_are_refused(vision: Any, message: str, dataset: Callable[..., Any]):
    with pytest.raises(InvalidValueError, match=message):
        build(dataset, vision=vision)
