"""Pretrained vision-language models: the library's hidden states, in a policy, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory.sequence import PresentOnly
from engram.policies.action_expert import ActionExpert
from engram.policies.action_scale import ActionScale
from engram.policies.perception import Sight, SightSize, SightStatistics
from engram.policies.pretrained_vlm import PretrainedVLM, Prompts
from engram.policies.vla import VLA, Remembered

INSTRUCTIONS = ["pick up the red cube", "press the button"]
FAMILIES = ["llava", "qwen"]
CAMERAS = ("top", "wrist")
IMAGE = 48


def sizes_for(prompts: Prompts, **changes: Any) -> SightSize:
    sizes = SightSize(CAMERAS, IMAGE, 3, len(prompts.words), prompts.length, (0, 0), 0)
    return sizes._replace(**changes)


def build(path: Path, *, spare: int = 32, **settings: Any) -> PretrainedVLM:
    prompts = Prompts(str(path), cameras=2, image=IMAGE, spare=spare)
    torch.manual_seed(0)
    own = {"path": str(path), "spare": spare, "perceptual": 8, "inside": 16}
    return PretrainedVLM(sizes_for(prompts), **own, **settings)


def sight(vlm: PretrainedVLM) -> Sight:
    generator = torch.Generator().manual_seed(0)
    shape = (2, IMAGE, IMAGE, 3)
    images = {
        name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        for name in CAMERAS
    }
    words = vlm.prompts.encode(INSTRUCTIONS)
    felt = torch.randn(2, 3, generator=generator)
    return Sight(images, felt, words, torch.zeros(2, 0, 0), torch.zeros(2, 0))


def library(path: Path, seen: Sight, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library's own processor and model make of one row: image tokens, last state."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    images = [seen.images[name][row].numpy() for name in CAMERAS]
    if path.name == "llava":
        text = "<image><image>" + INSTRUCTIONS[row]
    else:
        eye = "<|vision_start|><|image_pad|><|vision_end|>"
        text = f"user : {eye}{eye}{INSTRUCTIONS[row]} assistant :"
    given = processor(text=[text], images=[images], return_tensors="pt")
    with torch.no_grad():
        found = model(**given, output_hidden_states=True)
    pictured = given["input_ids"][0] == model.config.image_token_id
    return found.hidden_states[0][0, pictured], found.hidden_states[-1][0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_last_state_are_those_of_the_library(family: str, vlms: dict[str, Path]) -> None:
    vlm = build(vlms[family])
    seen = sight(vlm)
    images = [[seen.images[name][row].numpy() for name in CAMERAS] for row in range(2)]
    with torch.no_grad():
        tokens, last = vlm._read(seen.words, images)
        streams = vlm(seen)
    for row in range(2):  # prompts of two lengths, padded to one
        wanted_tokens, wanted_last = library(vlms[family], seen, row)
        torch.testing.assert_close(tokens[row], wanted_tokens)
        torch.testing.assert_close(last[row], wanted_last)
    count = {"llava": 2 * 16, "qwen": 2 * 4}[family]
    assert vlm.perceptual == (count, 8) and vlm.cognitive == (1, 32)
    torch.testing.assert_close(streams.perceptual, vlm.compression(tokens))
    felt = vlm.felt(seen)
    torch.testing.assert_close(streams.cognitive[:, 0], vlm.norm(last + felt))


@pytest.mark.parametrize("family", FAMILIES)
def test_room_for_longer_instructions_changes_nothing(family: str, vlms: dict[str, Path]) -> None:
    short, long = build(vlms[family], spare=8), build(vlms[family], spare=60)
    assert long.prompts.length == short.prompts.length + 52
    with torch.no_grad():
        for a, b in zip(short(sight(short)), long(sight(long)), strict=True):
            torch.testing.assert_close(a, b)


def test_rows_are_independent_and_any_axes_lead(vlms: dict[str, Path]) -> None:
    vlm = build(vlms["llava"])
    seen = sight(vlm)
    one = Sight({n: x[1:] for n, x in seen.images.items()}, *(x[1:] for x in seen[1:]))
    grid = Sight({n: x[:, None] for n, x in seen.images.items()}, *(x[:, None] for x in seen[1:]))
    with torch.no_grad():
        both, alone, folded = vlm(seen), vlm(one), vlm(grid)
    for a, b, c in zip(both, alone, folded, strict=True):
        torch.testing.assert_close(a[1:], b)
        torch.testing.assert_close(a[:, None], c)
    assert not torch.allclose(both.cognitive[0], both.cognitive[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_acts_and_learns_with_it(family: str, vlms: dict[str, Path]) -> None:
    vlm = build(vlms[family], cognitive=16)
    scale = ActionScale(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]))

    def expert(*counts: int, **widths: int) -> ActionExpert:
        return ActionExpert(*counts, **widths, width=16, depth=1)

    policy = VLA(vlm, PresentOnly, expert, scale, chunk=4, execute=2).train()
    before = {n: p.detach().clone() for n, p in vlm.model.named_parameters()}
    seen, start = sight(vlm), torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        action, _ = policy.act(seen, policy.initial_state(2), start)
    assert action.shape == (2, 2) and action.isfinite().all()
    steps = Sight({n: x[None] for n, x in seen.images.items()}, *(x[None] for x in seen[1:]))
    remembered, _ = policy(steps, policy.memory.initial_state(2), start[None])
    flat = Remembered(*(type(s)(*(x[0] for x in s)) for s in remembered))
    policy.loss(flat, torch.zeros(2, 4, 2)).sum().backward()
    for name, weight in policy.named_parameters():
        theirs = name.startswith("perception.held.")
        assert weight.requires_grad != theirs and (weight.grad is None) == theirs, name
    average = AveragedModel(policy)  # the copy that imitation keeps
    with torch.no_grad():
        for a, b in zip(average.module.perception(seen), vlm(seen), strict=True):
            assert torch.equal(a, b)
    assert not vlm.model.training
    assert all(torch.equal(p, before[n]) for n, p in vlm.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [False, True])
def test_under_mixed_precision_it_perceives_nearly_the_same_and_learns(
    family: str, half: bool, vlms: dict[str, Path]
) -> None:
    exact, vlm = build(vlms[family], cognitive=16), build(vlms[family], cognitive=16, bfloat16=half)
    seen = sight(vlm)
    with torch.no_grad():
        wanted = exact(seen)
    with torch.autocast("cpu", torch.bfloat16):
        streams = vlm(seen)
    for found, right in zip(streams, wanted, strict=True):
        assert (found.float() - right).abs().max() < 0.1  # of tokens normed to about 1
    sum(stream.float().square().mean() for stream in streams).backward()
    for name, weight in vlm.named_parameters():
        theirs = name.startswith("held.")
        assert (weight.grad is None) == theirs, name
        assert theirs or (weight.dtype == torch.float32 and weight.grad.isfinite().all()), name


def test_trained_it_learns(vlms: dict[str, Path]) -> None:
    vlm = build(vlms["llava"], trained=True).train()
    assert vlm.model.training
    sum(part.square().sum() for part in vlm(sight(vlm))).backward()  # type: ignore[union-attr]
    got = [n for n, p in vlm.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("vision" in n for n in got) and any("language" in n for n in got)


def test_half_precision_stays_inside(vlms: dict[str, Path]) -> None:
    vlm, whole = build(vlms["qwen"], bfloat16=True), build(vlms["qwen"])
    assert {p.dtype for p in vlm.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        found, wanted = vlm(sight(vlm)), whole(sight(whole))
    assert found.cognitive.dtype == found.perceptual.dtype == torch.float32
    torch.testing.assert_close(found.cognitive, wanted.cognitive, rtol=0.05, atol=0.1)


def test_half_precision_is_not_trained(vlms: dict[str, Path]) -> None:
    with pytest.raises(InvalidValueError, match="bfloat16 is True; allowed: False where"):
        build(vlms["qwen"], bfloat16=True, trained=True)


def test_what_is_felt_is_standardized(vlms: dict[str, Path]) -> None:
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 0.0])
    nothing = torch.zeros(0), torch.zeros(0)
    vlm = build(vlms["llava"], statistics=SightStatistics((mean, std), nothing, nothing))
    plain = build(vlms["llava"])
    seen = sight(vlm)
    moved = seen._replace(proprioception=seen.proprioception * torch.tensor([2.0, 2, 1]) + mean)
    with torch.no_grad():
        torch.testing.assert_close(vlm(moved).cognitive, plain(seen).cognitive)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_hold_the_images_and_the_instruction(family: str, vlms: dict[str, Path]) -> None:
    prompts = Prompts(str(vlms[family]), cameras=2, image=IMAGE)
    numbers = prompts.encode([*INSTRUCTIONS, INSTRUCTIONS[0]])
    assert numbers.shape == (3, prompts.length) and torch.equal(numbers[0], numbers[2])
    tokenizer = prompts.processor.tokenizer
    row = numbers[0][numbers[0] > 0] - 1
    text = [w for w in tokenizer.convert_ids_to_tokens(row.tolist()) if "im" not in w]
    wanted = INSTRUCTIONS[0].split()
    assert [word for word in text if word in wanted] == wanted
    assert numbers.max() <= len(prompts.words)
    assert bool((numbers[1] > 0).int().diff().le(0).all())  # padding comes last


def test_wrong_instructions_are_refused(vlms: dict[str, Path]) -> None:
    prompts = Prompts(str(vlms["llava"]), cameras=1, image=IMAGE, spare=4)
    assert prompts.encode(["pick up the cube"]).shape == (1, 20)
    with pytest.raises(InvalidValueError, match="20 tokens with the images; this has 21"):
        prompts.encode(["pick up the red cube"])
    with pytest.raises(InvalidValueError, match="one word or more"):
        prompts.encode([" "])
    with pytest.raises(InvalidValueError, match="cameras is 0"):
        Prompts(str(vlms["llava"]), cameras=0, image=IMAGE)


def test_sights_that_do_not_fit_are_refused(vlms: dict[str, Path]) -> None:
    vlm = build(vlms["llava"])
    seen = sight(vlm)
    one = Prompts(str(vlms["llava"]), cameras=1, image=IMAGE, spare=32 + 16)
    with pytest.raises(InvalidValueError, match=r"16, 16.* image tokens"):
        vlm(seen._replace(words=one.encode(INSTRUCTIONS)))
    with pytest.raises(InvalidValueError, match="cameras"):
        vlm(seen._replace(images={"top": seen.images["top"]}))
    wrong = {name: x[:, :40] for name, x in seen.images.items()}
    with pytest.raises(InvalidValueError, match="image of 'top'"):
        vlm(seen._replace(images=wrong))
    prompts = vlm.prompts
    for change, match in (
        ({"cameras": ("top",)}, r"length is 64; allowed: 48"),
        ({"words": 5}, "words is 5"),
        ({"objects": (2, 5)}, "objects"),
        ({"cameras": ()}, "cameras is 0"),
    ):
        with pytest.raises(InvalidValueError, match=match):
            PretrainedVLM(sizes_for(prompts, **change), path=str(vlms["llava"]))


def test_folders_of_other_models_are_refused(
    vlms: dict[str, Path], encoders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError, match="nothing is downloaded"):
        Prompts("llava-hf/llava-1.5-7b-hf", cameras=1, image=IMAGE)
    with pytest.raises((DataError, InvalidValueError)) as error:
        Prompts(str(encoders["vit"]), cameras=1, image=IMAGE)
    assert "\n" not in str(error.value)
    other = Path(shutil.copytree(vlms["llava"], tmp_path / "other"))
    shutil.copy(encoders["vit"] / "config.json", other)
    with pytest.raises(DataError, match="cannot be read"):
        build(other)


def test_missing_weights_are_refused(vlms: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vlms["llava"], tmp_path / "llava"))
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if "q_proj" in n and "vision" not in n)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights: .*q_proj"):
        build(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava"
