"""A program that speaks the worker's protocol and imports nothing of nova3d, so that it starts in no time.

It "renders" the JSON files of `fake_engine` by copying a template (NOVA3D_FAKE_TEMPLATE: the pictures of one object and
its facts), and goes wrong in ways that no engine should: hang, crash, grow, babble, hide.
"""

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

REASONS = {"refuse": "empty_scene", "blank": "blank_render", "oom": "out_of_memory", "lost": "device"}
HOARD: list[bytes] = []
GROW = "import time; hoard = []\nfor _ in range(60): hoard.append(b'x' * 20_000_000); time.sleep(0.02)"


def main() -> None:
    arguments = argparse.ArgumentParser()
    for name in ("pipe", "writer", "parent"):
        arguments.add_argument(f"--{name}")
    options = arguments.parse_args()
    pipe, writer = Connection(int(options.pipe)), options.writer
    os.set_inheritable(pipe.fileno(), False)
    os.write(1, b"a library's greeting\n")  # belongs to the log
    start = os.environ.get("NOVA3D_FAKE_START", "")
    if start == "die":
        sys.stderr.write("no such library\n")
        sys.exit(3)
    if start == "hang":
        time.sleep(3600)
    default = "cuda" if os.environ["CUDA_VISIBLE_DEVICES"] else "cpu"
    pipe.recv_bytes()  # the config
    pipe.send({"event": "ready", "engine": {"device": os.environ.get("NOVA3D_FAKE_DEVICE", default)}})
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        uid, path = request["asset"]["uid"], request["path"]
        mesh = json.loads(path.read_text())
        fault = mesh.get("fault", "") if due(uid, mesh) else ""
        sick = os.environ.get("NOVA3D_FAKE_SICK", "")
        if sick and writer.endswith(sick):
            fault = "blank"
        reason = perform(fault, mesh, pipe)
        if not reason:
            write(request["target"], uid, path, writer)
        pipe.send({"event": "finished", "reason": reason, "message": fault})


def perform(fault: str, mesh: dict[str, object], pipe: Connection) -> str:
    for view in range(4):
        pipe.send({"event": "heartbeat", "views": view + 1})
    if fault == "swell":
        HOARD.append(b"x" * 200_000_000)
    if fault == "sleep":
        time.sleep(float(str(mesh["seconds"])))
    if fault == "hang":
        subprocess.Popen(["tail", "-f", "/dev/null", os.environ["NOVA3D_FAKE_STATE"]])  # a grandchild, as Blender is
        time.sleep(3600)
    if fault == "crash":
        sys.stderr.write("Segmentation fault (core dumped)\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "grow":
        child = subprocess.Popen([sys.executable, "-c", GROW])  # a grandchild of the scheduler, as Blender is
        while child.poll() is None:
            pipe.send({"event": "heartbeat", "views": 4})
            time.sleep(0.02)
    return REASONS.get(fault, "")


def write(target: Path, uid: str, path: Path, writer: str) -> None:
    template = Path(os.environ["NOVA3D_FAKE_TEMPLATE"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = json.loads((template / "json").read_text())
    facts |= {"uid": uid, "sha256": digest, "geometry": digest[:32], "views": [digest[:16]] * len(facts["views"])}
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(f".{writer}.part")
    with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in sorted(template.iterdir()):
            content = json.dumps(facts, sort_keys=True).encode() if member.name == "json" else member.read_bytes()
            header = tarfile.TarInfo(f"{uid}.{member.name}")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    aside.replace(target)


def due(uid: str, mesh: dict[str, object]) -> bool:
    folder = Path(os.environ["NOVA3D_FAKE_STATE"])
    tries = len(list(folder.glob(f"{uid}.*")))
    (folder / f"{uid}.{tries}.{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return not mesh.get("times") or tries < int(str(mesh["times"]))


if __name__ == "__main__":
    main()
