"""Pretrained image encoders: the library's tokens, frozen or trained, from a folder or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from engram.kernels.errors import DataError, InvalidValueError, MissingPackageError
from engram.memory.sequence import PresentOnly
from engram.policies import pretrained_folder
from engram.policies.action_expert import ActionExpert
from engram.policies.action_scale import ActionScale
from engram.policies.perception import Perception, Sight, SightSize
from engram.policies.pretrained_vision import PretrainedVision
from engram.policies.vla import VLA

LEADING = {"vit": 1, "dinov2": 5, "siglip": 0}


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def library(path: Path) -> Any:
    """The image tower as its library loads it."""
    import transformers as hf

    kind = {"siglip": hf.SiglipVisionModel, "vit": hf.ViTModel}.get(path.name, hf.AutoModel)
    return kind.from_pretrained(path).eval()


@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip"])
def test_tokens_are_those_of_the_library_without_the_leading_ones(
    name: str, encoders: dict[str, Path]
) -> None:
    vision = PretrainedVision(32, 0, path=str(encoders[name]))
    assert (vision.tokens, vision.width) == (16, 32)
    with torch.no_grad():
        whole = library(encoders[name])(pixel_values=vision.prepare(images())).last_hidden_state
    torch.testing.assert_close(vision(images()), whole[:, LEADING[name] :], rtol=0, atol=0)


def test_a_map_of_features_is_read_cell_by_cell(encoders: dict[str, Path]) -> None:
    vision = PretrainedVision(64, 0, path=str(encoders["convnext"]))
    assert (vision.tokens, vision.width) == (4, 32)
    x = images(size=64)
    with torch.no_grad():
        grid = library(encoders["convnext"])(pixel_values=vision.prepare(x)).last_hidden_state
    torch.testing.assert_close(vision(x)[:, 1], grid[:, :, 0, 1])


@pytest.mark.parametrize("size", [32, 48, 20])
@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_images_are_prepared_as_the_folder_says(
    name: str, size: int, encoders: dict[str, Path]
) -> None:
    from transformers import AutoImageProcessor

    vision = PretrainedVision(size, 0, path=str(encoders[name]))
    processor = AutoImageProcessor.from_pretrained(encoders[name])
    blurred = F.interpolate(images().movedim(3, 1).float(), (size, size), mode="bilinear")
    given = blurred.movedim(1, 3).round().to(torch.uint8)
    wanted = torch.as_tensor(np.stack(processor(images=list(given.numpy()))["pixel_values"]))
    # Both round to bytes after resizing, but the library also between rows and columns.
    step = 0.0 if size == 32 else 2.01 / 255 / 0.5
    torch.testing.assert_close(vision.prepare(given), wanted, rtol=0, atol=step + 1e-5)


def test_nothing_at_the_border_is_cropped(encoders: dict[str, Path]) -> None:
    vision = PretrainedVision(80, 0, path=str(encoders["dinov2"]))
    framed = torch.zeros(1, 80, 80, 3, dtype=torch.uint8)
    framed[:, :, :4] = 255
    assert vision.prepare(framed).shape == (1, 3, 32, 32)
    assert vision.prepare(framed)[0, 0, :, 0].min() > vision.prepare(framed)[0, 0, :, 8].max() + 1


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_frozen_it_stays_as_it_is_and_trained_every_weight_learns(
    name: str, encoders: dict[str, Path]
) -> None:
    frozen = PretrainedVision(32, 0, path=str(encoders[name])).train()
    assert not frozen.model.training and not frozen(images()).requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())
    trained = PretrainedVision(32, 0, path=str(encoders[name]), trained=True)
    assert trained.train().model.training and not trained.eval().model.training
    trained(images()).square().sum().backward()
    learning = {n: p for n, p in trained.model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in learning.values())
    left_out = {n.split(".")[0] for n, p in trained.model.named_parameters() if n not in learning}
    assert left_out == {"pooler" if name == "vit" else "head"}  # which no token passes


@pytest.mark.parametrize(
    "architecture, settings, tokens, width",
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2},
            4,
            32,
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1)},
            4,
            64,
        ),
        ("resnetv2_18", {"width_factor": 1, "channels": (8, 8, 8, 16), "stem_chs": 8}, 49, 16),
    ],
)
def test_encoders_of_timm_are_read(
    architecture: str, settings: dict[str, Any], tokens: int, width: int, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm", reason="needs engram[vla]")
    model = timm.create_model(architecture, **settings).eval()
    folder = tmp_path / "model"
    timm.models.save_for_hf(model, folder, model_args=settings, safe_serialization=True)
    vision = PretrainedVision(48, 0, path=str(folder), trained=True).eval()
    assert (vision.tokens, vision.width) == (tokens, width)
    x = vision.prepare(images(size=48))
    assert tuple(x.shape[1:]) == tuple(model.pretrained_cfg["input_size"]) or "img_size" in settings
    with torch.no_grad():
        found = vision(images(size=48))
        whole = model.forward_features(x)
    wanted = {
        "vit_tiny_patch16_224": lambda: whole[:, 1],
        "swin_tiny_patch4_window7_224": lambda: whole[:, 0, 0],
        "resnetv2_18": lambda: whole[:, :, 0, 0],
    }[architecture]()
    torch.testing.assert_close(found[:, 0], wanted)
    mean = torch.tensor(vision.input.mean)
    assert not torch.allclose(mean, torch.zeros(3)) and vision.input.filter == "bicubic"


def test_a_policy_sees_with_it(encoders: dict[str, Path]) -> None:
    sizes = SightSize(("top", "wrist"), 40, 3, 2, 4, (0, 0), 0)
    perception = Perception(
        sizes,
        perceptual=8,
        cognitive=16,
        vision=lambda size, features: PretrainedVision(
            size, features, path=str(encoders["dinov2"])
        ),
    )
    assert perception.perceptual == (32, 8)
    scale = ActionScale(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]))

    def expert(*counts: int, **widths: int) -> ActionExpert:
        return ActionExpert(*counts, **widths, width=16, depth=1)

    policy = VLA(perception, PresentOnly, expert, scale, chunk=4, execute=2)
    sight = Sight(
        {name: images(6, 40).unflatten(0, (3, 2)) for name in sizes.cameras},
        torch.zeros(3, 2, 3),
        torch.ones(3, 2, 4, dtype=torch.int64),
        torch.zeros(3, 2, 0, 0),
        torch.zeros(3, 2, 0),
    )
    start = torch.zeros(3, 2, dtype=torch.bool)
    remembered, _ = policy(sight, policy.memory.initial_state(2), start)
    flat = type(remembered)(*(type(s)(*(x.flatten(0, 1) for x in s)) for s in remembered))
    policy.loss(flat, torch.zeros(6, 4, 2)).sum().backward()
    got = {n for n, p in policy.named_parameters() if p.grad is not None}
    assert "perception.compression.reduce.weight" in got
    assert not any(name.startswith("perception.vision.") for name in got)


@pytest.fixture
def copy(encoders: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of an encoder, to be changed."""
    return Path(shutil.copytree(encoders["vit"], tmp_path / "vit"))


