"""Streams of consecutive frames, and learning from them with the state handed on."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies.act.modeling_act import ACTPolicy
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from lerobot_policy_engram import (
    EpisodeChunkSampler,
    MemoryConfig,
    attach_memory,
    chunk_starts,
)

EPISODES = [range(0, 7), range(7, 12), range(12, 21)]
"""Places of the episodes in the dataset."""


def streams(sampler: EpisodeChunkSampler, batches: int) -> list[list[int]]:
    """What each row goes through."""
    chunks = list(islice(sampler, batches))
    return [
        [place for chunk in chunks for place in chunk[row :: sampler.lanes]]
        for row in range(sampler.lanes)
    ]


def split(stream: list[int]) -> list[list[int]]:
    """A stream's episodes; the last may be cut."""
    firsts = {episode.start for episode in EPISODES}
    found: list[list[int]] = []
    for place in stream:
        if place in firsts:
            found.append([])
        found[-1].append(place)
    return found


def test_rows_go_through_whole_episodes_in_order(dataset: Callable[..., Any]):
    whole = [list(episode) for episode in EPISODES]
    for stream in streams(EpisodeChunkSampler(dataset(), lanes=2, length=4), 30):
        *done, cut = split(stream)
        assert all(episode in whole for episode in done)
        assert any(cut == episode[: len(cut)] for episode in whole)


def test_no_frame_is_left_out_or_seen_twice_before_all_were_seen(dataset: Callable[..., Any]):
    (stream,) = streams(EpisodeChunkSampler(dataset(), lanes=1, length=3), 28)
    for begin in range(0, 84, 21):
        assert sorted(stream[begin : begin + 21]) == list(range(21))
    assert stream[:21] != stream[21:42] or stream[:21] != stream[42:63]  # the order changes


def test_order_is_the_seeds_and_can_be_taken_up_again(dataset: Callable[..., Any]):
    read = dataset()
    chunks = list(islice(EpisodeChunkSampler(read, lanes=2, length=3, seed=1), 9))
    resumed = EpisodeChunkSampler(read, lanes=2, length=3, seed=1, begin=4)
    assert list(islice(resumed, 5)) == chunks[4:]
    other = EpisodeChunkSampler(read, lanes=2, length=3, seed=2)
    assert list(islice(other, 9)) != chunks


def test_a_dataset_of_some_episodes_streams_those(dataset: Callable[..., Any]):
    read = dataset(episodes=[0, 2])
    (stream,) = streams(EpisodeChunkSampler(read, lanes=1, length=4), 4)
    assert sorted(stream) == list(range(16))  # places in this dataset, not numbers in the whole
    seen = {int(read[place]["episode_index"]) for place in stream}
    assert seen == {0, 2}


def test_starts_are_the_first_frames_of_episodes(dataset: Callable[..., Any]):
    read = dataset()
    sampler = EpisodeChunkSampler(read, lanes=2, length=5, seed=3)
    firsts = {episode.start for episode in EPISODES}
    loader = DataLoader(read, batch_sampler=sampler)
    for batch, places in islice(zip(loader, sampler, strict=True), 6):
        wanted = torch.tensor([place in firsts for place in places]).view(5, 2)
        assert torch.equal(chunk_starts(batch, 2), wanted)
        assert batch["index"].tolist() == places


class Columns:
    """A dataset that holds nothing but the numbers of its frames."""

    def __init__(self, episodes: list[int], frames: list[int]):
        from datasets import Dataset

        columns = {"episode_index": episodes, "frame_index": frames}
        self.hf_dataset = Dataset.from_dict(columns)


def test_missing_frames_and_empty_datasets_are_refused():
    with pytest.raises(DataError, match=r"episode 1: frame 2 is number 3; allowed: 2"):
        EpisodeChunkSampler(Columns([0, 0, 1, 1, 1], [0, 1, 0, 1, 3]), lanes=1, length=1)
    with pytest.raises(DataError, match=r"episode 0: frame 0 is number 1"):
        EpisodeChunkSampler(Columns([0], [1]), lanes=1, length=1)
    with pytest.raises(DataError, match="no frames"):
        EpisodeChunkSampler(Columns([], []), lanes=1, length=1)


