"""Nova3DPipeline: one picture of an object to 16 consistent views and 16 normal maps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nova3d.utils.compat import ensure_torchvision, verify_checksums

ensure_torchvision()  # before anything imports diffusers

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CLIPVisionModelWithProjection  # noqa: E402

from nova3d import images  # noqa: E402
from nova3d.cameras import Cameras, preset  # noqa: E402
from nova3d.diffusion import SOLVERS, initial_noise, karras_sigmas, sample, view_scales  # noqa: E402
from nova3d.diffusion.guidance import Guidance  # noqa: E402
from nova3d.errors import InputError  # noqa: E402
from nova3d.models.autoencoder import VideoAutoencoder, decode  # noqa: E402
from nova3d.models.conditioning import Conditioning, condition  # noqa: E402
from nova3d.models.denoiser import Denoiser  # noqa: E402
from nova3d.models.unet import NovaUNet  # noqa: E402
from nova3d.pipeline.memory import Memory, fit  # noqa: E402
from nova3d.pipeline.outputs import (  # noqa: E402
    Nova3DOutput,
    Output,
    Picture,
    as_output,
    check_output,
    dtype_named,
    frame_picture,
    outlines,
    picture_seeds,
    to_views,
)
from nova3d.tasks import TASKS  # noqa: E402

if TYPE_CHECKING:
    from nova3d.models.svd import LoadReport

# Added to a picture's seed: the sampler's own seed would repeat its first numbers in the pixels. torch's CPU generator
# keeps the low 32 bits of a seed, so the offset must lie in those.
PIXEL_NOISE_SEED = 0x9E37_79B9


class Nova3DPipeline(DiffusionPipeline):
    """The paper's generator: NovaUNet, SVD's autoencoder and a CLIP image encoder.

    size: pixels of the square views. camera_preset: the rig of `nova3d.cameras.preset` the model was trained on.
    sigma_min, sigma_max, rho: the Karras noise levels. steps, solver, guidance_low, guidance_high: what
    `__call__` uses where it is not told. The defaults are SVD's.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"

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
        self.memory = Memory()

    @property
    def cameras(self) -> Cameras:
        """The rig every output is seen from; view 0 is the input view."""
        return preset(self.config.camera_preset, self.config.size)

    def set_memory(
        self, batch: int = 0, sequential_guidance: bool = False, decode_views: int = 0, decode_rows: int = 0
    ) -> None:
        """Cut the work to fit into memory; see nova3d.pipeline.memory.Memory. 0 and False, the defaults, cut nothing.

        What does not fit all the same is cut further when it happens, and stays so until the next `set_memory`. For
        weights rather than activations, use diffusers' `enable_model_cpu_offload`. Raises InputError below 0.
        """
        self.memory = Memory(batch, sequential_guidance, decode_views, decode_rows)

    def compile_unet(self, mode: str = "default", backend: str | Callable[..., Any] = "inductor") -> None:
        """torch.compile of the UNet, in place: parameters keep their names. The first call, and the first of every
        other shape of batch, pays for the compilation."""
        self.unet.compile(mode=mode, backend=backend, dynamic=False)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        steps: int | None = None,
        guidance: tuple[float, float] | None = None,
        guidance_kind: Guidance = "triangle",
        seed: int | Sequence[int] = 0,
        solver: str | None = None,
        noise_aug: float = 0.02,
        keep_input: bool = False,
        framed: bool = False,
        output: Output = "views",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Nova3DOutput:
        """Generate the views of one picture, or of each of a list.

        image: RGBA, as PIL or float [h,w,4] in [0,1]; the object is cut out, centred and scaled here.
        guidance: (low, high) scale, by `guidance_kind` over azimuth; (1, 1) turns guidance off at half the cost.
        seed: one per picture, or one for all: picture i of a batch then uses seed + i. Either way a batch gives what
        single calls give. solver: "euler" or "heun". noise_aug: deviation of the noise on the condition picture,
        pixels in [-1,1]. keep_input: view 0's colours and mask are the framed input picture instead of the generated
        ones. framed: the picture is already what view 0's camera sees (square, the object's own scale), so it is only
        resized. output: the form of the result, see Nova3DOutput. progress: called as (steps done, steps, "sampling").
        Raises InputError for a picture without an object, arguments that do not fit, and work that cannot be cut to
        fit into the device's memory.
        """
        check_output(output)
        single = isinstance(image, Tensor | Image.Image)
        batch: Sequence[Picture] = [image] if isinstance(image, Tensor | Image.Image) else list(image)
        if not batch:
            raise InputError("the list of pictures is empty")
        seeds = picture_seeds(seed, len(batch))
        config = self.config
        if (solver := solver or config.solver) not in SOLVERS:
            raise InputError(f"solver '{solver}' is not one of {', '.join(SOLVERS)}")
        low, high = guidance or (config.guidance_low, config.guidance_high)
        try:
            scales = view_scales(guidance_kind, low, high, self.cameras.azimuth_elevation()[:, 0])
            sigmas = karras_sigmas(
                config.steps if steps is None else steps, config.sigma_min, config.sigma_max, config.rho
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        pictures = torch.stack([frame_picture(p, i, config.size, framed) for i, p in enumerate(batch)])
        cond = self.encode_picture(pictures, noise_aug, seeds)
        shape = (len(TASKS), len(self.cameras), *cond.latent.shape[1:])
        noise = [initial_noise(shape, config.sigma_max, s, self._execution_device) for s in seeds]
        report = (lambda done, total, _: progress(done, total, "sampling")) if progress else None
        x = sample(self.denoiser(cond, scales), torch.stack(noise), sigmas, solver, report)
        if output == "latent":
            result = Nova3DOutput(latents=x[0].cpu() if single else list(x.cpu()))
        else:
            decoded = self.decode_latents(x)
            kept = pictures if keep_input else [None] * len(batch)
            views = [to_views(d, self.cameras, k) for d, k in zip(decoded, kept, strict=True)]
            result = as_output(views, output, single)
            agreement = [outlines(d) for d in decoded]
            result.task_iou = agreement[0] if single else agreement
        self.maybe_free_model_hooks()
        return result

    def encode_picture(self, pictures: Tensor, noise_aug: float, seed: int | Sequence[int]) -> Conditioning:
        """Conditioning on framed pictures [b,size,size,4]; the pixel noise of picture i is a function of its seed."""
        rgb = (images.composite(pictures) * 2 - 1).permute(0, 3, 1, 2)
        rngs = [torch.Generator().manual_seed(PIXEL_NOISE_SEED + s) for s in picture_seeds(seed, len(rgb))]
        noise = torch.stack([torch.randn(rgb.shape[1:], generator=rng) for rng in rngs])
        strength = torch.full((len(rgb),), noise_aug)
        given = [part.to(self._execution_device) for part in (rgb, strength, noise)]

        def run(memory: Memory) -> Conditioning:
            parts = zip(*(part.split(memory.batch or len(rgb)) for part in given), strict=True)
            return Conditioning.cat([condition(self.image_encoder, self.vae, *part) for part in parts])

        cond, self.memory = fit("encoding", self.memory, run, lambda memory: memory.less_for_encoding(len(rgb)))
        self._offload(self.vae)  # its place in the offload order is at the end, where it is needed again
        return cond

    def denoiser(self, cond: Conditioning, scales: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """D(x, sigma) on x [b,t,v,4,h,w] and scalar sigma, with guidance scales [v], cut as the memory settings say."""
        device = cond.latent.device
        denoise = Denoiser(self.unet, cond, self.cameras.azimuth_elevation().to(device), scales.to(device))

        def fitted(x: Tensor, sigma: Tensor) -> Tensor:
            result, self.memory = fit(
                "denoising",
                self.memory,
                lambda memory: denoise(x, sigma, memory.batch, memory.sequential_guidance),
                lambda memory: memory.less_for_denoising(len(x), denoise.guided),
            )
            return result

        return fitted

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [b,t,v,4,h,w] to pictures [b,t,v,3,H,W] in [-1,1], float32 on the CPU, cut as the memory settings
        say."""
        decoded, self.memory = fit(
            "decoding",
            self.memory,
            lambda memory: decode(self.vae, latents, memory.decode_views, memory.decode_rows).float().cpu(),
            lambda memory: memory.less_for_decoding(latents.shape[2], self.config.size),
        )
        return decoded

    def _offload(self, module: nn.Module) -> None:
        """Off the accelerator with a module that is done, where `enable_model_cpu_offload` put hooks."""
        for hook in getattr(self, "_all_hooks", []):
            if getattr(hook, "model", None) is module:
                hook.offload()

    @classmethod
    def from_svd(
        cls,
        path_or_hub_id: str | Path,
        variant: str = "",
        dtype: str | torch.dtype = torch.float32,
        **unet_config: Any,
    ) -> "tuple[Nova3DPipeline, LoadReport]":
        """An untrained pipeline on SVD's weights and settings, and the account of every key.

        path_or_hub_id: a folder or hub id of an SVD pipeline, variant "" or "fp16". unet_config: NovaUNet's arguments
        beyond SVD's. At step 0 each task's video is what SVD makes of the picture. Raises InputError where the weights
        do not fit.
        """
        from nova3d.models.svd import load_svd_parts

        unet, vae, image_encoder, report = load_svd_parts(path_or_hub_id, variant, dtype_named(dtype), **unet_config)
        return cls(unet, vae, image_encoder), report

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", dtype: str | torch.dtype = torch.float32, variant: str = ""
    ) -> "Nova3DPipeline":
        """`from_pretrained` of a local folder, with one-line errors instead of a library's traceback."""
        path = Path(folder)
        wanted = dtype_named(dtype)
        if not (path / "model_index.json").is_file():
            raise InputError(f"'{folder}' is not a model folder: it has no model_index.json")
        if (path / "SHA256SUMS").is_file() and (faults := verify_checksums(path)):
            raise InputError(f"model '{folder}' is damaged: {faults[0]}")
        try:
            pipeline: Nova3DPipeline = cls.from_pretrained(
                path, dtype=wanted, variant=variant or None, local_files_only=True
            )
        except Exception as error:  # safetensors, json and diffusers each raise their own
            raise InputError(
                f"model '{folder}' cannot be loaded, a file is truncated or missing: "
                f"{str(error).splitlines()[0][:300] if str(error) else type(error).__name__}"
            ) from error
        for name in ("unet", "vae", "image_encoder"):
            if not all(bool(torch.isfinite(p).all()) for p in getattr(pipeline, name).parameters()):
                raise InputError(f"model '{folder}' holds NaN or infinite weights in its {name}")
        return pipeline.to(device)
