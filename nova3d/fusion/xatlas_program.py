"""The program of the process in which xatlas runs: an .npz of a mesh on stdin, an .npz of its atlas on stdout.

It imports nothing of the package, so that it starts in a tenth of a second.
"""

import faulthandler
import io
import sys

import numpy as np
import xatlas


def main() -> None:
    mesh = np.load(io.BytesIO(sys.stdin.buffer.read()))
    # The parent ends this process in time, unless it was itself killed: no orphan may run for hours. A thread without
    # Python's lock does it, as xatlas holds that lock.
    faulthandler.dump_traceback_later(float(mesh["seconds"]) + 5, exit=True)
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh["vertices"], mesh["faces"])
    options = xatlas.PackOptions()
    options.resolution, options.padding = int(mesh["size"]), int(mesh["margin"])
    atlas.generate(xatlas.ChartOptions(), options)
    source, faces, uv = atlas[0]
    written = io.BytesIO()
    np.savez(written, source=source, faces=faces, uv=uv)
    sys.stdout.buffer.write(written.getvalue())


if __name__ == "__main__":
    main()
