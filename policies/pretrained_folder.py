"""Folders of pretrained models: what is in them, read without a network and without pickle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from engram.kernels.errors import DataError, InvalidValueError, MissingPackageError, one_line

EXTRA = "vla"


def config_of(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model and what its `config.json` says.

    Raises:
        InvalidValueError: If there is no such folder.
        DataError: If it holds no readable configuration, or no safetensors.
    """
    folder = Path(path).expanduser()
    if not str(path) or not folder.is_dir():
        raise InvalidValueError("path", str(path), "the folder of a model; nothing is downloaded")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no model: config.json: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.json'} is damaged: it is no table of settings")
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder} has no weights; allowed: *.safetensors")
    return folder, config


def transformers() -> ModuleType:
    """Return the package.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import transformers  # type: ignore[import-not-found]
    except ImportError:
        raise MissingPackageError("transformers", EXTRA) from None
    return transformers


def timm() -> ModuleType:
    """Return the package.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import timm  # type: ignore[import-not-found]
    except ImportError:
        raise MissingPackageError("timm", EXTRA) from None
    return timm


LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""Neither a network nor code from the folder."""


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what a library raises on a folder into one line that names it.

    Raises:
        DataError: In place of any error but those of a missing package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or one_line(error), EXTRA) from error
    except Exception as error:
        raise DataError(f"{folder} cannot be read: {one_line(error)}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from progress bars and from reports of weights that nobody asked for."""
    logging = transformers().logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def load(folder: Path, kind: Any, **settings: Any) -> tuple[nn.Module, list[str]]:
    """Load a transformers model; return it and the weights that the folder lacks.

    Raises:
        DataError: If the library does not know the model, or cannot read it.
    """
    with reading(folder), quietly():
        model, found = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **LOCAL, **settings
        )
    return model, sorted(found["missing_keys"])
