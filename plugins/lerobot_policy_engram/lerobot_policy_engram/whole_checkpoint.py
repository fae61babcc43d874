"""LeRobot's weight files, loaded whole or refused."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model

from engram.kernels.errors import DataError, one_line


def load_whole(model: Any, file: str, device: str, *, new: str | None = None) -> None:
    """Fill a policy from a file; LeRobot itself would pass over weights that are missing.

    Args:
        model: The policy.
        file: `model.safetensors` of a checkpoint.
        device: Where its tensors go.
        new: What the names of weights begin with that may be missing, all of them together: they
            then stay as they are.

    Raises:
        DataError: If the file is missing or damaged, or lacks a weight or has one too many.
    """
    if not Path(file).is_file():
        raise DataError(f"checkpoint {file} does not exist")
    try:
        absent, superfluous = load_model(model, file, strict=False, device=device)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DataError(f"checkpoint {file} does not fit: {one_line(error)}") from error
    missing = set(absent)
    if new is not None:
        ours = {name for name in model.state_dict() if name.startswith(new)}
        missing -= ours if ours <= missing else set()
    if missing or superfluous:
        raise DataError(
            f"checkpoint {file} lacks {sorted(missing)[:3]} and has {sorted(superfluous)[:3]}; "
            f"allowed: the weights of {type(model).__name__}, no others"
        )
