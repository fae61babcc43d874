"""Pretrained models that do not learn."""

import copy
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engram.kernels.errors import DataError

MEANING = ".json", ".jinja", ".model", ".safetensors", ".txt"
"""Endings of the files that decide what a model makes of its input."""


class Frozen(nn.Module):
    """A model of a folder that stays as it is: in evaluation mode, without gradient.

    Deep copies share it, until one of them is moved or cast. A `state_dict` holds a fingerprint of
    the folder instead of the weights, which are read from there again; that of another is refused.

    Args:
        model: As it was loaded.
        folder: Where from.
    """

    def __init__(self, model: nn.Module, folder: Path):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.folder, self.shared = folder, False
        self.fingerprint = fingerprint(folder)
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_back)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint, for `state_dict`."""
        return torch.tensor([self.fingerprint])

    def set_extra_state(self, state: Tensor) -> None:
        """Compare fingerprints.

        Raises:
            DataError: If they differ.
        """
        if (saved := int(state)) != self.fingerprint:
            seen = f"fingerprint of {self.folder} is {self.fingerprint}"
            raise DataError(f"{seen}; allowed: {saved}, with which the policy was saved")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        """Copy all but the model."""
        memo[id(self.model)] = self.model
        self.shared = True
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        """Move or cast, the model of this copy alone."""
        if self.shared:
            self.model, self.shared = copy.deepcopy(self.model), False
        return super()._apply(fn, recurse)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, facts: Any) -> None:
    del module, facts
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        del state[name]


def _put_back(module: nn.Module, state: dict[str, Any], prefix: str, *facts: Any) -> None:
    """Let weights be loaded that `_leave_out` left out: the model's own."""
    del facts
    own = module.get_submodule("model").state_dict()
    state.update({f"{prefix}model.{name}": tensor for name, tensor in own.items()})


def fingerprint(folder: Path) -> int:
    """Return the CRC-32 of a model's files: weights, settings, vocabularies, templates."""
    total = 0
    for path in sorted(folder.iterdir()):
        if path.suffix in MEANING:
            total = zlib.crc32(path.name.encode(), total)
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    total = zlib.crc32(block, total)
    return total
