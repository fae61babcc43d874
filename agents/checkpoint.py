"""Checkpoints: one safetensors file, written to a temporary name and renamed."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engram.kernels.errors import DataError

FORMAT = 1


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts into one file; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"engram": json.dumps({"format": FORMAT, **facts})}
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory
    seen: set[int] = set()
    for name, tensor in flat.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen:
            flat[name] = tensor.clone()
        seen.add(pointer)
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
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads((file.metadata() or {})["engram"])
            if facts.get("format") != FORMAT:
                raise DataError(
                    f"checkpoint {path} has format {facts.get('format')!r}; allowed: {FORMAT}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, facts
    except FileNotFoundError:
        raise DataError(f"checkpoint {path} does not exist") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"checkpoint {path} is damaged: {error}") from error


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Select the tensors under `name.`, with that prefix taken off."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def load_module(module: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Fill a module from a checkpoint's tensors.

    Raises:
        DataError: If a tensor is missing, superfluous or of another shape.
    """
    wanted = module.state_dict()
    for name in wanted.keys() | tensors.keys():
        seen = list(tensors[name].shape) if name in tensors else "missing"
        allowed = list(wanted[name].shape) if name in wanted else "no such parameter"
        if seen != allowed:
            raise DataError(f"checkpoint {source}: {name} is {seen}; allowed: {allowed}")
    module.load_state_dict(tensors)
