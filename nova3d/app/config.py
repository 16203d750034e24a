"""The keys of `nova3d app`."""

from dataclasses import dataclass, field
from typing import Annotated

from nova3d.errors import InputError
from nova3d.utils.resources import Shipped

QUALITIES = {"Draft": "draft", "Standard": "mini", "Fine": "fine"}
"""What the page calls a quality, and the shipped config of `generate` that it means."""


@dataclass
class AppConfig:
    """The keys of `nova3d app`."""

    host: str = "127.0.0.1"
    """The address to listen on. 127.0.0.1 is this machine alone; 0.0.0.0 is everyone who can reach it."""
    port: int = 7860
    """The port; 0 takes a free one."""
    trusted_hosts: list[str] = field(default_factory=list)
    """Further names under which browsers reach the app on 127.0.0.1, such as that of a proxy. Others are refused."""
    model: Annotated[str | None, Shipped("model")] = None
    """A model folder, the name of a shipped model or a hub id. null: that of the quality's config."""
    workers: int = 1
    """Jobs at a time. Each worker is a process that holds the model."""
    waiting: int = 20
    """Jobs that may wait; a further one is refused."""
    upload_mb: int = 200
    """The most megabytes of an uploaded file."""
    keep_minutes: float = 60.0
    """Minutes after which the files of a visitor who does nothing are removed. Those of a closed page go at once."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} is not within 0 and 65535")
        for name, least in (("workers", 1), ("waiting", 0), ("upload_mb", 1), ("keep_minutes", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