def test_weights_that_tokens_need_must_be_there_and_others_need_not(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    without = {n: t for n, t in tensors.items() if not n.startswith("pooler")}
    assert len(without) < len(tensors)
    save_file(without, copy / "model.safetensors", metadata={"format": "pt"})
    PretrainedVision(32, 0, path=str(copy))
    name = next(n for n in without if "query" in n or "q_proj" in n)
    del without[name]
    save_file(without, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lacks the weights"):
        PretrainedVision(32, 0, path=str(copy))


def test_a_damaged_folder_is_refused(copy: Path) -> None:
    weights, config = copy / "model.safetensors", copy / "config.json"
    whole, settings = weights.read_bytes(), config.read_text()

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match) as error:
            PretrainedVision(32, 0, path=str(copy))
        assert "\n" not in str(error.value)

    weights.write_bytes(whole[:-64])
    refused("cannot be read")
    weights.rename(copy / "pytorch_model.bin")  # pickle is not opened
    refused("safetensors")
    weights.write_bytes(whole)
    for content in ("{", "[]", ""):
        config.write_text(content)
        refused("config.json")
    config.write_text(json.dumps(json.loads(settings) | {"model_type": "no_such_model"}))
    refused("cannot be read")
    mine = {"model_type": "mine", "auto_map": {"AutoModel": "mine.Mine", "AutoConfig": "mine.C"}}
    (copy / "mine.py").write_text("raise SystemExit('code from the folder ran')")
    config.write_text(json.dumps(json.loads(settings) | mine))
    refused("cannot be read")
    config.write_text(settings)
    (copy / "preprocessor_config.json").write_text('{"image_processor_type": "none"}')
    refused("cannot be read")
    (copy / "preprocessor_config.json").unlink()
    refused("cannot be read")


def test_a_filter_that_is_unknown_is_refused(copy: Path) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": 1}))
    with pytest.raises(DataError, match="bilinear, bicubic"):
        PretrainedVision(32, 0, path=str(copy))


def test_images_that_the_folder_does_not_normalise_are_left_as_they_are(copy: Path) -> None:
    from transformers import AutoImageProcessor

    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": False}))
    encoder, given = PretrainedVision(32, 0, path=str(copy)), images(size=32)
    processor = AutoImageProcessor.from_pretrained(copy)
    wanted = torch.as_tensor(np.stack(processor(images=list(given.numpy()))["pixel_values"]))
    torch.testing.assert_close(encoder.prepare(given), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("setting", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_pixels_of_another_scale_are_refused(copy: Path, setting: dict[str, Any]) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(DataError, match=r"rescales pixels by .*; allowed: by 1/255"):
        PretrainedVision(32, 0, path=str(copy))


def test_what_encodes_no_images_is_refused(encoders: dict[str, Path], tmp_path: Path) -> None:
    import transformers as hf

    text = hf.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    hf.BertModel(text).save_pretrained(tmp_path / "bert")
    hf.ViTImageProcessor().save_pretrained(tmp_path / "bert")
    with pytest.raises(InvalidValueError, match="bert"):
        PretrainedVision(32, 0, path=str(tmp_path / "bert"))
    with pytest.raises(InvalidValueError, match="a token per patch"):
        PretrainedVision(32, 0, path=str(encoders["masked"]))
    with pytest.raises(InvalidValueError, match="nothing is downloaded"):
        PretrainedVision(32, 0, path="google/vit-base-patch16-224")
    with pytest.raises(InvalidValueError, match="image size is 0"):
        PretrainedVision(0, 0, path=str(encoders["vit"]))
    with pytest.raises(InvalidValueError, match="image shape"):
        PretrainedVision(32, 0, path=str(encoders["vit"]))(images(size=33))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "model.safetensors").touch()
    for package, config in (("transformers", '{"model_type": "vit"}'), ("timm", "{}")):
        config = config if package == "transformers" else '{"architecture": "resnet18"}'
        (tmp_path / "config.json").write_text(config)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPackageError, match=rf"{package}.*engram\[vla\]"):
            PretrainedVision(32, 0, path=str(tmp_path))


def test_the_library_is_as_talkative_afterwards_as_before(encoders: dict[str, Path]) -> None:
    from transformers import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pretrained_folder.quietly():
        assert logging.get_verbosity() == logging.ERROR
    PretrainedVision(32, 0, path=str(encoders["siglip"]))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
