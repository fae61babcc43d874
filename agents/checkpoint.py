"""Checkpoints: one safetensors file, written to a temporary name and renamed."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engram.kernels.errors import DataError

FORMAT = 1
EXTRA_STATE = "_extra_state"
"""Under which torch files what a module returns from `get_extra_state`."""


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts into one file; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory
    seen: set[int] = set()
    for name, tensor in flat.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen:
            flat[name] = tensor.clone()
        seen.add(pointer)
    facts = {**facts, "format": FORMAT, "checksum": _checksum(flat)}
    header = {"engram": json.dumps(facts)}
    try:
        save_file(flat, temporary, metadata=header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of a checkpoint.

    Raises:
        DataError: If the file is missing, damaged or of an unknown format version.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {}).get("engram", "null"))
            if not isinstance(facts, dict):
                raise DataError(f"checkpoint {path} is of another program; allowed: engram's own")
            if facts.pop("format", None) != FORMAT:
                raise DataError(f"checkpoint {path} is of another version; allowed: {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise DataError(f"checkpoint {path} does not exist") from None
    except (SafetensorError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"checkpoint {path} is damaged: {error}") from error
    if facts.pop("checksum", None) != _checksum(tensors):
        raise DataError(f"checkpoint {path} is damaged: its content does not match its checksum")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, facts


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of all bytes; safetensors checks lengths only."""
    total = 0
    for name in sorted(tensors):
        content = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Select the tensors under `name.`, with that prefix taken off."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def check(tensors: dict[str, Tensor], wanted: dict[str, Tensor], source: Path) -> None:
    """Compare the names, shapes and types of a checkpoint's tensors with those wanted.

    Raises:
        DataError: If a tensor is missing, superfluous, or of another shape or type, or if what a
            module says of weights that are not in the checkpoint is something else.
    """
    for name in sorted(wanted.keys() | tensors.keys()):
        seen, allowed = tensors.get(name), wanted.get(name)
        if seen is None or allowed is None or seen.shape != allowed.shape:
            shapes = [
                absent if tensor is None else list(tensor.shape)
                for tensor, absent in ((seen, "missing"), (allowed, "nothing of that name"))
            ]
            raise DataError(f"checkpoint {source}: {name} is {shapes[0]}; allowed: {shapes[1]}")
        if seen.dtype != allowed.dtype:
            raise DataError(
                f"checkpoint {source}: {name} is {seen.dtype}; allowed: {allowed.dtype}"
            )
        if name.endswith(EXTRA_STATE) and seen.tolist() != allowed.tolist():
            what = (
                f"checkpoint {source} was made with another pretrained model, or this one changed"
            )
            raise DataError(f"{what}: {name} is {seen.tolist()}; allowed: {allowed.tolist()}")


def load_module(module: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Fill a module from a checkpoint's tensors.

    Raises:
        DataError: If they do not fit; the module then stays as it was.
    """
    check(tensors, module.state_dict(), source)
    module.load_state_dict(tensors)
