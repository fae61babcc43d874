"""What tests of the vision-language-action policy share; `engram` must not be imported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LOW, HIGH = [-1.0, -0.5, 0.0], [1.0, 0.5, 2.0]
"""Quantiles of the actions of `small_vla`."""


def _sizes(**changes: Any) -> Any:
    from engram.policies.perception import SightSize

    sizes = SightSize(
        cameras=("top", "wrist"),
        image=32,
        proprioception=3,
        words=6,
        length=5,
        objects=(2, 4),
        oracle=2,
    )
    return sizes._replace(**changes)


def _sight(sizes: Any, *lead: int) -> Any:
    from engram.policies.perception import Sight

    side = sizes.image
    words = torch.randint(1, sizes.words + 1, (*lead, sizes.length))
    words[..., 3:] = 0
    return Sight(
        {n: torch.randint(256, (*lead, side, side, 3), dtype=torch.uint8) for n in sizes.cameras},
        torch.randn(*lead, sizes.proprioception),
        words,
        torch.randn(*lead, *sizes.objects),
        torch.randn(*lead, sizes.oracle),
    )


def _small_vla(sizes: Any, memory: Callable[..., Any] | None = None, **settings: Any) -> Any:
    from functools import partial

    from engram.memory.sequence import Bank
    from engram.policies.action_expert import ActionExpert
    from engram.policies.action_scale import ActionScale
    from engram.policies.perception import Perception
    from engram.policies.vla import VLA

    expert = {"width": 16, "depth": 2, "heads": 2} | settings.pop("expert", {})
    perception = Perception(sizes, perceptual=8, cognitive=12, features=16, heads=2)
    memory = memory or partial(Bank, capacity=4, layers=1, heads=2, gradient_writes=None)
    return VLA(
        perception,
        memory,
        partial(ActionExpert, **expert),
        ActionScale(torch.tensor(LOW), torch.tensor(HIGH)),
        **{"chunk": 4, "execute": 2} | settings,
    )


@pytest.fixture
def sight_size() -> Callable[..., Any]:
    """Sizes of a sight with every part; keywords change some."""
    return _sizes


@pytest.fixture
def random_sight() -> Callable[..., Any]:
    """A sight of given sizes and leading axes."""
    return _sight


@pytest.fixture
def small_vla() -> Callable[..., Any]:
    """A policy of given sizes: chunks of 4 of which 2 are executed, a bank of 4 unless given."""
    return _small_vla


TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
}
SQUARE = {"height": 32, "width": 32}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Image encoders of transformers, by name; not to be changed."""
    hf = pytest.importorskip("transformers", reason="needs engram[vla]")
    text = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"} | {"vocab_size": 50}
    whole = {"shortest_edge": 40}  # resized to 40, of which the middle 32 are left
    made: dict[str, tuple[Any, Any]] = {
        "vit": (hf.ViTModel(hf.ViTConfig(**TOWER)), hf.ViTImageProcessor(size=SQUARE)),
        "dinov2": (
            hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**TOWER)),
            hf.BitImageProcessor(size=whole, crop_size=SQUARE),
        ),
        "siglip": (
            hf.SiglipModel(hf.SiglipConfig(vision_config=TOWER, text_config=text)),
            hf.SiglipImageProcessor(size=SQUARE),
        ),
        "convnext": (
            hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 32], depths=[1] * 4)),
            hf.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        ),
        "masked": (hf.ViTMAEModel(hf.ViTMAEConfig(**TOWER)), hf.ViTImageProcessor(size=SQUARE)),
    }
    folder = tmp_path_factory.mktemp("encoders")
    for name, (model, processor) in made.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def words(special: dict[str, str]) -> tuple[Any, int]:
    """Return a tokenizer of whole words, and how many it knows."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = ["user", "assistant", ":", "pick", "up", "the", "cube", "red", "press", "button", "a"]
    known = ["<pad>", "<unk>", "<s>", "</s>", *special.values(), *plain]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[attr-defined]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", extra_special_tokens=special,
    )  # fmt: skip
    return tokenizer, len(known)


def save_llava(folder: Path) -> None:
    import transformers as hf

    tokenizer, count = words({"image_token": "<image>"})
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"model_type": "llama", "vocab_size": count, **TEXT, **special}
    tower = {"model_type": "clip_vision_model", **TOWER}
    config = hf.LlavaConfig(vision_config=tower, text_config=text, image_token_id=4)
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
        tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip


def save_qwen(folder: Path) -> None:
    import transformers as hf

    tokenizer, count = words(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    tower = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 8,
        "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        vision_config=tower,
        text_config={"vocab_size": count, "rope_parameters": rope, **TEXT, **special},
        image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for m in messages %}{{ m.role }} : {% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% endfor %} assistant :"
    )
    pixels = {"min_pixels": 32 * 32, "max_pixels": 32 * 32}
    hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=8, **pixels), tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(patch_size=8), chat_template=template,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="session")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Vision-language models of two families, by name; not to be changed."""
    pytest.importorskip("transformers", reason="needs engram[vla]")
    folder = tmp_path_factory.mktemp("vlms")
    for name, save in (("llava", save_llava), ("qwen", save_qwen)):
        save(folder / name)
    return {name: folder / name for name in ("llava", "qwen")}


@pytest.fixture
def perception() -> Any:
    """A perception of few features, of a sight with all parts."""
    from engram.policies.perception import Perception

    return Perception(_sizes(), perceptual=8, cognitive=12, features=16, heads=2)
