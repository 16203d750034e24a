"""UV atlases: our own projections, or xatlas in a process of its own that is ended when it takes too long."""

import io
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh

from nova3d.errors import InputError
from nova3d.fusion.charts import project

log = logging.getLogger(__name__)

ATLASES = ("projected", "xatlas")
_MARGIN = 4  # texels around every chart at 1024: two mip levels


@dataclass(frozen=True)
class Atlas:
    """uv [n,2] in [0,1], origin lower left; faces [f,3]; source [n] the vertex of the mesh each of them came from.

    kind: "projected" or "xatlas", whichever made it; charts: how many pieces it has.
    """

    uv: np.ndarray
    faces: np.ndarray
    source: np.ndarray
    kind: str
    charts: int


def unwrap(mesh: trimesh.Trimesh, size: int = 1024, kind: str = "projected", seconds: float = 60.0) -> Atlas:
    """An atlas of `mesh` for a texture of size x size; vertices on seams are doubled.

    kind "xatlas": fewer, less stretched charts, in several times the time, which grows faster than the number of faces
    and has no bound: after `seconds`, or where it fails, the projections take over and the log says so. Raises
    InputError for another kind.
    """
    if kind not in ATLASES:
        raise InputError(f"texture.atlas '{kind}' is none of {', '.join(ATLASES)}")
    margin = max(1, round(_MARGIN * size / 1024))
    if kind == "xatlas":
        try:
            return _by_xatlas(mesh, size, margin, seconds)
        except subprocess.TimeoutExpired:
            log.warning("xatlas did not end within %g s: atlas by projections", seconds)
        except (OSError, subprocess.CalledProcessError) as error:
            log.warning("xatlas failed (%s): atlas by projections", error)
    uv, chart = project(mesh, size, margin)
    # One vertex per corner of the mesh and chart.
    rows = np.stack([np.asarray(mesh.faces).reshape(-1), np.repeat(chart, 3)], axis=1)
    rows, first, index = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return Atlas(uv.reshape(-1, 2)[first], index.reshape(-1, 3), rows[:, 0], "projected", int(chart.max()) + 1)


def _by_xatlas(mesh: trimesh.Trimesh, size: int, margin: int, seconds: float) -> Atlas:
    if getattr(sys, "frozen", False):
        raise OSError("a frozen application has no interpreter to run it with")
    given = io.BytesIO()
    np.savez(
        given,
        vertices=np.asarray(mesh.vertices, dtype=np.float32),
        faces=np.asarray(mesh.faces, dtype=np.uint32),
        size=size,
        margin=margin,
        seconds=seconds,
    )
    # A fresh interpreter: a fork of a process with torch's threads may hang, and `spawn` would run the user's script
    # again. -P keeps this folder's modules from hiding others of the same name.
    program = Path(__file__).with_name("xatlas_program.py")
    done = subprocess.run(
        [sys.executable, "-P", str(program)], input=given.getvalue(), capture_output=True, timeout=seconds, check=True
    )
    made = np.load(io.BytesIO(done.stdout))
    faces = made["faces"].astype(np.int64)
    pieces = (
        len(made["uv"])
        and trimesh.graph.connected_component_labels(
            np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]), node_count=len(made["uv"])
        ).max()
    )
    return Atlas(made["uv"].astype(np.float64), faces, made["source"].astype(np.int64), "xatlas", int(pieces) + 1)
