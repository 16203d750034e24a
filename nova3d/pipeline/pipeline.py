"""Nova3DPipeline: one picture of an object to 16 consistent views and 16 normal maps."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports diffusers

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CLIPVisionModelWithProjection  # noqa: E402

from nova3d import images  # noqa: E402
from nova3d.calibration import Calibration  # noqa: E402
from nova3d.cameras import Cameras, preset  # noqa: E402
from nova3d.choices import CutoutMethod  # noqa: E402
from nova3d.diffusion import (  # noqa: E402
    SOLVERS,
    Guidance,
    init_noise_sigma,
    initial_noise,
    karras_sigmas,
    precondition,
    solver_step,
    view_scales,
)
from nova3d.errors import InputError, first_line  # noqa: E402
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
from nova3d.pipeline.folder import COMPONENTS, CUSTOM_PIPELINE, check_keys, check_model_folder, model_folder  # noqa: E402
from nova3d.pipeline.known import Known, known_latents  # noqa: E402
from nova3d.pipeline.memory import Memory, fit_in_memory  # noqa: E402
from nova3d.pipeline.outputs import (  # noqa: E402
    Nova3DOutput,
    OutputType,
    outline_agreement,
    postprocess,
    to_views,
)
from nova3d.tasks import CONDITIONS, TASKS  # noqa: E402
from nova3d.utils import hub  # noqa: E402
from nova3d.utils.files import read_json, write_json, write_text  # noqa: E402
from nova3d.views import ViewSet  # noqa: E402

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Added to a picture's seed: the sampler's own seed would repeat its first numbers in the pixels. torch's CPU generator
# keeps the low 32 bits of a seed, so the offset must lie in those.
PIXEL_NOISE_SEED = 0x9E37_79B9

# Saved with a model, so that DiffusionPipeline finds the class by the name in model_index.json.
CUSTOM_PIPELINE_CODE = "from nova3d.pipeline import Nova3DPipeline as Nova3DPipeline\n"


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
        condition_share: in [0,1), the share of the condition's own pictures in the views, where it is "inflated"; the
            rest is what the networks make. A small model's views are nearer to the truth for it.
        sigma_min: the lowest noise level above 0.
        sigma_max: the noise level that sampling starts from.
        rho: curvature of the Karras noise levels.
        steps: the default of `num_inference_steps`.
        solver: the default of `solver`.
        guidance_low: the default of `guidance_scale`'s first value.
        guidance_high: the default of `guidance_scale`'s second value.

    The defaults are those of Stable Video Diffusion.

    Raises:
        InputError: for another `condition`, or a `condition_share` outside its range.
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
        condition_share: float = 0.0,
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
        if not 0 <= condition_share < 1:
            raise InputError(f"condition_share must lie in [0,1), got {condition_share}")
        self.register_modules(unet=unet, vae=vae, image_encoder=image_encoder)
        self.register_to_config(
            size=size,
            camera_preset=camera_preset,
            condition=condition,
            condition_share=condition_share,
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
        self.source = "(in memory)"  # what it was loaded from, for records
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
        self,
        batch: int | None = None,
        sequential_guidance: bool = False,
        decode_views: int | None = None,
        decode_rows: int | None = None,
    ) -> None:
        """Cut the work into pieces that need less memory; the result changes by no more than rounding.

        Work that does not fit all the same is cut further when it runs out of memory, and stays so until the next
        `set_memory`. For weights rather than activations, use diffusers' `enable_model_cpu_offload`.

        Args:
            batch: pictures that are encoded and denoised together, None for all; the views of an inflated outline are
                pictures too.
            sequential_guidance: run the two passes of guidance one after the other instead of as one batch.
            decode_views: views that the autoencoder decodes together, None for all.
            decode_rows: rows that it decodes together, None for whole pictures.

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
        keep_known: bool = False,
        framed: bool = False,
        depth_ratio: float = 1.0,
        cutout: CutoutMethod = "auto",
        output_type: OutputType = "views",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:  # Nova3DOutput | tuple: a union would ask every caller to narrow it
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
            keep_known: every estimate keeps what is known before sampling (`nova3d.pipeline.known`): view 0's colours,
                and background that no object with the picture's outline reaches. It needs level orthographic cameras.
            framed: the picture is already what view 0's camera sees (square, the object's own scale); only resize it.
            depth_ratio: how long the objects are from front to back, over their longest sides in the pictures, where
                they are longer: they are framed that much smaller. At least 1.
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
        config, given = self.config, _picture_list(image)
        solver = solver or config.solver
        self.check_inputs(given, solver, output_type, callback_on_step_end_tensor_inputs)
        noise_sources = _noise_sources(generator, seed, len(given))
        self._guidance_scale = (config.guidance_low, config.guidance_high) if guidance_scale is None else guidance_scale
        self._guidance_kind = guidance_kind
        steps = config.steps if num_inference_steps is None else num_inference_steps
        try:
            self._view_scales()
            sigmas = karras_sigmas(steps, config.sigma_min, config.sigma_max, config.rho)
        except ValueError as error:
            raise InputError(str(error)) from error
        self._num_timesteps, self._interrupt = steps, False

        pictures = torch.stack(
            [prepare_image(p, i, config.size, framed, cutout, depth_ratio) for i, p in enumerate(given)]
        )
        conditioning = self.encode_image(pictures, noise_aug_strength, [pixels for pixels, _ in noise_sources])
        known = None
        if keep_known:
            known, self.memory = fit_in_memory(
                "encoding",
                self.memory,
                lambda memory: known_latents(pictures, self.cameras, self.vae, conditioning, memory.batch),
                lambda memory: memory.less_for_encoding(len(self.cameras)),
            )
            self._offload(self.vae)
        shape = (len(TASKS), len(self.cameras), *conditioning.latent.shape[-3:])
        x = self.prepare_latents(shape, [source for _, source in noise_sources], latents)
        with self.progress_bar(total=steps) as bar:
            for step, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
                if self.interrupt:
                    continue
                x = self.denoise_latents(x, sigma, next_sigma, conditioning, solver, known)
                if callback_on_step_end is not None:
                    tensors = {name: {"latents": x}[name] for name in callback_on_step_end_tensor_inputs}
                    _, _, _, timestep = precondition(sigma)
                    x = callback_on_step_end(self, step, timestep, tensors).get("latents", x)
                bar.update()

        if output_type == "latent":
            result = Nova3DOutput(latents=x.cpu())
        else:
            decoded = self.decode_latents(x, conditioning.guide)
            views = self.compose_views(decoded, conditioning.guide, pictures if keep_input else None)
            result = postprocess(views, output_type, torch.stack([outline_agreement(pair) for pair in decoded]))
        self.maybe_free_model_hooks()
        return result if return_dict else result.to_tuple()

    def check_inputs(
        self,
        pictures: Sequence[images.Picture],
        solver: str,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Check the arguments of a call that nothing else checks.

        Args:
            pictures: a list of b pictures as `__call__` takes them; tensors are float [h,w,4] in [0,1], or uint8.
            solver: see `__call__`.
            output_type: see `__call__`.
            callback_on_step_end_tensor_inputs: see `__call__`.

        Raises:
            InputError: naming the argument.
        """
        if output_type not in get_args(OutputType):
            raise InputError(f"output_type '{output_type}' is not one of {', '.join(get_args(OutputType))}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise InputError(
                f"a callback's tensor can be {', '.join(self._callback_tensor_inputs)}, got {min(unknown)}"
            )
        if not pictures:
            raise InputError("the list of pictures is empty")
        if solver not in SOLVERS:
            raise InputError(f"solver '{solver}' is not one of {', '.join(SOLVERS)}")

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
        guided = bool(getattr(self.vae.config, "guide_channels", 0))
        guides = [inflated_guide(picture, self.cameras) for picture in pictures] if inflated or guided else []
        width = int(self.unet.config.cross_attention_dim)
        together = len(self.cameras) if inflated else len(rgb)

        def run(memory: Memory) -> Conditioning:
            if inflated:
                parts = [guide[None].to(self._execution_device) for guide in guides]
                encoded = [
                    condition_inflated(self.image_encoder, self.vae, part, width, memory.batch) for part in parts
                ]
            else:
                triples = zip(*(part.split(memory.batch or len(rgb)) for part in given), strict=True)
                encoded = [condition(self.image_encoder, self.vae, x, s, n, width) for x, s, n in triples]
            together = Conditioning.cat(encoded)
            if guided and not inflated:  # the decoder was trained with guide pictures, whatever the UNet sees
                together = replace(together, guide=torch.stack(guides).to(self._execution_device))
            return together

        encoded, self.memory = fit_in_memory(
            "encoding", self.memory, run, lambda memory: memory.less_for_encoding(together)
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
            latents: float [b,t,v,4,h,w] or [t,v,4,h,w], standard normal noise to take instead.

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
        return latents.to(device, torch.float32) * init_noise_sigma(sigma_max)

    def denoise_latents(
        self,
        x: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        conditioning: Conditioning,
        solver: str,
        known: Known | None = None,
    ) -> Tensor:
        """One step of the solver under the current guidance, cut into pieces as the memory settings say.

        Args:
            x: float32 [b,t,v,4,h,w], noisy latents at the level `sigma`.
            sigma: float scalar, the present noise level.
            next_sigma: float scalar, the next one.
            conditioning: of the b objects.
            solver: "euler" or "heun".
            known: latents that replace the estimate.

        Returns:
            float32 [b,t,v,4,h,w] at the level `next_sigma`.
        """
        angles, scales = (part.to(x.device) for part in (self.cameras.azimuth_elevation(), self._view_scales()))
        denoise = Denoiser(self.unet, conditioning, angles, scales)

        def run(memory: Memory) -> Tensor:
            pieces = partial(denoise, batch=memory.batch, sequential=memory.sequential_guidance)
            return solver_step(known.replaces(pieces) if known else pieces, x, sigma, next_sigma, solver)

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

    def compose_views(self, decoded: Tensor, guide: Tensor | None, pictures: Tensor | None) -> list[ViewSet]:
        """Views from decoded pictures, as `nova3d.pipeline.outputs.to_views` makes them.

        Args:
            decoded: float32 [b,t,v,3,H,W] in [-1,1], on the CPU.
            guide: float [b,t,v,4,H,W], Conditioning.guide, or None.
            pictures: float [b,H,W,4] in [0,1], the framed pictures that view 0 shows; None: it shows its own colours.

        Returns:
            The views of b pictures.
        """
        kept = [None] * len(decoded) if pictures is None else pictures
        guides = [None] * len(decoded) if guide is None else guide.float().cpu()
        return [
            to_views(pair, self.cameras, picture, self.calibration, shown, self.config.condition_share)
            for pair, picture, shown in zip(decoded, kept, guides, strict=True)
        ]

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
        variant: str | None = None,
        dtype: str | torch.dtype = torch.float32,
        **unet_config: Any,
    ) -> tuple["Nova3DPipeline", LoadReport]:
        """An untrained pipeline on SVD's weights and settings. At step 0 each task's video is what SVD makes of it.

        Args:
            path_or_hub_id: a folder or hub id of an SVD pipeline, or its original .safetensors file.
            variant: "fp16" for the weight files of that name in a folder; None for the plain ones.
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
        check_model_folder(path, str(name))
        try:
            pipeline: Nova3DPipeline = cls.from_pretrained(
                path, dtype=wanted, variant=variant or hub.only_variant(path), local_files_only=True
            )
        except MemoryError:
            raise
        except Exception as error:  # safetensors, json and diffusers each raise their own
            raise InputError(
                f"model '{name}' cannot be loaded, a file may be truncated or missing: {first_line(error)}"
            ) from error
        for part in COMPONENTS:
            network = getattr(pipeline, part)
            if network is None:
                continue
            check_keys(network, path / part, f"{name}/{part}", strict=part != "image_encoder")
            if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
                raise InputError(f"model '{name}' holds NaN or infinite weights in its {part}")
        pipeline.source = str(name)
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
        pipeline.source = str(pretrained_model_name_or_path)
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
    picture: images.Picture,
    index: int,
    size: int,
    framed: bool,
    cutout: CutoutMethod = "auto",
    depth_ratio: float = 1.0,
) -> Tensor:
    """Cut a picture's object out, and frame it as the default camera frames a unit object.

    Args:
        picture: a file, a PIL image, an array or a uint8 tensor; or a float tensor [h,w,4] in [0,1], straight alpha,
            which is cut out already.
        index: its place in the batch, for messages.
        size: pixels of the result.
        framed: only resize it.
        cutout: how the object is cut out; see `nova3d.images.cut_out`.
        depth_ratio: see `Nova3DPipeline.__call__`.

    Returns:
        float32 [size,size,4] in [0,1] on the CPU.

    Raises:
        InputError: where it cannot be read, has no object, is not square although `framed`, or `depth_ratio` is below 1
            or given although `framed`.
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
    images.check_framing(rgba, framed, depth_ratio, name)
    return (
        images.resize(rgba, size) if framed else images.frame_object(rgba, size, images.FOREGROUND_RATIO / depth_ratio)
    )
