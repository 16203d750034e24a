"""What the UNet is told about the input picture: its CLIP embedding and its VAE latent (SVD's contract).

CLIP sees the clean picture; the VAE encodes the picture with Gaussian noise added in pixel space, and the mode of
its posterior is used WITHOUT the scaling factor. Dropped conditions are zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from nova3d.models.autoencoder import encode_mode

# OpenAI CLIP's channel statistics, part of SVD's preprocessing.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Conditioning:
    """image_embeds [b,1,d]; latent [b,4,h,w], unscaled; noise_aug [b]."""

    image_embeds: Tensor
    latent: Tensor
    noise_aug: Tensor

    def dropped(self, embeds: Tensor, latents: Tensor) -> "Conditioning":
        """Zeros where the boolean [b] masks say so (classifier-free guidance; one draw per object)."""
        return Conditioning(
            self.image_embeds * (~embeds)[:, None, None],
            self.latent * (~latents)[:, None, None, None],
            self.noise_aug,
        )

    def unconditional(self) -> "Conditioning":
        everything = torch.ones(len(self.noise_aug), dtype=torch.bool, device=self.noise_aug.device)
        return self.dropped(everything, everything)

    def __len__(self) -> int:
        return len(self.noise_aug)

    def __getitem__(self, rows: slice) -> "Conditioning":
        """The conditions of some of the objects."""
        return Conditioning(self.image_embeds[rows], self.latent[rows], self.noise_aug[rows])

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """Conditions of several batches as one batch."""
        return Conditioning(
            torch.cat([part.image_embeds for part in parts]),
            torch.cat([part.latent for part in parts]),
            torch.cat([part.noise_aug for part in parts]),
        )


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """Pictures [b,3,h,w] in [-1,1] as CLIP wants them: blurred against aliasing, bicubic to size x size with aligned
    corners, CLIP's mean and deviation. The steps of diffusers' SVD pipeline.
    """
    resized = resize_with_antialiasing(images, size)
    mean, std = (images.new_tensor(c).reshape(1, 3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
    return ((resized + 1) / 2 - mean) / std


def resize_with_antialiasing(images: Tensor, size: int) -> Tensor:
    """[b,c,h,w] to [b,c,size,size]: Gaussian of sigma max((f - 1) / 2, 0.001) for the factor f of each axis, kernel of
    about 4 sigma (odd, at least 3), reflecting borders; then bicubic, aligned corners."""
    blurred = images
    for axis, length in ((-2, images.shape[-2]), (-1, images.shape[-1])):
        factor = length / size
        sigma = max((factor - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3))
        taps += 1 - taps % 2
        offsets = torch.arange(taps, device=images.device, dtype=images.dtype) - taps // 2
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, taps)
        kernel = kernel[..., None] if axis == -2 else kernel[..., None, :]
        half = taps // 2
        padding = (0, 0, half, half) if axis == -2 else (half, half, 0, 0)
        blurred = F.conv2d(F.pad(blurred, padding, mode="reflect"), kernel, groups=images.shape[1])
    return F.interpolate(blurred, size=(size, size), mode="bicubic", align_corners=True)


def condition(
    image_encoder: CLIPVisionModelWithProjection,
    vae: AutoencoderKLTemporalDecoder,
    images: Tensor,
    noise_aug: Tensor,
    noise: Tensor,
) -> Conditioning:
    """Condition on pictures [b,3,h,w] in [-1,1].

    noise_aug [b]: deviation of the pixel noise; noise [b,3,h,w]: standard normal, the same for both tasks. Preparing
    the pictures is done in their dtype (float32), whatever the networks' dtypes are; the latent comes back in it.
    Gradients reach the image encoder, never the VAE.
    """
    pixels = clip_pixels(images, int(image_encoder.config.image_size))
    embeds = image_encoder(pixels.to(image_encoder.dtype)).image_embeds[:, None]
    latent = encode_mode(vae, images + noise_aug[:, None, None, None] * noise)
    return Conditioning(embeds, latent, noise_aug)


def unet_input(noisy: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """[b,t,v,8,h,w]: c_in * noisy latents, then the condition's latent repeated over tasks and views.

    noisy [b,t,v,4,h,w]; sigma [b].
    """
    scaled = noisy / (sigma**2 + 1).sqrt().reshape(-1, 1, 1, 1, 1, 1)
    repeated = conditioning.latent[:, None, None].expand(*noisy.shape[:3], -1, -1, -1)
    return torch.cat([scaled, repeated.to(scaled.dtype)], dim=3)
