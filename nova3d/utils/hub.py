"""Folders from the Hugging Face hub, with errors of one line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nova3d.errors import InputError, first_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def is_hub_id(name: str | Path) -> bool:
    """Whether a name has the form owner/name, does not exist here and is no file of weights."""
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
            f"'{hub_id}' is no folder here and the hub did not give it (wrong id, or no network?): {first_line(error)}"
        ) from error
