"""engram's own policy behind `--policy.type=engram_vla`."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts import lerobot_train
from tiny_vla import (
    IMAGE,
    MEMORIES,
    STATE,
    TASK,
    TINY,
    act,
    build,
    forget,
    observe,
    overridden,
    samples,
)
from torch import Tensor
from torch.utils.data import default_collate

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.policies.language import UnknownWordError
from lerobot_policy_engram import MemoryConfig, chunk_starts, load_policy


def test_what_was_saved_before_there_were_looks_loads_without(
    dataset: Callable[..., Any], tmp_path: Path
):
    policy = build(dataset, looks=0)
    assert not [name for name in policy.state_dict() if "looks" in name]
    policy.save_pretrained(tmp_path)
    forget(tmp_path, "looks")
    with pytest.raises(DataError, match=r"vla\.looks"):
        load_policy(tmp_path)
    again, seen = overridden(tmp_path, dataset, "--looks=0"), observe()
    assert torch.equal(act(again, seen), act(policy.eval(), seen))
    with pytest.raises(InvalidValueError, match=r"policy\.looks is -1; allowed: 0 or more"):
        build(dataset, looks=-1)


def test_words_are_those_of_the_dataset(dataset: Callable[..., Any]):
    policy = build(dataset)
    assert policy.config.words == ["cube", "pick", "the", "up"]
    with pytest.raises(UnknownWordError, match="unknown words: drop"):
        policy.select_action({**observe(), "task": ["drop the cube"] * 2})


def test_instructions_that_are_too_long_are_refused_before_training(dataset: Callable[..., Any]):
    with pytest.raises(InvalidValueError, match="'pick up the cube'; allowed: 1 to 3 words"):
        build(dataset, instruction_length=3)


def test_a_policy_in_training_acts_without_dropout(dataset: Callable[..., Any]):
    memory = MemoryConfig("memoryvla_plus", {"capacity": 3, "dropout": 0.5}, width=16, window=5)
    policy, seen = build(dataset, memory=memory), [observe() for _ in range(4)]
    policy.eval()
    expected = [act(policy, each) for each in seen]
    policy.reset()
    for each, action in zip(seen, expected, strict=True):
        assert torch.equal(act(policy.train(), each), action)


@pytest.mark.parametrize("key", [IMAGE, STATE])
def test_a_frame_that_holds_no_numbers_is_refused_and_not_remembered(
    dataset: Callable[..., Any], key: str
):
    policy, twin = build(dataset), build(dataset)
    seen = [observe() for _ in range(3)]
    for each in (policy, twin):
        act(each, seen[0])
    spoilt = {**seen[1], key: seen[1][key].clone()}
    spoilt[key][1].view(-1)[-1] = float("nan")
    for call in (policy.select_action, policy.observe, policy.predict_action_chunk):
        with pytest.raises(InvalidValueError, match=f"{key} is nan; allowed: finite"):
            call(spoilt)
    for observation in seen[1:]:
        assert torch.equal(act(policy, observation), act(twin, observation))


@pytest.mark.parametrize("name", MEMORIES)
def test_loss_reaches_every_weight(dataset: Callable[..., Any], name: str):
    policy = build(dataset, name).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (3, 9, 16, 20)])
    torch.manual_seed(3)
    loss, remarks = policy.forward(batch)
    loss.backward()
    assert remarks == {"action_loss": loss.item()}
    unreached = {
        name
        for name, parameter in policy.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    # The token that stands for no cognition learns where it is drawn, one time in ten.
    assert unreached <= {"vla.expert.null"}


def test_learnt_chunks_are_those_of_their_frames(dataset: Callable[..., Any]):
    policy = build(dataset)
    plain = dataset()
    rows = (8, 18)  # the second frame of an episode, and one with two after it
    batch = default_collate([samples(policy, dataset)[row] for row in rows])
    taken: list[tuple[Tensor, Tensor]] = []

    def record(learnt: Any, action: Tensor, real: Tensor) -> Any:
        taken.append((action, real))
        return action.sum(), {}

    policy._loss = record
    policy.forward(batch)
    action, real = (part.unflatten(0, (3, 2)) for part in taken[0])  # [M, B, C, ...]
    for moment in range(3):
        for column, (row, first, last) in enumerate(zip(rows, (7, 12), (11, 20), strict=True)):
            frame = row - 2 + moment
            for ahead in range(4):
                exists = frame >= first and frame + ahead <= last
                assert bool(real[moment, column, ahead]) is exists
                if exists:
                    wanted = plain[frame + ahead]["action"]
                    assert torch.equal(action[moment, column, ahead], wanted)


def test_padding_changes_nothing(dataset: Callable[..., Any]):
    policy = build(dataset).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (1, 20)])
    noisy = {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch.items()}
    for key in (IMAGE, STATE):
        noisy[key][batch[f"{key}_is_pad"]] = 0.5
    losses = []
    for either in (batch, noisy):
        torch.manual_seed(1)
        losses.append(policy.forward(either)[0])
    assert torch.equal(*losses)


def test_acting_reads_what_learning_reads(dataset: Callable[..., Any]):
    policy = build(dataset, "gru").eval()
    read = samples(policy, dataset)
    heard: list[Any] = []
    memory = policy.vla.memory
    step, whole = memory.step, memory.forward
    memory.step = lambda *given: heard.append(step(*given)) or heard[-1]
    memory.forward = lambda *given: heard.append(whole(*given)) or heard[-1]
    for place in range(5):
        sample = read[place]
        act(
            policy,
            {IMAGE: sample[IMAGE][-1:], STATE: sample[STATE][-1:], "task": [TASK]},
        )
    acted = [streams.cognitive for streams, _ in heard]
    heard.clear()
    policy.forward(default_collate([read[4]]))
    learnt = heard[0][0].cognitive
    torch.testing.assert_close(torch.stack(acted), learnt, atol=1e-5, rtol=1e-5)


def test_memory_is_written_while_actions_are_left(dataset: Callable[..., Any]):
    policy = build(dataset)
    ages = []
    for _ in range(5):
        act(policy, observe())
        ages.append(policy._state.memory.age.tolist())
    assert ages == [[n, n] for n in range(1, 6)]
    policy.reset()
    act(policy, observe())
    assert policy._state.memory.age.tolist() == [1, 1]


def test_rows_begin_alone(dataset: Callable[..., Any]):
    policy = build(dataset)
    first, second, third = observe(), observe(), observe()
    for observation in (first, second):
        act(policy, observation)
    policy.reset_rows(torch.tensor([False, True]))
    mixed = act(policy, third)
    assert policy._state.memory.age.tolist() == [3, 1]
    policy.reset()
    assert torch.equal(mixed[1], act(policy, third)[1])
    policy.reset()
    for observation in (first, second):
        act(policy, observation)
    assert torch.equal(mixed[0], act(policy, third)[0])
    with pytest.raises(InvalidValueError, match="mask"):
        policy.reset_rows(torch.tensor([True]))
    with pytest.raises(InvalidValueError, match="rows of the batch is 3"):
        policy.select_action(observe(3))


def test_a_plan_writes_the_memory_once(dataset: Callable[..., Any]):
    policy = build(dataset)
    assert policy.predict_action_chunk(observe()).shape == (2, 4, 2)
    policy.predict_action_chunk(observe())
    assert policy._state.memory.age.tolist() == [2, 2]
    policy.observe(observe())
    assert policy._state.memory.age.tolist() == [3, 3]


def test_chunks_go_on_where_the_last_ended(dataset: Callable[..., Any]):
    policy = build(dataset).train()
    config = policy.config.frame_config()
    assert config.observation_delta_indices == [0]
    read = samples(policy, dataset, config)
    state = policy.initial_state(1)
    ages = []
    for part in (range(4, 7), range(7, 10)):  # across the end of the first episode
        batch = default_collate([read[place] for place in part])
        start = chunk_starts(batch, 1)
        loss, _, state = policy.forward_chunk(batch, states.detach(state), start)
        loss.backward()
        ages.append(state.age.tolist())
    assert ages == [[3], [3]]
    assert not start[1:].any() and start[0].all()
    with pytest.raises(InvalidValueError, match=r"samples is 3; allowed: T·B = 2"):
        policy.forward_chunk(batch, state, start[:2])


@pytest.mark.parametrize(
    "options", [{"diffusion": True}, {"modulated": True}, {"guidance": 1.5}, {"temperature": 0.5}]
)
def test_other_ways_to_draw_actions(dataset: Callable[..., Any], options: dict[str, Any]):
    policy = build(dataset, **options)
    policy.forward(default_collate([samples(policy, dataset)[4]]))[0].backward()
    action = act(policy.eval(), observe())
    assert action.shape == (2, 2) and (action.abs() <= 1).all()


def test_saved_and_loaded_it_acts_the_same(dataset: Callable[..., Any], tmp_path: Path):
    policy = build(dataset)
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path)  # no dataset: the words are in the file
    observation = observe()
    assert torch.equal(act(policy.eval(), observation), act(again, observation))
    assert again.config.words == policy.config.words
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="does not fit"):
        load_policy(tmp_path)


def test_processors_scale_actions_to_the_quantiles(dataset: Callable[..., Any]):
    policy = build(dataset)
    pre, post = make_pre_post_processors(policy.config, dataset_stats=dataset().meta.stats)
    stats = dataset().meta.stats["action"]
    assert torch.allclose(post(torch.ones(1, 2)), torch.tensor(stats["q99"]).float())
    batch = pre(default_collate([samples(policy, dataset)[4]]))
    assert batch[IMAGE].min() >= 0 and batch[IMAGE].max() <= 1
    assert batch["task"] == [TASK]


def test_lerobot_train_trains_it(
    dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = {**TINY, "push_to_hub": "false", "memory.name": "memoryvla", "memory.window": 4}
    command = [
        "lerobot-train",
        "--dataset.repo_id=engram/tiny",
        f"--dataset.root={dataset_root}",
        f"--output_dir={tmp_path / 'run'}",
        "--steps=2",
        "--batch_size=3",
        "--num_workers=0",
        "--policy.type=engram_vla",
        *(f"--policy.{name}={value}" for name, value in tiny.items()),
    ]
    monkeypatch.setattr(sys, "argv", command)
    lerobot_train.main()
    policy = load_policy(tmp_path / "run/checkpoints/last/pretrained_model")
    assert policy.config.memory.name == "memoryvla" and policy.config.words
    assert act(policy, observe()).isfinite().all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"moments": 0}, "policy.moments is 0; allowed: 1 … policy.memory.window = 5"),
        ({"moments": 6}, "policy.moments is 6"),
        ({"n_obs_steps": 2}, "policy.n_obs_steps is 2"),
        ({"image_size": 20}, "policy.image_size is 20; allowed: multiples of 16"),
        ({"repeats": 0}, "policy.repeats is 0"),
        ({"n_action_steps": 5}, "execute is 5"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"denoising_steps": 0}, "steps is 0"),
    ],
)
def test_impossible_settings_are_refused(
    dataset: Callable[..., Any], settings: dict[str, Any], message: str
):
    with pytest.raises(InvalidValueError, match=message):
        build(dataset, **settings)


def test_what_cannot_be_seen_or_said_is_refused(dataset: Callable[..., Any]):
    policy = build(dataset)
    with pytest.raises(DataError, match="task is None; allowed: a list of 2 instructions"):
        policy.select_action({key: value for key, value in observe().items() if key != "task"})
    with pytest.raises(InvalidValueError, match=r"policy.words is \[\]"):
        type(policy)(replace(policy.config, words=[]))
    with pytest.raises(InvalidValueError, match=r"a camera and observation\.state"):
        type(policy)(replace(policy.config, input_features={}))
    batch = default_collate([samples(policy, dataset)[4]])
    batch["action"] = batch["action"][:, 1:]
    with pytest.raises(DataError, match="action has 5 steps; allowed: 6"):
        policy.forward(batch)
