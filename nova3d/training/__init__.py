"""Training: the loop, its checkpoints and health, the moving averages, validation."""

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports transformers or diffusers
