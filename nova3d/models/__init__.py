"""The networks: NovaUNet, its alignment attention, conditioning and autoencoder helpers."""

from nova3d.models.alignment import AlignmentAttention
from nova3d.models.unet import NovaUNet

__all__ = ["AlignmentAttention", "NovaUNet"]
