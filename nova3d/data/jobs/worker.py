"""The worker program of the render pool: one engine, one object at a time, JSON lines in and out.

`python -m nova3d.data.jobs.worker --config FILE --writer NAME --parent PID` reads requests from stdin and answers on
its stdout. Both are redirected at the start, so that whatever a library prints lands in the log (stderr).

in:  {"asset": {...}, "path": FILE, "target": TAR}
out: {"event": "ready", "engine": {...}} once, then per object {"event": "beat", "views": n} and
     {"event": "end", "uid": ..., "reason": ..., "message": ...}, both "" where the object is done;
     {"event": "fault", "reason": ..., "message": ...} where the engine cannot start.
"""

import argparse
import json
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nova3d import config as configs
from nova3d.cameras import Cameras
from nova3d.data import duplicates
from nova3d.data.filters import apply_filters
from nova3d.data.jobs.config import RenderConfig, rig_digest
from nova3d.data.shards import encode_pictures, write_object
from nova3d.data.sources import Asset
from nova3d.errors import InputError, system_reason
from nova3d.rendering.engine import Engine, make_engine
from nova3d.rendering.reasons import Reason, RenderError, one_line
from nova3d.utils import provenance, workers
from nova3d.utils.files import is_disk_full

_LONGEST_MESSAGE = 400
_GRACE_SECONDS = 20.0

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
        rendered = self.engine.render(path, self.cameras, lambda views: send({"event": "beat", "views": views}))
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
        send({"event": "beat", "views": len(self.cameras)})
        try:
            write_object(target, members, self.writer)
        except OSError as error:
            raise RenderError(Reason.WRITE_ERROR, f"cannot write '{target}': {system_reason(error)}") from error


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", required=True, help="a RenderConfig as YAML")
    arguments.add_argument("--writer", required=True, help="name of this worker in temporary file names")
    arguments.add_argument("--parent", type=int, required=True, help="process id of who started it")
    options = arguments.parse_args()
    workers.exit_with_parent(options.parent)
    requests, send = _redirect_stdio()
    try:
        config = configs.load(RenderConfig, options.config)
        torch.set_num_threads(config.engine.threads or 1)
        renderer = ObjectRenderer(config, make_engine(config.engine), config.cameras(), options.writer)
    except InputError as error:
        reason = error.reason if isinstance(error, RenderError) else Reason.CRASH
        send({"event": "fault", "reason": reason, "message": " ".join(str(error).split())})
        return
    send({"event": "ready", "engine": renderer.engine.describe()})
    try:
        while (request := requests.get()) is not None:
            asset = Asset.from_row(request["asset"])
            end = renderer.render(asset, Path(request["path"]), Path(request["target"]), send)
            send({"event": "end", "uid": asset.uid, **end})
    finally:
        renderer.engine.close()


def _redirect_stdio() -> tuple["queue.SimpleQueue[dict[str, Any] | None]", Send]:
    """Return the requests and the function that sends messages; stdin becomes empty, stdout the log."""
    incoming, outgoing = os.dup(0), os.dup(1)
    with Path(os.devnull).open() as empty:
        os.dup2(empty.fileno(), 0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        with os.fdopen(incoming) as lines:
            for line in lines:
                requests.put(json.loads(line))
        requests.put(None)
        time.sleep(_GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)  # still at work: the parent has died, and nothing else would end this

    def send(message: dict[str, Any]) -> None:
        os.write(outgoing, json.dumps(message).encode() + b"\n")

    threading.Thread(target=read, daemon=True).start()
    return requests, send


if __name__ == "__main__":
    main()
