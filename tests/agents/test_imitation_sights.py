"""What a policy sees of data sets on disk and of worlds, and what they may lack."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engram.agents.demonstrations import Demonstrations, DemonstrationWriter, Episode, Feature
from engram.agents.imitation_sights import (
    load,
    quantiles_of,
    sight_of,
    sizes_of,
    statistics_of,
    vocabulary_of,
)
from engram.kernels.errors import DataError, InvalidValueError
from engram.policies.language import UnknownWordError, Vocabulary
from engram.policies.perception import SightSize

pytest.importorskip("pyarrow", reason="needs engram[demonstrations]")
pytest.importorskip("av", reason="needs engram[demonstrations]")

LENGTH = 6
COLUMNS: dict[str, Feature] = {
    "observation.images.top": Feature("video", (16, 16, 3), ["height", "width", "channel"]),
    "observation.images.wrist": Feature("video", (16, 16, 3), ["height", "width", "channel"]),
    "observation.state": Feature("float64", (3,)),
    "observation.environment_state": Feature("float32", (2, 4)),
    "observation.hidden": Feature("float32", (2,)),
    "shown": Feature("float32", (1,)),
    "decision": Feature("float32", (1,)),
    "action": Feature("float32", (2,)),
}


def write(folder: Path, columns: dict[str, Feature] = COLUMNS, episodes: int = 2) -> Demonstrations:
    random = np.random.default_rng(0)
    with DemonstrationWriter(folder, features=columns) as writer:
        for number in range(episodes):
            frames: dict[str, Any] = {}
            for name, (dtype, shape, _) in columns.items():
                if dtype == "video":
                    frames[name] = random.integers(0, 256, (LENGTH, *shape), np.uint8)
                else:
                    frames[name] = random.normal(size=(LENGTH, *shape)).astype(dtype)
            for name, first, end in (("shown", 1, 3), ("known", 3, 6), ("decision", 4, 6)):
                if name in columns:
                    frames[name] = np.zeros((LENGTH, 1), np.float32)
                    frames[name][first:end] = 1
            writer.add(Episode(frames, f"touch the {('red', 'green')[number % 2]} cube"))
    return Demonstrations(folder)


def without(*names: str) -> dict[str, Feature]:
    return {name: feature for name, feature in COLUMNS.items() if name not in names}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return write(tmp_path_factory.mktemp("whole") / "set")


def test_sizes_follow_from_the_columns(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    assert vocabulary.words == ["cube", "green", "red", "the", "touch"]
    seen = sizes_of(source, vocabulary)
    assert seen == SightSize(("top", "wrist"), 16, 3, 5, 24, (0, 0), 0)
    listed = sizes_of(source, vocabulary, objects=True, told=True)
    assert listed == SightSize((), 0, 3, 5, 24, (2, 4), 2)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (without("observation.state"), {}, "has no column observation.state; it has"),
        (without("action"), {}, "has no column action"),
        (
            without("observation.environment_state"),
            {"objects": True},
            "has no column observation.environment_state",
        ),
        (without("observation.hidden"), {"told": True}, "has no column observation.hidden"),
        (
            without("observation.images.top", "observation.images.wrist"),
            {},
            "has no images",
        ),
        (
            COLUMNS | {"observation.images.wrist": Feature("video", (32, 32, 3))},
            {},
            r"images are \{.*wrist': \(32, 32\)\}; allowed: squares of one size",
        ),
        (
            COLUMNS | {"observation.images.wrist": Feature("video", (16, 32, 3))},
            {},
            "allowed: squares of one size",
        ),
    ],
    ids=["no state", "no action", "no objects", "no cue", "no images", "two sizes", "no square"],
)
def test_data_sets_that_lack_what_is_wanted_are_refused(
    columns: dict[str, Feature], settings: dict[str, bool], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "set", columns, episodes=1)
    with pytest.raises(DataError, match=message):
        sizes_of(source, vocabulary_of(source), **settings)


@pytest.mark.parametrize("name", ["observation.state", "action", "observation.hidden"])
@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("string", (1,)), "dtype of {} is 'string'; allowed: float16, float32"),
        (Feature("video", (16, 16, 3)), "dtype of {} is 'video'; allowed: float16, float32"),
        (Feature("float32", (2, 2)), r"shape of {} is \[2, 2\]; allowed: 1 dimension"),
    ],
    ids=["string", "video", "matrix"],
)
def test_what_is_felt_and_done_are_vectors_of_numbers(
    source: Demonstrations,
    name: str,
    feature: Feature,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary = vocabulary_of(source)
    monkeypatch.setattr(source, "features", COLUMNS | {name: feature})
    with pytest.raises(DataError, match=message.format(name)):
        sizes_of(source, vocabulary, told=True)


def test_objects_are_a_matrix_of_numbers(
    source: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = vocabulary_of(source)
    flat = {"observation.environment_state": Feature("float32", (8,))}
    monkeypatch.setattr(source, "features", COLUMNS | flat)
    with pytest.raises(DataError, match=r"environment_state is \[8\]; allowed: 2 dimension"):
        sizes_of(source, vocabulary, objects=True)


def test_images_declared_channels_first_are_of_their_size(
    source: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["channels", "height", "width"]
    declared = {f"observation.images.{n}": Feature("video", (3, 16, 16), names) for n in "ab"}
    monkeypatch.setattr(source, "features", without("x") | declared)
    sizes = sizes_of(source, vocabulary_of(source))
    assert sizes.image == 16 and sizes.cameras == ("a", "b", "top", "wrist")


def test_episodes_are_read_as_they_were_written(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    episodes = load(source, vocabulary, sizes_of(source, vocabulary))
    assert len(episodes) == 2
    for number, episode in enumerate(episodes):
        columns = source.read(number)
        assert np.array_equal(episode.action, columns["action"])
        for camera in ("top", "wrist"):
            image = episode.sight.images[camera]
            assert image.dtype == torch.uint8
            assert np.array_equal(image, columns[f"observation.images.{camera}"])
        assert episode.sight.proprioception.dtype == torch.float32
        words = vocabulary.encode([f"touch the {('red', 'green')[number]} cube"])
        assert torch.equal(episode.sight.words, words.expand(LENGTH, -1))
        assert episode.sight.oracle.shape == (LENGTH, 0)
        assert episode.sight.objects.shape == (LENGTH, 0, 0)
        assert episode.shown.tolist() == [0, 1, 1, 0, 0, 0]
        assert episode.decision.tolist() == [0, 0, 0, 0, 1, 1]


def test_the_cue_is_known_from_when_it_was_in_view_on(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    (episode,) = load(source, vocabulary, sizes_of(source, vocabulary), limit=1)
    assert episode.cue[:1].isnan().all()
    hidden = source.read(0)["observation.hidden"]
    assert np.array_equal(episode.cue[1:], hidden[1:])


def test_only_the_told_are_told(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    sizes = sizes_of(source, vocabulary, objects=True, told=True)
    (episode,) = load(source, vocabulary, sizes, limit=1)
    assert np.array_equal(episode.sight.oracle, source.read(0)["observation.hidden"])
    assert np.array_equal(episode.sight.objects, source.read(0)["observation.environment_state"])
    assert episode.sight.images == {}


def test_columns_that_only_help_may_be_missing(tmp_path: Path) -> None:
    source = write(tmp_path / "set", without("observation.hidden", "shown", "decision"), 1)
    vocabulary = vocabulary_of(source)
    (episode,) = load(source, vocabulary, sizes_of(source, vocabulary))
    assert episode.cue.shape == (LENGTH, 0)
    assert not episode.shown.any() and not episode.decision.any()


def test_an_instruction_of_unknown_words_is_refused(source: Demonstrations) -> None:
    vocabulary = Vocabulary(["touch", "the", "red", "cube"])
    with pytest.raises(UnknownWordError, match="'touch the green cube' has unknown words: green"):
        load(source, vocabulary, sizes_of(source, vocabulary))


def test_quantiles_are_of_all_frames(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    episodes = load(source, vocabulary, sizes_of(source, vocabulary))
    low, high = quantiles_of(episodes)
    actions = np.concatenate([source.read(number)["action"] for number in range(2)])
    np.testing.assert_allclose(low, np.quantile(actions, 0.01, axis=0), rtol=1e-5)
    np.testing.assert_allclose(high, np.quantile(actions, 0.99, axis=0), rtol=1e-5)
    assert (low < high).all()


def test_a_number_that_seldom_moves_still_moves(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    (episode,) = load(source, vocabulary, sizes_of(source, vocabulary), limit=1)
    action = torch.zeros(1000, 2)
    action[:8, 0] = 1.0  # a trigger, pulled in fewer than 1 % of the frames
    low, high = quantiles_of([episode._replace(action=action)])
    assert low.tolist() == [0.0, 0.0] and high.tolist() == [1.0, 0.0]


def test_what_objects_in_view_have_in_common_stays_as_it_is(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    (episode,) = load(source, vocabulary, sizes_of(source, vocabulary, objects=True), limit=1)
    objects = episode.sight.objects.clone()
    objects[..., 3] = 1  # in view
    objects[2, 0] = 0  # not in view
    episode = episode._replace(sight=episode.sight._replace(objects=objects))
    (_, felt), (mean, std), _ = statistics_of([episode])
    seen = objects.flatten(0, 1)[[i for i in range(2 * LENGTH) if i != 4]]
    torch.testing.assert_close(mean[:3], seen[:, :3].mean(0))
    torch.testing.assert_close(std[:3], seen[:, :3].std(0, correction=0))
    assert mean[3] == 0 and std[3] == 0
    torch.testing.assert_close(felt, episode.sight.proprioception.std(0, correction=0))


def test_cues_count_in_the_frames_in_which_they_are_known(source: Demonstrations) -> None:
    vocabulary = vocabulary_of(source)
    (episode,) = load(source, vocabulary, sizes_of(source, vocabulary), limit=1)
    first, second = torch.full((LENGTH, 2), torch.nan), torch.full((LENGTH, 2), torch.nan)
    first[-2:], second[-1:] = torch.tensor([0.1, 5.0]), torch.tensor([0.4, 5.0])
    episodes = [episode._replace(cue=cue) for cue in (first, second)]
    mean, std = statistics_of(episodes).cue
    torch.testing.assert_close(mean, torch.tensor([0.2, 5.0]))
    torch.testing.assert_close(std, torch.tensor([0.02**0.5, 0.0]))
    nothing = statistics_of([episode._replace(cue=torch.full((LENGTH, 2), torch.nan))]).cue
    assert [part.tolist() for part in nothing] == [[0.0, 0.0], [1.0, 1.0]]


def test_sights_of_worlds_are_those_of_data_sets() -> None:
    vocabulary = Vocabulary(["go", "left"], length=3)
    observation = {
        "top": torch.zeros(2, 16, 16, 3, dtype=torch.uint8),
        "proprioception": torch.randn(2, 3),
        "objects": torch.randn(2, 4, 5),
        "oracle": torch.randn(2, 6),
    }
    sizes = SightSize(("top",), 16, 3, 2, 3, (4, 5), 6)
    sight = sight_of(observation, vocabulary.encode(["go left", "left"]), sizes)
    assert sight.images.keys() == {"top"} and sight.words.tolist() == [[1, 2, 0], [2, 0, 0]]
    assert sight.objects is observation["objects"] and sight.oracle is observation["oracle"]
    none = sizes._replace(objects=(0, 0), oracle=0)
    blind = sight_of(observation, vocabulary.encode(["go"] * 2), none)
    assert blind.objects.shape == (2, 0, 0) and blind.oracle.shape == (2, 0)


@pytest.mark.parametrize("part", ["top", "proprioception", "objects", "oracle"])
def test_worlds_that_do_not_show_what_is_wanted_are_refused(part: str) -> None:
    words = Vocabulary(["go"], length=1).encode(["go"])
    observation = {
        "top": torch.zeros(1, 16, 16, 3, dtype=torch.uint8),
        "proprioception": torch.zeros(1, 3),
        "objects": torch.zeros(1, 4, 5),
        "oracle": torch.zeros(1, 6),
    }
    del observation[part]
    with pytest.raises(InvalidValueError, match=r"parts of the observation is .*; allowed: propr"):
        sight_of(observation, words, SightSize(("top",), 16, 3, 1, 1, (4, 5), 6))


def test_a_cue_is_asked_from_when_a_recording_says_it_is_known(tmp_path: Path) -> None:
    said = COLUMNS | {"known": Feature("float32", (1,))}
    for name, columns, first in (("said", said, 3), ("unsaid", COLUMNS, 1)):
        source = write(tmp_path / name, columns, episodes=1)
        vocabulary = vocabulary_of(source)
        (episode,) = load(source, vocabulary, sizes_of(source, vocabulary))
        asked = ~episode.cue.isnan().any(-1)
        assert asked.tolist() == [False] * first + [True] * (LENGTH - first), name
