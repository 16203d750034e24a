"""Nova3DPipeline: one picture of an object to 16 consistent views and 16 normal maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nova3d.compat import ensure_torchvision, verify_checksums

ensure_torchvision()  # before anything imports diffusers

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import CLIPVisionModelWithProjection  # noqa: E402

from nova3d import images, normals  # noqa: E402
from nova3d.cameras import Cameras, preset  # noqa: E402
from nova3d.diffusion import denoised, guide, initial_noise, karras_sigmas, sample, view_scales  # noqa: E402
from nova3d.diffusion.guidance import Guidance  # noqa: E402
from nova3d.errors import InputError  # noqa: E402
from nova3d.models.autoencoder import VideoAutoencoder, decode  # noqa: E402
from nova3d.models.conditioning import Conditioning, condition, unet_input  # noqa: E402
from nova3d.models.unet import NovaUNet  # noqa: E402
from nova3d.tasks import TASKS, Task  # noqa: E402
from nova3d.views import ViewSet  # noqa: E402

Picture = Tensor | Image.Image
# Added to a picture's seed: the sampler's own seed would repeat its first numbers in the pixels. torch's CPU generator
# keeps the low 32 bits of a seed, so the offset must lie in those.
PIXEL_NOISE_SEED = 0x9E37_79B9


@dataclass
class Nova3DOutput(BaseOutput):
    """views: a ViewSet for one picture, a list of them for a list."""

    views: ViewSet | list[ViewSet]


class Nova3DPipeline(DiffusionPipeline):
    """The paper's generator: NovaUNet, SVD's autoencoder and a CLIP image encoder.

    size: pixels of the square views. camera_preset: the rig of `nova3d.cameras.preset` the model was trained on.
    sigma_min, sigma_max, rho: the Karras noise levels. steps, solver, guidance_low, guidance_high: what
    `__call__` uses where it is not told.
    """

    unet: NovaUNet
    vae: VideoAutoencoder
    image_encoder: CLIPVisionModelWithProjection

    def __init__(
        self,
        unet: NovaUNet,
        vae: VideoAutoencoder,
        image_encoder: CLIPVisionModelWithProjection,
        size: int = 256,
        camera_preset: str = "ortho16",
        sigma_min: float = 0.002,
        sigma_max: float = 700.0,
        rho: float = 7.0,
        steps: int = 25,
        solver: str = "euler",
        guidance_low: float = 1.0,
        guidance_high: float = 2.5,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae, image_encoder=image_encoder)
        self.register_to_config(
            size=size,
            camera_preset=camera_preset,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            rho=rho,
            steps=steps,
            solver=solver,
            guidance_low=guidance_low,
            guidance_high=guidance_high,
        )

    @property
    def cameras(self) -> Cameras:
        """The rig every output is seen from; view 0 is the input view."""
        return preset(self.config.camera_preset, self.config.size)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        steps: int | None = None,
        guidance: tuple[float, float] | None = None,
        guidance_kind: Guidance = "triangle",
        seed: int = 0,
        solver: str | None = None,
        noise_aug: float = 0.02,
        keep_input: bool = False,
        framed: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Nova3DOutput:
        """Generate the views of one picture, or of each of a list.

        image: RGBA, as PIL or float [h,w,4] in [0,1]; the object is cut out, centred and scaled here.
        guidance: (low, high) scale, by `guidance_kind` over azimuth; (1, 1) turns guidance off at half the cost.
        seed: picture i of a batch uses seed + i, so a batch gives what single calls give. keep_input: view 0's
        colours and mask are the framed input picture instead of the generated ones. framed: the picture is
        already what view 0's camera sees (square, the object's own scale), so it is only resized. Raises InputError
        for a picture without an object.
        """
        batch = [image] if isinstance(image, Tensor | Image.Image) else list(image)
        pictures = torch.stack([self._frame(picture, i, framed) for i, picture in enumerate(batch)])
        cond = self.encode_picture(pictures, noise_aug, seed)
        low, high = guidance or (self.config.guidance_low, self.config.guidance_high)
        sigmas = karras_sigmas(
            self.config.steps if steps is None else steps, self.config.sigma_min, self.config.sigma_max, self.config.rho
        )
        v, latent = len(self.cameras), cond.latent.shape[1:]
        shape = (len(TASKS), v, *latent)
        noise = [initial_noise(shape, self.config.sigma_max, seed + i, self.device) for i in range(len(batch))]
        report = (lambda done, total, _: progress(done, total, "sampling")) if progress else None
        denoise = self.denoiser(cond, (low, high), guidance_kind)
        x = sample(denoise, torch.stack(noise), sigmas, solver or self.config.solver, report)
        decoded = decode(self.vae, x.to(self.vae.dtype)).float().cpu()
        views = [self._to_views(d, p if keep_input else None) for d, p in zip(decoded, pictures, strict=True)]
        return Nova3DOutput(views=views[0] if isinstance(image, Tensor | Image.Image) else views)

    def encode_picture(self, pictures: Tensor, noise_aug: float, seed: int) -> Conditioning:
        """Conditioning on framed pictures [b,size,size,4]; the pixel noise of picture i is a function of seed + i."""
        rgb = (images.composite(pictures) * 2 - 1).permute(0, 3, 1, 2)
        rngs = [torch.Generator().manual_seed(PIXEL_NOISE_SEED + seed + i) for i in range(len(rgb))]
        noise = [torch.randn(rgb.shape[1:], generator=rng) for rng in rngs]
        strength = torch.full((len(rgb),), noise_aug)
        given = [part.to(self.device, self.unet.dtype) for part in (rgb, strength, torch.stack(noise))]
        return condition(self.image_encoder, self.vae, *given)

    def denoiser(
        self, cond: Conditioning, scales: tuple[float, float], kind: Guidance
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """D(x, sigma) with guidance, on x [b,t,v,4,h,w] and scalar sigma. The unconditional half runs in one batch
        with the conditional one, and not at all where every scale is 1."""
        angles = self.cameras.azimuth_elevation().to(self.device)
        b = len(cond.noise_aug)
        per_view = view_scales(kind, *scales, angles[:, 0])
        guided = bool((per_view != 1).any())
        empty = cond.unconditional()
        pairs = [cond, empty] if guided else [cond]
        both = Conditioning(
            torch.cat([c.image_embeds for c in pairs]),
            torch.cat([c.latent for c in pairs]),
            torch.cat([c.noise_aug for c in pairs]),
        )
        cameras = angles.expand(len(both.noise_aug), -1, -1)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            levels = sigma.expand(len(both.noise_aug))
            noisy = unet_input(x.repeat(len(pairs), *[1] * (x.dim() - 1)), levels, both).to(self.unet.dtype)
            c_noise = (levels.log() / 4).to(self.unet.dtype)
            output = self.unet(noisy, c_noise, both.image_embeds, both.noise_aug, cameras, TASKS).float()
            if guided:
                output = guide(output[:b], output[b:], per_view)
            return denoised(output, x, sigma)

        return denoise

    def _frame(self, picture: Picture, index: int, framed: bool) -> Tensor:
        """[size,size,4] framed as the default camera frames a unit object."""
        if isinstance(picture, Image.Image):
            picture = torch.from_numpy(np.asarray(picture.convert("RGBA")).copy()).float() / 255
        if picture.dim() != 3 or picture.shape[-1] != 4:
            raise InputError(f"picture {index} must be RGBA [h,w,4], got shape {tuple(picture.shape)}")
        images.check_object(picture[..., 3], f"picture {index}")
        if not framed:
            return images.frame_object(picture, self.config.size)
        if picture.shape[0] != picture.shape[1]:
            raise InputError(f"picture {index} is said to be framed but is not square: {tuple(picture.shape[:2])}")
        return images.resize(picture, self.config.size)

    def _to_views(self, pictures: Tensor, framed: Tensor | None) -> ViewSet:
        """Decoded pictures [t,v,3,h,w] in [-1,1] to a ViewSet; the mask is the normal vectors' length."""
        rgb = (pictures[Task.RGB].permute(0, 2, 3, 1) + 1) / 2
        normal, mask = normals.decode((pictures[Task.NORMAL].permute(0, 2, 3, 1) + 1) / 2)
        mask = ((mask - 0.3) / 0.4).clamp(0, 1)  # decoded lengths are soft over more than the outline: sharpen
        if framed is not None:
            rgb[0], mask[0] = images.composite(framed), framed[..., 3]
        rgb = rgb * (mask > 0)[..., None] + (mask <= 0)[..., None].float()
        return ViewSet(rgb, normal * (mask > 0)[..., None], mask, self.cameras)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "Nova3DPipeline":
        """`from_pretrained` of a local folder, in float32, with one-line errors instead of a library's traceback."""
        path = Path(folder)
        if not (path / "model_index.json").is_file():
            raise InputError(f"'{folder}' is not a model folder: it has no model_index.json")
        if (path / "SHA256SUMS").is_file() and (faults := verify_checksums(path)):
            raise InputError(f"model '{folder}' is damaged: {faults[0]}")
        try:
            pipeline: Nova3DPipeline = cls.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        except Exception as error:  # safetensors, json and diffusers each raise their own
            raise InputError(
                f"model '{folder}' cannot be loaded, a file is truncated or missing: "
                f"{str(error).splitlines()[0][:300] if str(error) else type(error).__name__}"
            ) from error
        for name in ("unet", "vae", "image_encoder"):
            if not all(bool(torch.isfinite(p).all()) for p in getattr(pipeline, name).parameters()):
                raise InputError(f"model '{folder}' holds NaN or infinite weights in its {name}")
        return pipeline.to(device)
