"""Folders in the layout of the Hugging Face hub: fetched with errors of one line, and their weights' variant."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nova3d.errors import InputError, first_line

HALF_PRECISION = "fp16"  # diffusers' and transformers' name of float16 weight files
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def is_hub_id(name: str | Path) -> bool:
    """Whether a name has the form owner/name, does not exist here and is not a file of weights."""
    text = str(name)
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(_FILE_SUFFIXES) and not Path(text).exists()


def download(hub_id: str, patterns: Sequence[str] | None = None, **options: Any) -> Path:
    """The local copy of a hub repository's files; what is in the hub's cache is not fetched again.

    Args:
        hub_id: owner/name.
        patterns: globs of the files to fetch; None for all.
        **options: further arguments of `huggingface_hub.snapshot_download`: revision, cache_dir, token ...

    Returns:
        The folder of the copy.

    Raises:
        InputError: where the hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns) if patterns else None, **options))
    except GatedRepoError as error:
        raise InputError(
            f"the hub gives '{hub_id}' only after its licence is accepted there and `hf auth login`"
        ) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"'{hub_id}' is not a folder, and the hub did not give it (wrong id, or no network?): {first_line(error)}"
        ) from error


def only_variant(folder: str | Path) -> str | None:
    """The variant that all weight files of a folder have in common.

    Args:
        folder: of a model, or of one of its networks.

    Returns:
        HALF_PRECISION where every .safetensors file in the folder or one level below it is of that variant, else None.
    """
    files = [path.name for pattern in ("*.safetensors", "*/*.safetensors") for path in Path(folder).glob(pattern)]
    half = all(f".{HALF_PRECISION}." in name or f".{HALF_PRECISION}-" in name for name in files)
    return HALF_PRECISION if files and half else None
