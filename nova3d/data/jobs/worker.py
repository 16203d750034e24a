"""The worker program of the render pool: one engine, one object at a time.

`python -m nova3d.data.jobs.worker --pipe FD --parent PID --writer NAME` takes requests from a pipe and answers on it.
What it and its libraries print is its log.

in:  a RenderConfig, then per object {"asset": a row, "path": FILE, "target": TAR}
out: {"event": "ready", "engine": {...}} once, then per object {"event": "heartbeat", "views": n} after every view and
     {"event": "finished", "reason": ..., "message": ...}, both "" where the object is done;
     {"event": "failed", "reason": ..., "message": ...} where the engine cannot start.
"""

import argparse
import contextlib
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from nova3d.cameras import Cameras
from nova3d.data import duplicates
from nova3d.data.filters import apply_filters
from nova3d.data.jobs.config import RenderConfig, rig_digest
from nova3d.data.shards import encode_pictures, write_object
from nova3d.data.sources import Asset
from nova3d.errors import InputError, system_reason
from nova3d.rendering.engine import Engine, make_engine
from nova3d.rendering.reasons import Reason, RenderError, one_line
from nova3d.utils import provenance
from nova3d.utils.files import is_disk_full
from nova3d.utils.plugins import import_inherited
from nova3d.utils.workers import exit_with_parent

_LONGEST_MESSAGE = 400
Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ObjectRenderer:
    """Renders, filters, encodes and writes one object at a time; `writer` names its temporary files."""

    config: RenderConfig
    engine: Engine
    cameras: Cameras
    writer: str

    def render(self, asset: Asset, path: Path, target: Path, send: Send) -> dict[str, str]:
        """Render `path` into the tar `target`; return reason and message, both "" where it is done. Raises nothing."""
        try:
            self._render(asset, path, target, send)
            return {"reason": "", "message": ""}
        except RenderError as fault:
            reason, message = fault.reason, str(fault)
        except InputError as error:  # raised by an engine's loader for a file it cannot use
            reason, message = Reason.PARSE_ERROR, str(error)
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason, message = Reason.OUT_OF_MEMORY, f"out of memory: {error}"
        except Exception as error:  # one broken mesh must not end a job of thousands
            traceback.print_exc()
            reason = Reason.WRITE_ERROR if is_disk_full(error) else Reason.CRASH
            message = f"{type(error).__name__}: {error}"
        return {"reason": reason, "message": one_line(message, path.parent)[:_LONGEST_MESSAGE]}

    def _render(self, asset: Asset, path: Path, target: Path, send: Send) -> None:
        digest = provenance.hash_file(path)
        rendered = self.engine.render(path, self.cameras, lambda views: send({"event": "heartbeat", "views": views}))
        filtered = apply_filters(rendered, self.cameras, self.config.filters)
        if filtered.reject is not None:
            raise RenderError(filtered.reject, filtered.message)
        facts = replace(asset, sha256=digest, size_bytes=path.stat().st_size).to_row() | {
            "rig": rig_digest(self.cameras),
            "engine": self.engine.describe(),
            "facts": rendered.facts,
            "measures": filtered.measures,
            "tags": sorted(filtered.tags),
            **duplicates.fingerprint(rendered.rgba, path, rendered.mesh),
        }
        facts.pop("path")  # differs from machine to machine
        members = encode_pictures(asset.uid, rendered.rgba, rendered.normals, facts)
        send({"event": "heartbeat", "views": len(self.cameras)})
        try:
            write_object(target, members, self.writer)
        except OSError as error:
            raise RenderError(Reason.WRITE_ERROR, f"cannot write '{target}': {system_reason(error)}") from error


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pipe", type=int, required=True, help="descriptor of a two-way pipe to the scheduler")
    arguments.add_argument("--parent", type=int, required=True, help="process id of the scheduler")
    arguments.add_argument("--writer", required=True, help="name of this worker in temporary file names")
    options = arguments.parse_args()
    exit_with_parent(options.parent)
    os.set_inheritable(options.pipe, False)  # the pipe ends when this process does, whatever it has started
    pipe = Connection(options.pipe)
    config: RenderConfig = pipe.recv()
    try:
        import_inherited()
        torch.set_num_threads(config.engine.threads or 1)
        renderer = ObjectRenderer(config, make_engine(config.engine), config.cameras(), options.writer)
    except InputError as error:
        reason = error.reason if isinstance(error, RenderError) else Reason.CRASH
        pipe.send({"event": "failed", "reason": reason, "message": one_line(str(error))})
        return
    with contextlib.closing(renderer.engine), contextlib.suppress(EOFError):  # the scheduler has closed the pipe
        pipe.send({"event": "ready", "engine": renderer.engine.describe()})
        while True:
            request = pipe.recv()
            end = renderer.render(Asset.from_row(request["asset"]), request["path"], request["target"], pipe.send)
            pipe.send({"event": "finished"} | end)


if __name__ == "__main__":
    main()
