"""Nova3DPipeline: one picture of an object to 16 consistent views and 16 normal maps."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports diffusers

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CLIPVisionModelWithProjection  # noqa: E402

from nova3d import images, normals  # noqa: E402
from nova3d.calibration import Calibration  # noqa: E402
from nova3d.cameras import Cameras, preset  # noqa: E402
from nova3d.diffusion import (  # noqa: E402
    SOLVERS,
    Guidance,
    initial_noise,
    karras_sigmas,
    precondition,
    solver_step,
    view_scales,
)
from nova3d.errors import InputError, first_line  # noqa: E402
from nova3d.inflate import inflated_views  # noqa: E402
from nova3d.metrics import task_iou  # noqa: E402
from nova3d.models.autoencoder import VideoAutoencoder, decode  # noqa: E402
from nova3d.models.conditioning import (  # noqa: E402
    Conditioning,
    condition,
    condition_inflated,
    inflated_guide,
)
from nova3d.models.denoiser import Denoiser  # noqa: E402
from nova3d.models.svd import LoadReport, load_svd_parts  # noqa: E402
from nova3d.models.unet import NovaUNet  # noqa: E402
from nova3d.tasks import CONDITIONS, TASKS, Task  # noqa: E402
from nova3d.utils import hub, provenance, resources  # noqa: E402
from nova3d.utils.files import read_json, write_json, write_text  # noqa: E402
from nova3d.views import ViewSet  # noqa: E402

log = logging.getLogger(__name__)
Result = TypeVar("Result")
OutputType = Literal["views", "pil", "np", "pt", "latent"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMPONENTS = ("unet", "vae", "image_encoder")
# What a model_index.json may name for each. diffusers imports what stands there.
_CLASSES: dict[str, list[list[str | None]]] = {
    "unet": [["nova3d.models.unet", "NovaUNet"]],
    "vae": [["nova3d.models.autoencoder", "VideoAutoencoder"]],
    "image_encoder": [["transformers", "CLIPVisionModelWithProjection"], [None, None]],
}
_MOST_PIXELS, _MOST_STEPS = 4096, 10_000  # of a view's side, of one sampling

SMALLEST_STRIP = 8  # rows; below that a strip is mostly the rows it carries for its neighbours

# Added to a picture's seed: the sampler's own seed would repeat its first numbers in the pixels. torch's CPU generator
# keeps the low 32 bits of a seed, so the offset must lie in those.
PIXEL_NOISE_SEED = 0x9E37_79B9

# Saved with a model, so that DiffusionPipeline finds the class by the name in model_index.json.
CUSTOM_PIPELINE = "pipeline"
CUSTOM_PIPELINE_CODE = "from nova3d.pipeline import Nova3DPipeline as Nova3DPipeline\n"


@dataclass
class Nova3DOutput(BaseOutput):
    """What Nova3DPipeline returns: one entry per picture. Fields that `output_type` does not ask for are None."""

    views: list[ViewSet] | None = None
    """For "views": b view sets of 16 views."""
    rgb: list[list[Image.Image]] | np.ndarray | Tensor | None = None
    """The views' colours on white. "pil": b lists of v pictures; "np": float32 [b,v,h,w,3] in [0,1]; "pt": float32
    [b,v,3,h,w] in [0,1]."""
    normals: list[list[Image.Image]] | np.ndarray | Tensor | None = None
    """The normal maps in the same forms: (n + 1) / 2 of unit vectors in the input view's frame, background mid-grey."""
    task_iou: Tensor | None = None
    """float32 [b,v] in [0,1], for all but "latent": how far colours and normals show one outline
    (`nova3d.metrics.task_iou`), measured before the normals cut out the colours."""
    latents: Tensor | None = None
    """For "latent": float32 [b,t,v,4,h,w], scaled as the UNet sees them, tasks in the order of `nova3d.tasks`."""


