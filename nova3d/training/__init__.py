"""Training: from shards or cached latents to a saved pipeline. `trainer.py` is the loop, `setup.py` builds a run."""

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports transformers or diffusers