@pytest.mark.parametrize("wrong", [{"lanes": 0}, {"length": 0}, {"begin": -1}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]):
    settings = {"lanes": 1, "length": 1, **wrong}
    with pytest.raises(InvalidValueError, match=next(iter(wrong))):
        EpisodeChunkSampler(Columns([0], [0]), **settings)


@pytest.fixture
def policy(plain: Any) -> Any:
    policy = attach_memory(plain, MemoryConfig(width=8, window=7)).train()
    torch.nn.init.normal_(policy.engram.reading.weight)
    return policy


@pytest.mark.parametrize("kind", ["act"], indirect=True)
class TestLearning:
    """`forward_chunk` on samples of the dataset."""

    def samples(self, policy: Any, dataset: Callable[..., Any]) -> Any:
        config = policy.config.frame_config()
        assert config.type == "act" and config.observation_delta_indices is None
        stamps = resolve_delta_timestamps(config, dataset().meta)
        return dataset(delta_timestamps=stamps)

    def heard(self, policy: Any) -> list[Tensor]:
        reads: list[Tensor] = []
        policy.engram.reading.register_forward_hook(lambda _m, _x, read: reads.append(read))
        return reads

    def test_chunks_with_the_state_handed_on_read_what_a_window_reads(
        self, policy: Any, dataset: Callable[..., Any]
    ):
        samples, reads = self.samples(policy, dataset), self.heard(policy)
        state = policy.engram.initial_state(1)
        for part in (range(0, 3), range(3, 7)):  # the first episode
            batch = default_collate([samples[place] for place in part])
            start = chunk_starts(batch, 1)
            _, _, state = policy.forward_chunk(batch, states.detach(state), start)
        stamps = resolve_delta_timestamps(policy.config, dataset().meta)
        window = default_collate([dataset(delta_timestamps=stamps)[6]])
        policy.forward(window)
        torch.testing.assert_close(torch.cat(reads[:2]), reads[2], atol=1e-5, rtol=1e-5)

    def test_an_episode_that_begins_within_a_chunk_remembers_nothing(
        self, policy: Any, dataset: Callable[..., Any]
    ):
        samples, reads = self.samples(policy, dataset), self.heard(policy)
        across = default_collate([samples[place] for place in range(5, 10)])
        alone = default_collate([samples[place] for place in range(7, 10)])
        for batch in (across, alone):
            state = policy.engram.initial_state(1)
            policy.forward_chunk(batch, state, chunk_starts(batch, 1))
        torch.testing.assert_close(reads[0][2:], reads[1], atol=1e-5, rtol=1e-5)

    def test_loss_is_the_mean_over_all_frames(self, policy: Any, dataset: Callable[..., Any]):
        torch.nn.init.zeros_(policy.engram.reading.weight)
        batch = default_collate([self.samples(policy, dataset)[place] for place in range(4)])
        torch.manual_seed(1)
        ours, _, _ = policy.forward_chunk(
            batch, policy.engram.initial_state(2), chunk_starts(batch, 2)
        )
        torch.manual_seed(1)
        assert torch.equal(ours, ACTPolicy.forward(policy, batch)[0])

    def test_gradient_reaches_earlier_frames_of_the_chunk_and_no_further(
        self, policy: Any, dataset: Callable[..., Any]
    ):
        batch = default_collate([self.samples(policy, dataset)[place] for place in range(4)])
        batch["observation.state"].requires_grad_()
        _, _, state = policy.forward_chunk(
            batch, policy.engram.initial_state(1), chunk_starts(batch, 1)
        )
        (later,) = [leaf for _, leaf in states.leaves(state)]
        (gradient,) = torch.autograd.grad(later.sum(), batch["observation.state"])
        assert gradient.any(-1).all()
        assert not any(leaf.requires_grad for _, leaf in states.leaves(states.detach(state)))

    def test_a_batch_of_another_size_is_refused(self, policy: Any, dataset: Callable[..., Any]):
        batch = default_collate([self.samples(policy, dataset)[place] for place in range(4)])
        with pytest.raises(InvalidValueError, match=r"samples is 4; allowed: T·B = 6"):
            policy.forward_chunk(
                batch, policy.engram.initial_state(3), torch.zeros(2, 3, dtype=torch.bool)
            )