@dataclass(frozen=True)
class Memory:
    """Sizes of the pieces of work; they change memory and time, and the result by no more than rounding.

    batch: pictures that are encoded and denoised together, 0 for all. sequential_guidance: the two passes of guidance
    one after the other instead of as one batch. decode_views: views that the autoencoder decodes together, 0 for all.
    decode_rows: rows of them, 0 for whole pictures. The decoder's temporal layers still see all views of a video and
    its normalisations all of their pixels, see nova3d.models.streaming.
    """

    batch: int = 0
    sequential_guidance: bool = False
    decode_views: int = 0
    decode_rows: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "decode_views", "decode_rows"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 (all) or more, got {getattr(self, name)}")

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    def less_for_encoding(self, pictures: int) -> "Memory | None":
        """One picture at a time; None where it is so already."""
        return replace(self, batch=1) if min(self.batch or pictures, pictures) > 1 else None

    def less_for_denoising(self, pictures: int, guided: bool) -> "Memory | None":
        """Sequential guidance (where there is guidance), then one picture at a time; None where nothing is left."""
        if guided and not self.sequential_guidance:
            return replace(self, sequential_guidance=True)
        return self.less_for_encoding(pictures)

    def less_for_decoding(self, views: int, height: int) -> "Memory | None":
        """Half the views, down to one, then half the rows; None where nothing is left to cut."""
        together = min(self.decode_views or views, views)
        if together > 1:
            return replace(self, decode_views=together // 2)
        rows = min(self.decode_rows or height, height) // 2
        return replace(self, decode_views=1, decode_rows=rows) if rows >= SMALLEST_STRIP else None


# For a machine that has little: the smallest pieces that do not yet cost much time.
LOW_MEMORY = Memory(batch=1, sequential_guidance=True, decode_views=1, decode_rows=64)


def fit_in_memory(
    stage: str, memory: Memory, run: Callable[[Memory], Result], less: Callable[[Memory], Memory | None]
) -> tuple[Result, Memory]:
    """`run(memory)`, again with `less(memory)` for as long as the device runs out of memory.

    Returns the result and the memory settings it was made with, and logs them once if they are not the given ones.
    Raises InputError where nothing smaller is left.
    """
    chosen = memory
    while True:
        try:
            result = run(chosen)
            break
        except torch.OutOfMemoryError as error:
            problem = str(error).splitlines()[0] if str(error) else "out of memory"
        # Out of the except block: the error's traceback holds the tensors of the call that failed.
        following = less(chosen)
        if following is None:
            raise InputError(
                f"{stage} does not fit into the device's memory even with {chosen} ({problem}): load the model with "
                "dtype=float16 or bfloat16, use enable_model_cpu_offload() (low_memory=true in the configs), or "
                "another device"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        chosen = following
    if chosen != memory:
        log.warning("%s ran out of memory; it went on, with the same result, with %s", stage, chosen)
    return result, chosen


class Nova3DPipeline(DiffusionPipeline):
    """The paper's generator: NovaUNet, Stable Video Diffusion's autoencoder and a CLIP image encoder.

    Args:
        unet: denoises the RGB and the normal latents of all views together.
        vae: encodes the input picture and decodes the views.
        image_encoder: gives the input picture's CLIP embedding; None where the UNet was trained without one.
        size: pixels of a side of the square views.
        camera_preset: the name of the cameras (`nova3d.cameras.preset`) that the UNet was trained on.
        condition: what the UNet's condition latents show, "picture" or "inflated" (nova3d.models.conditioning). It is a
            plain `str`, because diffusers warns at every load about a `Literal` among these parameters.
        sigma_min: the lowest noise level above 0.
        sigma_max: the noise level that sampling starts from.
        rho: curvature of the Karras noise levels.
        steps: the default of `num_inference_steps`.
        solver: the default of `solver`.
        guidance_low: the default of `guidance_scale`'s first value.
        guidance_high: the default of `guidance_scale`'s second value.

    The defaults are those of Stable Video Diffusion.

    Raises:
        InputError: for another `condition`.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["image_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    unet: NovaUNet
    vae: VideoAutoencoder
    image_encoder: CLIPVisionModelWithProjection | None

    def __init__(
        self,
        unet: NovaUNet,
        vae: VideoAutoencoder,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        size: int = 256,
        camera_preset: str = "ortho16",
        condition: str = "picture",
        sigma_min: float = 0.002,
        sigma_max: float = 700.0,
        rho: float = 7.0,
        steps: int = 25,
        solver: str = "euler",
        guidance_low: float = 1.0,
        guidance_high: float = 2.5,
    ):
        super().__init__()
        if condition not in CONDITIONS:
            raise InputError(f"condition must be one of {', '.join(CONDITIONS)}, got '{condition}'")
        self.register_modules(unet=unet, vae=vae, image_encoder=image_encoder)
        self.register_to_config(
            size=size,
            camera_preset=camera_preset,
            condition=condition,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            rho=rho,
            steps=steps,
            solver=solver,
            guidance_low=guidance_low,
            guidance_high=guidance_high,
        )
        self.memory = Memory()
        self.calibration: Calibration | None = None
        self._guidance_scale: float | tuple[float, float] = (guidance_low, guidance_high)
        self._guidance_kind: Guidance = "triangle"
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def cameras(self) -> Cameras:
        """The v cameras of every output; view 0 is the input view."""
        return preset(self.config.camera_preset, self.config.size)

    @property
    def guidance_scale(self) -> float | tuple[float, float]:
        """The guidance scale of the current or last call, one value or (low, high)."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the guidance scale of the current or last call differs from 1 at any view."""
        return bool((self._view_scales() != 1).any())

    @property
    def num_timesteps(self) -> int:
        """The number of denoising steps of the current or last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the current call skips its remaining steps. A callback sets it by `pipeline._interrupt = True`."""
        return self._interrupt

    def set_memory(
        self, batch: int = 0, sequential_guidance: bool = False, decode_views: int = 0, decode_rows: int = 0
    ) -> None:
        """Cut the work into pieces that need less memory; the result changes by no more than rounding.

        Work that does not fit all the same is cut further when it runs out of memory, and stays so until the next
        `set_memory`. For weights rather than activations, use diffusers' `enable_model_cpu_offload`.

        Args:
            batch: pictures that are encoded and denoised together, 0 for all.
            sequential_guidance: run the two passes of guidance one after the other instead of as one batch.
            decode_views: views that the autoencoder decodes together, 0 for all.
            decode_rows: rows that it decodes together, 0 for whole pictures.

        Raises:
            InputError: for a negative value.
        """
        self.memory = Memory(batch, sequential_guidance, decode_views, decode_rows)

    def compile_unet(self, mode: str = "default", backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the UNet in place with torch.compile; parameters keep their names.

        The first call compiles, and so does the first call with another batch size.

        Args:
            mode: torch.compile's mode.
            backend: torch.compile's backend.
        """
        self.unet.compile(mode=mode, backend=backend, dynamic=False)

    @torch.no_grad()
    def __call__(
        self,
        image: images.Picture | Sequence[images.Picture],
        num_inference_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        guidance_kind: Guidance = "triangle",
        solver: str | None = None,
        noise_aug_strength: float = 0.02,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        keep_input: bool = True,
        framed: bool = False,
        cutout: images.Method = "auto",
        output_type: OutputType = "views",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate 16 views and 16 normal maps of the object in each picture.

        Args:
            image: one picture or a sequence of b pictures: files, PIL images, arrays or uint8 tensors as
                `nova3d.images.decode` reads them, whose object is cut out as `cutout` says; or a float tensor [h,w,4]
                in [0,1], straight alpha, that is cut out already. The object is centred and scaled.
            num_inference_steps: denoising steps, 1 or more. None: the model's own number.
            guidance_scale: scale of classifier-free guidance, one value for all views or (low, high), distributed over
                the views by `guidance_kind`. 1 at all views turns guidance off at half the cost. None: the model's own.
            guidance_kind: "triangle": low at the input view, high behind the object. "linear": low at the first view,
                high at the last. "constant": high at all views.
            solver: "euler" or "heun". None: the model's own.
            noise_aug_strength: standard deviation of the noise that is added to the condition picture in [-1,1].
            generator: draws the pixel noise of all pictures, then the latent noise of all; or a sequence of b
                generators, one per picture. A CPU generator gives the same noise on every device.
            seed: instead of `generator`: an integer, from which picture i takes seed + i, or a sequence of b integers.
                None: 0. With seeds a batch gives what single calls give.
            latents: float [b,t,v,4,h,w], or [t,v,4,h,w] for one picture: standard normal noise to start from instead
                of drawing it. It is scaled to `sigma_max` here.
            keep_input: view 0 shows the framed input picture, its colours and mask, instead of the generated ones.
            framed: the picture is already what view 0's camera sees (square, the object's own scale); only resize it.
            cutout: how the object is cut out, see `nova3d.images.cut_out`: "auto", "alpha", "plain", "model" or "none".
            output_type: the form of the result: "views", "pil", "np", "pt" or "latent"; see Nova3DOutput.
            return_dict: return a Nova3DOutput instead of a tuple of its fields that are not None.
            callback_on_step_end: called after each step as callback(pipeline, step, timestep, tensors), where timestep
                is ln(sigma) / 4 of the step's noise level. The tensors that it returns are used from then on.
            callback_on_step_end_tensor_inputs: the tensors to hand to the callback: "latents", float32 [b,t,v,4,h,w].

        Returns:
            A Nova3DOutput, or a tuple where `return_dict` is False.

        Raises:
            InputError: for a picture without an object, for arguments that do not fit, and for work that does not fit
                into the device's memory in its smallest pieces.
        """
        if output_type not in get_args(OutputType):
            raise InputError(f"output_type '{output_type}' is not one of {', '.join(get_args(OutputType))}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise InputError(
                f"a callback's tensor can be {', '.join(self._callback_tensor_inputs)}, got {min(unknown)}"
            )
        given = _picture_list(image)
        if not given:
            raise InputError("the list of pictures is empty")
        noise_sources = _noise_sources(generator, seed, len(given))
        config = self.config
        if (solver := solver or config.solver) not in SOLVERS:
            raise InputError(f"solver '{solver}' is not one of {', '.join(SOLVERS)}")
        self._guidance_scale = (config.guidance_low, config.guidance_high) if guidance_scale is None else guidance_scale
        self._guidance_kind = guidance_kind
        steps = config.steps if num_inference_steps is None else num_inference_steps
        try:
            self._view_scales()
            sigmas = karras_sigmas(steps, config.sigma_min, config.sigma_max, config.rho)
        except ValueError as error:
            raise InputError(str(error)) from error
        self._num_timesteps, self._interrupt = steps, False

        pictures = torch.stack([prepare_image(p, i, config.size, framed, cutout) for i, p in enumerate(given)])
        conditioning = self.encode_image(pictures, noise_aug_strength, [pixels for pixels, _ in noise_sources])
        shape = (len(TASKS), len(self.cameras), *conditioning.latent.shape[-3:])
        x = self.prepare_latents(shape, [source for _, source in noise_sources], latents)
        with self.progress_bar(total=steps) as bar:
            for step, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
                if self.interrupt:
                    continue
                x = self.denoise_latents(x, sigma, next_sigma, conditioning, solver)
                if callback_on_step_end is not None:
                    tensors = {name: {"latents": x}[name] for name in callback_on_step_end_tensor_inputs}
                    _, _, _, timestep = precondition(sigma)
                    x = callback_on_step_end(self, step, timestep, tensors).get("latents", x)
                bar.update()

        if output_type == "latent":
            result = Nova3DOutput(latents=x.cpu())
        else:
            decoded = self.decode_latents(x, conditioning.guide)
            kept = pictures if keep_input else [None] * len(given)
            views = [to_views(d, self.cameras, k, self.calibration) for d, k in zip(decoded, kept, strict=True)]
            result = postprocess(views, output_type, torch.stack([outline_agreement(pair) for pair in decoded]))
        self.maybe_free_model_hooks()
        return result if return_dict else result.to_tuple()

    def encode_image(
        self, pictures: Tensor, noise_aug_strength: float, generators: Sequence[torch.Generator]
    ) -> Conditioning:
        """Encode framed pictures into what the UNet is conditioned on.

        Args:
            pictures: float [b,size,size,4] in [0,1], straight alpha.
            noise_aug_strength: standard deviation of the pixel noise, pixels in [-1,1]. The condition "inflated" has
                none.
            generators: b generators that draw it.

        Returns:
            The conditioning of b objects on the execution device.
        """
        rgb = (images.composite(pictures) * 2 - 1).permute(0, 3, 1, 2)
        noise = torch.stack([torch.randn(rgb.shape[1:], generator=g, device=g.device).cpu() for g in generators])
        strength = torch.full((len(rgb),), noise_aug_strength)
        given = [part.to(self._execution_device) for part in (rgb, strength, noise)]
        inflated = self.config.condition == "inflated"
        guides = [inflated_guide(picture, self.cameras) for picture in pictures] if inflated else []
        width = int(self.unet.config.cross_attention_dim)

        def run(memory: Memory) -> Conditioning:
            if inflated:
                parts = [guide[None].to(self._execution_device) for guide in guides]
                encoded = [condition_inflated(self.image_encoder, self.vae, part, width) for part in parts]
            else:
                triples = zip(*(part.split(memory.batch or len(rgb)) for part in given), strict=True)
                encoded = [condition(self.image_encoder, self.vae, x, s, n, width) for x, s, n in triples]
            return Conditioning.cat(encoded)

        encoded, self.memory = fit_in_memory(
            "encoding", self.memory, run, lambda memory: memory.less_for_encoding(len(rgb))
        )
        self._offload(self.vae)  # its place in the offload order is at the end, where it is needed again
        return encoded

    def prepare_latents(
        self, shape: tuple[int, ...], generators: Sequence[torch.Generator], latents: Tensor | None = None
    ) -> Tensor:
        """The noise that sampling starts from.

        Args:
            shape: (t, v, 4, h, w) of one object.
            generators: b generators that draw it, each for one object.
            latents: standard normal noise [b,t,v,4,h,w] or [t,v,4,h,w] to take instead.

        Returns:
            float32 [b,t,v,4,h,w] on the execution device, of the standard deviation sqrt(sigma_max^2 + 1).

        Raises:
            InputError: where `latents` have another shape.
        """
        sigma_max, device = self.config.sigma_max, self._execution_device
        if latents is None:
            return torch.stack([initial_noise(shape, sigma_max, generator, device) for generator in generators])
        latents = latents[None] if latents.dim() == len(shape) else latents
        if (expected := (len(generators), *shape)) != latents.shape:
            raise InputError(f"latents must have the shape {expected}, got {tuple(latents.shape)}")
        return latents.to(device, torch.float32) * (sigma_max**2 + 1) ** 0.5

    def denoise_latents(
        self, x: Tensor, sigma: Tensor, next_sigma: Tensor, conditioning: Conditioning, solver: str
    ) -> Tensor:
        """One step of the solver under the current guidance, cut into pieces as the memory settings say.

        Args:
            x: float32 [b,t,v,4,h,w], noisy latents at the level `sigma`.
            sigma: scalar, the present noise level.
            next_sigma: scalar, the next one.
            conditioning: of the b objects.
            solver: "euler" or "heun".

        Returns:
            float32 [b,t,v,4,h,w] at the level `next_sigma`.
        """
        angles, scales = (part.to(x.device) for part in (self.cameras.azimuth_elevation(), self._view_scales()))
        denoise = Denoiser(self.unet, conditioning, angles, scales)

        def run(memory: Memory) -> Tensor:
            pieces = partial(denoise, batch=memory.batch, sequential=memory.sequential_guidance)
            return solver_step(pieces, x, sigma, next_sigma, solver)

        moved, self.memory = fit_in_memory(
            "denoising", self.memory, run, lambda memory: memory.less_for_denoising(len(x), denoise.guided)
        )
        return moved

    def decode_latents(self, latents: Tensor, guide: Tensor | None = None) -> Tensor:
        """Decode latents, cut into pieces as the memory settings say.

        Args:
            latents: float [b,t,v,4,h,w], scaled as the UNet sees them.
            guide: float [b,t,v,g,H,W], Conditioning.guide; used where the autoencoder's decoder is a guided one.

        Returns:
            float32 [b,t,v,3,H,W] in [-1,1] on the CPU.
        """
        if not getattr(self.vae.config, "guide_channels", 0):
            guide = None
        decoded, self.memory = fit_in_memory(
            "decoding",
            self.memory,
            lambda memory: decode(self.vae, latents, memory.decode_views, memory.decode_rows, guide).float().cpu(),
            lambda memory: memory.less_for_decoding(latents.shape[2], self.config.size),
        )
        return decoded

    def _view_scales(self) -> Tensor:
        """[v] guidance scales of the current call. Raises ValueError for an unknown kind."""
        scale = self._guidance_scale
        low, high = scale if isinstance(scale, tuple | list) else (scale, scale)
        return view_scales(self._guidance_kind, low, high, self.cameras.azimuth_elevation()[:, 0])

    def _offload(self, module: nn.Module) -> None:
        """Move a module that is done off the accelerator, where `enable_model_cpu_offload` put hooks."""
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
    ) -> tuple["Nova3DPipeline", LoadReport]:
        """An untrained pipeline on SVD's weights and settings. At step 0 each task's video is what SVD makes of it.

        Args:
            path_or_hub_id: a folder or hub id of an SVD pipeline, or its original .safetensors file.
            variant: "" or "fp16", which of the folder's weight files to read.
            dtype: of all networks, a torch dtype or its name in DTYPES.
            **unet_config: NovaUNet's arguments beyond SVD's.

        Returns:
            The pipeline and the report on every key of the weights.

        Raises:
            InputError: where the weights do not fit.
        """
        unet, vae, image_encoder, report = load_svd_parts(
            NovaUNet, path_or_hub_id, variant, dtype_named(dtype), **unet_config
        )
        return cls(unet, vae, image_encoder), report

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> "Nova3DPipeline":
        """Load a trained model, with errors of one line instead of a library's traceback.

        Args:
            name: a model folder, the name of a shipped model ("nova3d-mini") or a hub id ("owner/name").
            device: where the networks go.
            dtype: of all networks, a torch dtype or its name in DTYPES.
            variant: "fp16" for the weight files of that name. None: the plain files, or those of "fp16" where there
                are no others.

        Returns:
            The pipeline in eval mode.

        Raises:
            InputError: where the model is missing, damaged or not finite.
        """
        wanted, path = dtype_named(dtype), model_folder(name)
        if not (path / "model_index.json").is_file():
            raise InputError(f"'{name}' is not a model folder: it has no model_index.json")
        if (path / "SHA256SUMS").is_file() and (faults := provenance.verify_checksums(path)):
            raise InputError(f"model '{name}' is damaged: {faults[0]}")
        _check_index(path, str(name))
        try:
            pipeline: Nova3DPipeline = cls.from_pretrained(
                path, dtype=wanted, variant=variant or hub.only_variant(path), local_files_only=True
            )
        except Exception as error:  # safetensors, json and diffusers each raise their own
            raise InputError(
                f"model '{name}' cannot be loaded, a file is truncated or missing: {first_line(error)}"
            ) from error
        for part in COMPONENTS:
            network = getattr(pipeline, part)
            if network is not None and not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
                raise InputError(f"model '{name}' holds NaN or infinite weights in its {part}")
        return pipeline.to(device)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "Nova3DPipeline":
        """diffusers' `from_pretrained`, with one dtype for all networks: float32 where none is named.

        Args:
            pretrained_model_name_or_path: a model folder or a hub id. No code of the folder is run.
            **kwargs: diffusers' arguments: `dtype`, `variant`, `device_map`, `revision`, `cache_dir` ...

        Returns:
            The pipeline in eval mode.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options = ("revision", "cache_dir", "token", "local_files_only", "force_download")
            named = {option: kwargs[option] for option in options if option in kwargs}
            folder = hub.download(str(pretrained_model_name_or_path), **named)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)  # else transformers takes the stored type and diffusers float32
        kwargs.setdefault("use_safetensors", True)  # a pickle can run code when it is opened
        pipeline: Nova3DPipeline = super().from_pretrained(folder, **kwargs)
        pipeline.calibration = Calibration.load(folder)
        return pipeline

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json, and the line of code by which `DiffusionPipeline.from_pretrained(folder,
        trust_remote_code=True)` finds this class."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        index = Path(save_directory) / "model_index.json"
        name = [CUSTOM_PIPELINE, type(self).__name__]
        write_json(index, read_json(index, dict, "model index") | {"_class_name": name}, indent=2)
        write_text(Path(save_directory) / f"{CUSTOM_PIPELINE}.py", CUSTOM_PIPELINE_CODE)
        if self.calibration is not None:
            self.calibration.save(save_directory)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        """model_index.json with this class in the place of the one that a folder's own code names."""
        content: dict[str, Any] = super()._dict_from_json_file(json_file)
        return content | {"_class_name": cls.__name__}


def model_folder(name: str | Path) -> Path:
    """The folder of a model given as a folder, a shipped model's name or a hub id.

    Raises InputError where a hub id cannot be fetched. A folder that is not there is returned as it is.
    """
    found = resources.locate(name, "model")
    if found is not None:
        return found
    return hub.download(str(name)) if hub.is_hub_id(name) else Path(name)


def _check_index(folder: Path, name: str) -> None:
    """Raise InputError unless a model_index.json describes a model of this project, before anything is imported."""
    index = read_json(folder / "model_index.json", dict, "model index")
    own = Nova3DPipeline.__name__
    if index.get("_class_name") not in (own, [CUSTOM_PIPELINE, own]):
        raise InputError(
            f"model '{name}' is no {own}: its model_index.json names {str(index.get('_class_name'))[:80]!r}"
        )
    for part, known in _CLASSES.items():
        if index.get(part, [None, None]) not in known:
            raise InputError(f"model '{name}': {part} is {str(index.get(part))[:80]!r} and not {known[0][1]}")
    for key, most in (("size", _MOST_PIXELS), ("steps", _MOST_STEPS)):
        value = index.get(key, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"model '{name}': {key} must be a whole number from 1 to {most}, not {str(value)[:40]}")
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and not any(folder.rglob("*.safetensors")):
        raise InputError(f"model '{name}' has {pickles[0]}, a pickle, which can run code when opened: get .safetensors")


def dtype_named(name: str | torch.dtype) -> torch.dtype:
    """The dtype of a name of DTYPES. Raises InputError for another."""
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise InputError(f"dtype '{name}' is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _noise_sources(
    generator: torch.Generator | Sequence[torch.Generator] | None, seed: int | Sequence[int] | None, count: int
) -> list[tuple[torch.Generator, torch.Generator]]:
    """Of each picture, the generators of its pixel noise and of its latent noise."""
    if generator is not None:
        if seed is not None:
            raise InputError("give either generator or seed")
        generators = list(generator) if isinstance(generator, Sequence) else [generator] * count
        if len(generators) != count:
            raise InputError(f"{len(generators)} generators were given for {count} pictures; give one, or one each")
        return [(g, g) for g in generators]
    if isinstance(seed, Sequence):
        seeds = [int(s) for s in seed]
    else:
        seeds = [int(seed or 0) + i for i in range(count)]
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds were given for {count} pictures; give one seed, or one per picture")
    return [(pixel_noise_generator(s), torch.Generator().manual_seed(s)) for s in seeds]


def pixel_noise_generator(seed: int) -> torch.Generator:
    """The CPU generator of the pixel noise that belongs to a picture's seed."""
    return torch.Generator().manual_seed(PIXEL_NOISE_SEED + seed)


def _picture_list(image: images.Picture | Sequence[images.Picture]) -> list[images.Picture]:
    """The pictures of a call: one, a sequence, or an array or a tensor [b,h,w,c]."""
    if isinstance(image, np.ndarray | Tensor):
        return list(image) if len(image.shape) == 4 else [image]
    return [image] if isinstance(image, str | Path | Image.Image) else list(image)


def prepare_image(
    picture: images.Picture, index: int, size: int, framed: bool, cutout: images.Method = "auto"
) -> Tensor:
    """Cut a picture's object out, and frame it as the default camera frames a unit object.

    Args:
        picture: a file, a PIL image, an array or a uint8 tensor; or a float tensor [h,w,4] in [0,1], straight alpha,
            which is cut out already.
        index: its place in the batch, for messages.
        size: pixels of the result.
        framed: only resize it.
        cutout: how the object is cut out; see `nova3d.images.cut_out`.

    Returns:
        float32 [size,size,4] in [0,1] on the CPU.

    Raises:
        InputError: where it cannot be read, has no object, or is not square although `framed`.
    """
    name = str(picture) if isinstance(picture, str | Path) else f"picture {index}"
    if isinstance(picture, Tensor) and picture.is_floating_point():
        if picture.dim() != 3 or picture.shape[-1] != 4:
            raise InputError(
                f"{name} must be RGBA [h,w,4], got shape {list(picture.shape)}: a float tensor is taken as cut out; "
                "pass uint8 for a picture whose object is to be cut out"
            )
        rgba = picture.detach().float().cpu()
        images.check_object(rgba[..., 3], name)
    else:
        rgba = images.cut_out(picture, cutout, name=name, crop=not framed).rgba
    if not framed:
        return images.frame_object(rgba, size)
    if rgba.shape[0] != rgba.shape[1]:
        raise InputError(f"{name} is said to be framed but is not square: {tuple(rgba.shape[:2])}")
    return images.resize(rgba, size)


def to_views(
    decoded: Tensor, cameras: Cameras, kept: Tensor | None = None, calibration: Calibration | None = None
) -> ViewSet:
    """Decoded pictures as a ViewSet; the mask is the length of the decoded normal vectors.

    Args:
        decoded: float [t,v,3,h,w] in [-1,1].
        cameras: of the v views.
        kept: the framed picture [h,w,4] in [0,1] that view 0 shows instead of its own colours and mask.
        calibration: of the model, for the views to carry. With a kept picture it says how much of the normals of the
            picture's inflated outline is mixed into view 0's.

    Returns:
        v views on white.
    """
    rgb = (decoded[Task.RGB].permute(0, 2, 3, 1) + 1) / 2
    normal, mask = normals.decode((decoded[Task.NORMAL].permute(0, 2, 3, 1) + 1) / 2)
    mask = ((mask - 0.3) / 0.4).clamp(0, 1)  # decoded lengths are soft over more than the outline: sharpen
    if kept is not None:
        rgb[0], mask[0] = images.composite(kept), kept[..., 3]
    rgb = rgb * (mask > 0)[..., None] + (mask <= 0)[..., None].float()
    trusted = tuple(kept is not None and view == 0 for view in range(len(mask)))
    if kept is not None and calibration is not None and calibration.inflated_normals > 0:
        inflated = inflated_views(kept, cameras, only=[0]).normals[0]
        normal[0] = torch.nn.functional.normalize(torch.lerp(normal[0], inflated, calibration.inflated_normals), dim=-1)
    return ViewSet(rgb, normal * (mask > 0)[..., None], mask, cameras, trusted, calibration)


def outline_agreement(decoded: Tensor) -> Tensor:
    """[v] `metrics.task_iou` of decoded pictures [t,v,3,h,w] in [-1,1]."""
    rgb, vectors = (decoded[task].permute(0, 2, 3, 1) for task in (Task.RGB, Task.NORMAL))
    return task_iou((rgb + 1) / 2, vectors)


def postprocess(views: list[ViewSet], output_type: OutputType, task_iou: Tensor) -> Nova3DOutput:
    """View sets in the form asked for, and their task_iou [b,v]; see Nova3DOutput."""
    if output_type == "views":
        return Nova3DOutput(views=views, task_iou=task_iou)
    rgb, normal = torch.stack([v.rgb for v in views]), torch.stack([(v.normals + 1) / 2 for v in views])
    return Nova3DOutput(rgb=_in_form(rgb, output_type), normals=_in_form(normal, output_type), task_iou=task_iou)


def _in_form(frames: Tensor, output_type: OutputType) -> Any:
    """[b,v,h,w,3] in [0,1] as lists of PIL pictures, a numpy array, or a tensor with channels before rows."""
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in images.to_uint8(views)] for views in frames]
    return frames.numpy() if output_type == "np" else frames.permute(0, 1, 4, 2, 3).contiguous()
