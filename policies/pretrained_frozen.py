"""Pretrained models that do not learn."""

import copy
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engram.kernels.errors import DataError

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of a number."""


class Frozen(nn.Module):
    """A model of a folder that stays as it is: in evaluation mode, without gradient.

    Deep copies share it. A `state_dict` holds a fingerprint of its weights instead of the weights,
    which are read from the folder again; the fingerprint of others is refused.

    Args:
        model: As it was loaded.
        folder: Where from.
        missing: Names of weights that the folder lacks: nothing may depend on these.
    """

    def __init__(self, model: nn.Module, folder: Path, missing: list[str]):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.folder = folder
        found = {name: x for name, x in model.state_dict().items() if name not in missing}
        self.fingerprint = fingerprint(found)
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
            seen = f"fingerprint of the weights in {self.folder} is {self.fingerprint}"
            raise DataError(f"{seen}; allowed: {saved}, with which the policy was saved")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        """Copy all but the model."""
        memo[id(self.model)] = self.model
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, facts: Any) -> None:
    del module, facts
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        del state[name]


def _put_back(module: nn.Module, state: dict[str, Any], prefix: str, *facts: Any) -> None:
    """Let weights be loaded that `_leave_out` left out: the model's own."""
    del facts
    own = module.get_submodule("model").state_dict()
    state.update({f"{prefix}model.{name}": tensor for name, tensor in own.items()})


def fingerprint(tensors: dict[str, Tensor]) -> int:
    """Return a number that other weights hardly share: of names, shapes and sums of all bits.

    It is exact on every device, and takes a pass over the memory; it is no defence against those
    who want to deceive.
    """
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        bits = tensor.reshape(-1).view(INTEGERS[tensor.element_size()])
        facts = f"{name} {list(tensor.shape)} {tensor.dtype} {int(bits.sum(dtype=torch.int64))}"
        total = zlib.crc32(facts.encode(), total)
    return total
