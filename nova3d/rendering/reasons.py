"""Reason codes for objects that were not rendered or not kept, the same in every manifest."""

from enum import StrEnum
from pathlib import Path

from nova3d.errors import InputError


class Reason(StrEnum):
    """What went wrong with one object."""

    FETCH_FAILED = "fetch_failed"  # the source does not give the file
    FETCH_HASH = "fetch_hash"  # the file is not the one the source describes
    PARSE_ERROR = "parse_error"  # truncated, HTML in place of a GLB, NaN, not a mesh file
    DRACO = "draco"  # compressed geometry, which is not read
    EMPTY_SCENE = "empty_scene"  # no triangles: points, lines, nothing
    MISSING_TEXTURE = "missing_texture"  # a picture that a material names is not there, or cannot be decoded
    BLANK_RENDER = "blank_render"
    TINY_COVERAGE = "tiny_coverage"
    CLIPPED = "clipped"
    THIN = "thin"
    TRANSPARENT = "transparent"
    EMISSIVE = "emissive"
    UNTEXTURED = "untextured"
    NORMALS_DISAGREE = "normals_disagree"
    INVERTED_HULL = "inverted_hull"  # an outline of toon shading around the object
    DUPLICATE = "duplicate"
    LICENCE = "licence"  # not on the allow-list
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"
    DEVICE = "device"  # the engine runs elsewhere than asked, or lost its GPU
    WRITE_ERROR = "write_error"  # disk full, no permission

    @property
    def transient(self) -> bool:
        """Whether another try may succeed."""
        return self in _TRANSIENT


_TRANSIENT = {
    Reason.FETCH_FAILED,
    Reason.TIMEOUT,
    Reason.OUT_OF_MEMORY,
    Reason.CRASH,
    Reason.DEVICE,
    Reason.WRITE_ERROR,
}


class RenderError(InputError):
    """One object cannot be fetched, rendered or kept.

    Attributes:
        reason: the code; the message explains it in one line.
    """

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason


def one_line(message: str, *folders: Path) -> str:
    """A message without line ends, and without folders, which differ from run to run.

    Args:
        message: of an error.
        folders: absolute or relative; the names of files in them stay.

    Returns:
        The message on one line.
    """
    for folder in folders:
        if folder != Path():
            message = message.replace(f"{folder}/", "")
    return " ".join(message.split())
