"""Tiny policies of every kind and a tiny dataset, all made here: nothing is downloaded."""

import functools
import inspect
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before LeRobot is imported

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config

torch.set_num_threads(1)

# draccus reads the source of a configuration anew for each of its fields, at every parse: half of
# the time of these tests.
inspect.getsource = functools.cache(inspect.getsource)

IMAGE, STATE = "observation.images.top", "observation.state"
WORLD = "observation.environment_state"
LENGTHS = (7, 5, 9)
"""Frames of the dataset's episodes."""


@pytest.fixture(autouse=True)
def seed() -> int:
    torch.manual_seed(0)
    return 0


def features(side: int) -> dict[str, Any]:
    return {
        "input_features": {
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, side, side)),
            STATE: PolicyFeature(FeatureType.STATE, (4,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
        "device": "cpu",
        "push_to_hub": False,
    }


@pytest.fixture(scope="session")
def vision_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings and the tokenizer of a SmolVLM of a hundred thousand weights."""
    pytest.importorskip("transformers")
    pytest.importorskip("num2words")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("vlm")
    special = {
        "fake_image_token": "<fake>",
        "image_token": "<image>",
        "global_image_token": "<global>",
        "end_of_utterance_token": "<end>",
    }
    words = ["<pad>", "<unk>", *special.values(), "pick", "up", "the", "cube", "\n"]
    numbers = {word: number for number, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokens,
            pad_token="<pad>",
            unk_token="<unk>",
            extra_special_tokens=special,
        ),
        video_processor=SmolVLMVideoProcessor(),
    ).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {**size, "num_hidden_layers": 1, "image_size": 64, "patch_size": 16}
    text = {
        **size,
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": len(words),
        "pad_token_id": 0,
    }
    SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        scale_factor=2,
        image_token_id=words.index("<image>"),
        pad_token_id=0,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(params=["act", "diffusion", "smolvla"])
def kind(request: pytest.FixtureRequest) -> str:
    """A policy that a memory can be attached to."""
    return request.param


@pytest.fixture
def settings(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What makes a policy of this kind tiny."""
    if kind == "act":
        return {
            **features(32),
            "chunk_size": 6,
            "n_action_steps": 3,
            "dim_model": 16,
            "n_heads": 2,
            "dim_feedforward": 32,
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
            "latent_dim": 4,
            "pretrained_backbone_weights": None,
        }
    if kind == "diffusion":
        return {
            **features(64),  # smaller ones leave one cell of the feature map, and no keypoints
            "horizon": 8,
            "n_action_steps": 3,
            "pretrained_backbone_weights": None,
            "use_group_norm": True,
            "down_dims": (16, 32),
            "n_groups": 4,
            "crop_shape": (60, 60),
            "spatial_softmax_num_keypoints": 4,
            "diffusion_step_embed_dim": 8,
            "num_train_timesteps": 4,
        }
    return {
        **features(64),
        "vlm_model_name": str(request.getfixturevalue("vision_language_model")),
        "num_vlm_layers": 2,
        "chunk_size": 6,
        "n_action_steps": 3,
        "resize_imgs_with_padding": (64, 64),
        "num_steps": 2,
        "max_state_dim": 8,
        "max_action_dim": 8,
    }


@pytest.fixture
def plain(kind: str, settings: dict[str, Any]) -> Any:
    """The policy without memory, as LeRobot builds it, in training mode."""
    return get_policy_class(kind)(make_policy_config(kind, **settings)).train()


@pytest.fixture
def frames() -> Callable[..., dict[str, torch.Tensor]]:
    """Draws observations of a policy: `[*shape, ...]` under each key."""

    def draw(policy: Any, *shape: int) -> dict[str, Any]:
        batch: dict[str, Any] = {
            key: torch.rand(*shape, *feature.shape)
            for key, feature in policy.config.input_features.items()
        }
        if "smolvla" in policy.name:
            batch["observation.language.tokens"] = torch.full((shape[0], 4), 7)
            mask = torch.ones(shape[0], 4, dtype=torch.bool)
            batch["observation.language.attention_mask"] = mask
        return batch

    return draw


@pytest.fixture
def window(frames: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Draws what the data loader gives a remembering policy; `pads[b]` frames are padding."""

    def draw(policy: Any, pads: list[int]) -> dict[str, Any]:
        length, batch = policy.config.memory.window, len(pads)
        drawn = frames(policy, batch, length)
        pad = torch.arange(length) < torch.tensor(pads)[:, None]
        for key in policy.config.input_features:
            first = drawn[key][torch.arange(batch), torch.tensor(pads)]
            for row, count in enumerate(pads):
                drawn[key][row, :count] = first[row]  # copies, as LeRobot pads
            drawn[f"{key}_is_pad"] = pad
        ahead = len(policy.config.action_delta_indices)
        drawn["action"] = torch.rand(batch, ahead, 2) * 2 - 1
        drawn["action_is_pad"] = torch.zeros(batch, ahead, dtype=torch.bool)
        return drawn

    return draw


def write(root: Path, *, images: bool) -> Path:
    """Write a dataset of three short episodes with LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    sizes = {STATE: 4, "action": 2} | ({} if images else {WORLD: 3})
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": (size,), "names": None} for key, size in sizes.items()
    }
    if images:
        names = ["height", "width", "channels"]
        features[IMAGE] = {"dtype": "image", "shape": (32, 32, 3), "names": names}
    dataset = LeRobotDataset.create(
        "engram/tiny", fps=10, root=root, use_videos=False, features=features
    )
    numbers = np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        for frame in range(length):
            drawn: dict[str, Any] = {
                key: numbers.random(size, dtype=np.float32) for key, size in sizes.items()
            }
            drawn[STATE][:2] = episode, frame
            if images:
                drawn[IMAGE] = numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            dataset.add_frame({**drawn, "task": "pick up the cube"})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a camera."""
    return write(tmp_path_factory.mktemp("data") / "tiny", images=True)


@pytest.fixture(scope="session")
def states_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with the state of the environment instead: policies on it have no image encoder."""
    return write(tmp_path_factory.mktemp("data") / "tiny", images=False)


@pytest.fixture
def dataset(dataset_root: Path) -> Callable[..., Any]:
    """Opens the dataset with LeRobot's own reader."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def read(**settings: Any) -> Any:
        return LeRobotDataset("engram/tiny", root=dataset_root, **settings)

    return read
