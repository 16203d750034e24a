"""The Blender worker's protocol: JSON lines in on stdin, JSON lines out on what was stdout.

Whatever Blender itself prints goes to stderr.

    {"render": {materials, cameras}}; vertices.npy, faces.npy and the other arrays that `objects.build` names
                                -> {"beat": views done} ... {"rendered": {"views": v}}; rgba.npy [v,h,w,4] float32
                                   premultiplied linear light, normals.npy [v,h,w,3] float32 not renormalised,
                                   depth.npy [v,h,w] float32, 0 where nothing was hit
    anything that goes wrong    -> {"fault": {"reason": code, "message": one line}}

Arrays lie in the folder that the settings name, until the next request. Everything on the pipe is in glTF's frame (+Y
up, +Z front); Blender's frame (Z up) exists only in here. `--check` loads bpy, prints its version, and ends.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

APT = "libx11-6 libxrender1 libxfixes3 libxi6 libxkbcommon0 libsm6 libxext6 libgl1"
try:
    import bpy
    import camera
    import objects
    import render_setup
    from common import Fault, last_line, reason_of
except ImportError as error:
    sys.exit(f"bpy cannot be loaded ({error}); on Debian and Ubuntu: apt-get install {APT}; else run `make blender`")


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        kinds = ", ".join(["cpu", *sorted(k.lower() for k in render_setup.gpu_kinds())])
        sys.stdout.write(f"Blender {bpy.app.version_string} as a module; engine.device can be: {kinds}\n")
        return
    settings = json.loads(sys.argv[1])
    requests, replies = private_pipes()
    try:
        render_setup.reset(settings)
        reply(replies, ready={"blender": bpy.app.version_string})
    except Fault as fault:
        reply(replies, fault={"reason": fault.reason, "message": str(fault)})
        return
    for line in requests:
        try:
            serve(json.loads(line), settings, replies)
        except Fault as fault:
            reply(replies, fault={"reason": fault.reason, "message": str(fault)})
        except Exception as error:  # the client restarts this program; the traceback is for its log
            traceback.print_exc()
            reply(replies, fault={"reason": reason_of(error), "message": last_line(error)})


def serve(request: dict[str, Any], settings: dict[str, Any], replies: TextIO) -> None:
    folder = Path(settings["folder"])
    wanted = request["render"]
    render_setup.reset(settings)
    objects.build(folder, wanted["materials"], settings["normals"])
    render_setup.set_light(settings["light"])
    views = camera.render(wanted["cameras"], folder, lambda done: reply(replies, beat=done))
    reply(replies, rendered={"views": views})


def private_pipes() -> tuple[TextIO, TextIO]:
    """Keep stdin and stdout for the protocol; descriptors 0 and 1 become /dev/null and stderr for all other code."""
    requests, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, replies


def reply(pipe: TextIO, **message: Any) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


if __name__ == "__main__":
    main()
