"""The networks: NovaUNet, its alignment attention, conditioning and autoencoder helpers."""

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports diffusers

from nova3d.models.alignment import AlignmentAttention  # noqa: E402
from nova3d.models.unet import NovaUNet  # noqa: E402

__all__ = ["AlignmentAttention", "NovaUNet"]
