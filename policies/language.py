"""Instructions: text to numbers of words, and words to one vector."""

import re
from collections.abc import Iterable, Sized
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engram.kernels.errors import EngramError, InvalidValueError


class UnknownWordError(EngramError):
    """An instruction has words that the policy never saw."""

    def __init__(self, words: list[str], instruction: str, known: list[str]):
        super().__init__(
            f"instruction {instruction!r} has unknown words: {', '.join(words)}; "
            f"allowed: {', '.join(known)}"
        )


@runtime_checkable
class Language(Protocol):
    """How a policy reads instructions."""

    @property
    def words(self) -> Sized:
        """What it knows; number 0 is none of these."""
        ...

    @property
    def length(self) -> int:
        """Numbers of an encoded instruction."""
        ...

    def encode(self, instructions: list[str]) -> Int[Tensor, "n W"]:
        """Return the numbers of instructions, zero padded.

        Raises:
            EngramError: If one cannot be read.
        """
        ...


class Vocabulary:
    """The words of a set of instructions, in alphabetic order; number 0 is no word.

    Args:
        words: Lower case, each once.
        length: Most words in an instruction.
    """

    def __init__(self, words: Iterable[str], *, length: int = 24):
        self.words = sorted(set(words))
        self.length = length
        self.number = {word: i + 1 for i, word in enumerate(self.words)}
        if not self.words:
            raise InvalidValueError("words", [], "one or more")
        if length < 1:
            raise InvalidValueError("length", length, "1 or more")
        for word in self.words:
            if split(word) != [word]:
                raise InvalidValueError("word", word, "single words in lower case")

    @classmethod
    def of(cls, instructions: Iterable[str], *, length: int = 24) -> "Vocabulary":
        """Collect the words of instructions."""
        return cls((word for text in instructions for word in split(text)), length=length)

    def encode(self, instructions: list[str]) -> Int[Tensor, "n W"]:
        """Return the numbers of the words, zero padded.

        Raises:
            UnknownWordError: If a word is not among those known.
            InvalidValueError: If an instruction has no words, or too many.
        """
        numbers = torch.zeros(len(instructions), self.length, dtype=torch.int64)
        for row, text in zip(numbers, instructions, strict=True):
            words = split(text)
            if not 1 <= len(words) <= self.length:
                raise InvalidValueError("instruction", text, f"1 to {self.length} words")
            missing = [word for word in words if word not in self.number]
            if missing:
                raise UnknownWordError(missing, text, self.words)
            row[: len(words)] = torch.tensor([self.number[word] for word in words])
        return numbers


def split(text: str) -> list[str]:
    """Return the words of a text, of any script, lower case, without punctuation."""
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())


class WordEncoder(nn.Module):
    """Instruction to vector: embedded words with positions, a layer, the mean over words.

    Args:
        words: Size of the vocabulary, without number 0.
        width: Features of the vector.
        length: Most words in an instruction.
    """

    def __init__(self, words: int, width: int = 128, *, length: int = 24):
        super().__init__()
        self.embedding = nn.Embedding(words + 1, width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, words: Int[Tensor, "n W"]) -> Float[Tensor, "n D"]:
        """Encode instructions; an empty one is the zero vector."""
        if len(words) == 1:
            return self._encode(words)
        # All frames of an episode have the same instruction, and most episodes of a task.
        different, which = words.unique(dim=0, return_inverse=True)
        return self._encode(different)[which]

    def _encode(self, words: Int[Tensor, "n W"]) -> Float[Tensor, "n D"]:
        present = (words > 0)[..., None]
        each = self.layer(self.embedding(words) + self.position[: words.shape[1]])
        return torch.where(present, each, 0.0).sum(1) / present.sum(1).clamp(min=1)
