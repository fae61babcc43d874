"""Instructions: words to numbers, and what is refused."""

import pytest
import torch

from engram.kernels.errors import InvalidValueError
from engram.policies.language import UnknownWordError, Vocabulary, WordEncoder, split

TASKS = ["Touch the red cube.", "Put the cube back, then touch it!"]


def test_words_are_numbered_in_alphabetic_order_from_one() -> None:
    vocabulary = Vocabulary.of(TASKS, length=8)
    assert vocabulary.words == ["back", "cube", "it", "put", "red", "the", "then", "touch"]
    numbers = vocabulary.encode(["touch THE cube?", "it"])
    assert numbers.tolist() == [[8, 6, 2, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Pick-and-place the robot's box_2!", ["pick-and-place", "the", "robot's", "box", "2"]),
        ("Öffne die größte Tür.", ["öffne", "die", "größte", "tür"]),
        ("возьми куб", ["возьми", "куб"]),
        ("?! --", []),
    ],
)
def test_a_text_is_split_into_whole_words_of_any_script(text: str, words: list[str]) -> None:
    assert split(text) == words


def test_unknown_words_are_named_with_those_known() -> None:
    with pytest.raises(UnknownWordError) as error:
        Vocabulary.of(TASKS).encode(["touch the red cube", "touch the green ball"])
    message = str(error.value)
    assert message.startswith("instruction 'touch the green ball' has unknown words: green, ball;")
    assert message.endswith("allowed: back, cube, it, put, red, the, then, touch")


@pytest.mark.parametrize("text", ["", "...", "the the the the"])
def test_an_instruction_without_words_or_with_too_many_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="allowed: 1 to 3 words"):
        Vocabulary(["the"], length=3).encode([text])


def test_a_vocabulary_that_could_never_match_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"words is \[\]; allowed: one or more"):
        Vocabulary.of([])
    with pytest.raises(InvalidValueError, match="word is 'Red'; allowed: single words"):
        Vocabulary(["cube", "Red"])
    with pytest.raises(InvalidValueError, match="word is 'red cube'; allowed: single words"):
        Vocabulary(["red cube"])
    with pytest.raises(InvalidValueError, match="length is 0; allowed: 1 or more"):
        Vocabulary(["red"], length=0)


def test_the_code_is_the_mean_over_words_and_heeds_their_order() -> None:
    encoder = WordEncoder(5, 8, length=6)
    one, two = torch.tensor([[2, 0, 0, 0, 0, 0]]), torch.tensor([[2, 4, 0, 0, 0, 0]])
    first = encoder.layer(encoder.embedding.weight[2] + encoder.position[0])
    second = encoder.layer(encoder.embedding.weight[4] + encoder.position[1])
    torch.testing.assert_close(encoder(one)[0], first)
    torch.testing.assert_close(encoder(two)[0], (first + second) / 2)
    assert not torch.allclose(encoder(two), encoder(torch.tensor([[4, 2, 0, 0, 0, 0]])), atol=1e-4)


def test_padding_never_reaches_the_code() -> None:
    encoder = WordEncoder(5, 8, length=6)
    words = torch.tensor([[2, 4, 0, 0, 0, 0]])
    expected = encoder(words)
    with torch.no_grad():
        encoder.position[2:] = 1e6
        encoder.embedding.weight[0] = float("inf")
    torch.testing.assert_close(encoder(words), expected)
    assert not encoder(torch.zeros(1, 6, dtype=torch.int64)).any()


def test_every_parameter_of_the_encoder_gets_a_gradient() -> None:
    encoder = WordEncoder(5, 8, length=3)
    encoder(torch.tensor([[1, 2, 3], [4, 5, 0]])).sin().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_an_instruction_that_many_frames_share_is_encoded_once() -> None:
    encoder = WordEncoder(5, 8, length=3)
    words = torch.tensor([[1, 2, 3], [4, 5, 0], [1, 2, 3], [0, 0, 0], [4, 5, 0]])
    rows: list[int] = []
    hook = encoder.layer.register_forward_pre_hook(lambda _, seen: rows.append(len(seen[0])))
    together = encoder(words)
    hook.remove()
    assert rows == [3]
    torch.testing.assert_close(together, torch.cat([encoder(row) for row in words.split(1)]))
