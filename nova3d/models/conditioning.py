"""Conditioning: what the UNet is told about the input picture.

The condition is SVD's: the picture's CLIP embedding and VAE latents. CLIP sees the clean picture. The mode of the VAE's
posterior is used WITHOUT the scaling factor. Dropped conditions are zeros. Two kinds of latents are known:

- `picture`, SVD's and the paper's: the picture with Gaussian noise added in pixel space, the same for every view and
  task.
- `inflated`: every view and task has its own, the picture's inflated outline (nova3d.inflate) as that view sees it.
  View 0's RGB is the picture itself. No pixel noise is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.inflate import inflated_views
from nova3d.models.autoencoder import encode_mode

# OpenAI CLIP's channel statistics, part of SVD's preprocessing.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Conditioning:
    """The condition of b objects.

    Attributes:
        image_embeds: [b,1,d], CLIP's embedding of the picture.
        latent: unscaled; [b,4,h,w], shared by all views and tasks, or [b,t,v,4,h,w].
        noise_aug: [b], deviation of the noise that was added to the picture's pixels.
        guide: [b,t,v,4,H,W] guide pictures, a guided decoder's second input, or None.
    """

    image_embeds: Tensor
    latent: Tensor
    noise_aug: Tensor
    guide: Tensor | None = None

    def dropped(self, embeds: Tensor, latents: Tensor) -> "Conditioning":
        """Zeros where the boolean [b] masks say so (classifier-free guidance; one draw per object)."""
        return Conditioning(
            self.image_embeds * (~embeds)[:, None, None],
            self.latent * (~latents).reshape(-1, *[1] * (self.latent.dim() - 1)),
            self.noise_aug,
            self.guide,
        )

    def unconditional(self) -> "Conditioning":
        everything = torch.ones(len(self.noise_aug), dtype=torch.bool, device=self.noise_aug.device)
        return self.dropped(everything, everything)

    def __len__(self) -> int:
        return len(self.noise_aug)

    def __getitem__(self, rows: slice) -> "Conditioning":
        """The conditions of some of the objects."""
        guide = None if self.guide is None else self.guide[rows]
        return Conditioning(self.image_embeds[rows], self.latent[rows], self.noise_aug[rows], guide)

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """Conditions of several batches as one batch."""
        guides = [part.guide for part in parts if part.guide is not None]
        return Conditioning(
            torch.cat([part.image_embeds for part in parts]),
            torch.cat([part.latent for part in parts]),
            torch.cat([part.noise_aug for part in parts]),
            torch.cat(guides) if len(guides) == len(parts) else None,
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
    image_encoder: CLIPVisionModelWithProjection | None,
    vae: AutoencoderKLTemporalDecoder,
    images: Tensor,
    noise_aug: Tensor,
    noise: Tensor,
    width: int = 0,
) -> Conditioning:
    """The condition `picture`.

    Preparing the pictures is done in their dtype (float32), whatever the networks' dtypes are; the latent comes back in
    it. Gradients reach the image encoder, never the VAE.

    Args:
        image_encoder: None gives embeddings of zeros.
        vae: encodes the pictures with their noise.
        images: [b,3,h,w] in [-1,1].
        noise_aug: [b], deviation of the pixel noise.
        noise: [b,3,h,w], standard normal, the same for both tasks.
        width: d of the embeddings where there is no image encoder.

    Returns:
        The conditioning, with latents of [b,4,h,w].
    """
    embeds = embed_picture(image_encoder, images, width)
    latent = encode_mode(vae, images + noise_aug[:, None, None, None] * noise)
    return Conditioning(embeds, latent, noise_aug)


def condition_inflated(
    image_encoder: CLIPVisionModelWithProjection | None,
    vae: AutoencoderKLTemporalDecoder,
    guide: Tensor,
    width: int = 0,
    chunk: int | None = None,
) -> Conditioning:
    """The condition `inflated`.

    Args:
        image_encoder: None gives embeddings of zeros.
        vae: encodes the frames, one task at a time.
        guide: [b,t,v,4,H,W] guide pictures of `inflated_guide`. Their first three channels are encoded; a guided
            decoder sees all four.
        width: d of the embeddings where there is no image encoder.
        chunk: frames that are encoded together, None for all v of a task.

    Returns:
        The conditioning, with latents of [b,t,v,4,h,w]. The UNet is told that no pixel noise was added.
    """
    frames = guide[:, :, :, :3]
    latents = torch.stack([encode_mode(vae, video, chunk) for video in frames.flatten(0, 1)])
    embeds = embed_picture(image_encoder, frames[:, 0, 0], width)
    return Conditioning(embeds, latents.unflatten(0, frames.shape[:2]), frames.new_zeros(len(frames)), guide)


def embed_picture(image_encoder: CLIPVisionModelWithProjection | None, images: Tensor, width: int = 0) -> Tensor:
    """CLIP embeddings [b,1,d] of pictures [b,3,h,w] in [-1,1]; zeros of d = `width` without an image encoder."""
    if image_encoder is None:
        return images.new_zeros(len(images), 1, width)
    pixels = clip_pixels(images, int(image_encoder.config.image_size))
    return image_encoder(pixels.to(image_encoder.dtype)).image_embeds[:, None]


def unet_input(noisy: Tensor, c_in: Tensor, conditioning: Conditioning) -> Tensor:
    """The UNet's input: c_in * noisy latents and the condition's latents.

    Args:
        noisy: [b,t,v,4,h,w], x0 plus noise.
        c_in: [b,1,1,1,1,1] or whatever broadcasts, EDM's scale of the noisy latents (`nova3d.diffusion.precondition`).
        conditioning: of the same b objects; latents of [b,4,h,w] are repeated over tasks and views.

    Returns:
        [b,t,v,8,h,w] in the dtype of `noisy`.
    """
    scaled = noisy * c_in
    latent = conditioning.latent
    if latent.dim() == 4:
        latent = latent[:, None, None].expand(*noisy.shape[:3], -1, -1, -1)
    return torch.cat([scaled, latent.to(scaled.dtype)], dim=3)


def inflated_guide(rgba: Tensor, cameras: Cameras, only: Sequence[int] | None = None) -> Tensor:
    """The guide pictures of one picture, for the condition `inflated` and for a guided decoder.

    Args:
        rgba: [H,W,4] float in [0,1], straight alpha, as view 0's camera sees the object.
        cameras: v level orthographic cameras; see nova3d.inflate.inflated_views.
        only: indices of the views wanted; None for all.

    Returns:
        [t,v,4,H,W] float32: RGB views on white in [-1,1] and normal maps with zero background, of the inflated outline,
        each with its mask in [0,1] as the fourth channel. The first RGB frame is the picture.

    Raises:
        InputError: for other cameras, and for a picture of another size.
    """
    try:
        views = inflated_views(rgba, cameras, only=only)
    except ValueError as error:
        raise InputError(
            f"{error}: other cameras need the condition 'picture' and an autoencoder with guide_channels 0"
        ) from error
    mask = views.mask[..., None]
    layers = [torch.cat([views.rgb * 2 - 1, mask], dim=-1), torch.cat([views.normals, mask], dim=-1)]
    return torch.stack(layers).permute(0, 1, 4, 2, 3).contiguous()
