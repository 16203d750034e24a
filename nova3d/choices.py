"""Options with a fixed set of names that configs share with the code below them; read without torch."""

from typing import Literal

AlignmentInit = Literal["copied", "random", "wonder3d"]
"""How the attention of the alignment units starts (nova3d.models.alignment)."""
CutoutMethod = Literal["auto", "alpha", "plain", "model", "none"]
"""How the object of a picture is cut out (nova3d.images.cutout)."""
Guidance = Literal["triangle", "linear", "constant"]
"""How the guidance scale runs over the views (nova3d.diffusion.guidance_scales)."""
Launcher = Literal["local", "slurm", "ray"]
"""What starts the processes of a render job (nova3d.data.jobs.launchers)."""
Light = Literal["studio", "flat"]
"""How rendered objects are lit (nova3d.rendering)."""
NetworkDtype = Literal["float32", "float16", "bfloat16"]
"""The dtype of a pipeline's networks."""
ObjaverseSubset = Literal["lvis", "all"]
"""Which objects of Objaverse 1.0 are taken (nova3d.data.sources)."""
RenderedNormals = Literal["geometry", "shading"]
"""Which normals are rendered: those of the mesh, or with its normal maps (nova3d.rendering)."""
Solver = Literal["euler", "heun"]
"""The solver of the sampling ODE (nova3d.diffusion.sample)."""
