"""The model card that an export writes: a YAML head for the Hugging Face Hub, and what the record knows."""

from collections.abc import Mapping, Sequence
from typing import Any

from nova3d.pipeline.pipeline import Nova3DPipeline
from nova3d.utils import hub, yaml_text

TAGS = ("image-to-3d", "image-to-multiview", "normal-maps", "novel-view-synthesis", "diffusers", "nova3d")


def model_card(
    pipeline: Nova3DPipeline, record: Mapping[str, Any], name: str, licence: str | None, pictures: Sequence[str]
) -> str:
    """The card of a model.

    Args:
        pipeline: the model.
        record: the training's record.json; empty where there is none.
        name: of the model.
        licence: an identifier of the Hub's. None: "other" where the record says that the weights derive from
            Stable Video Diffusion, whose licence the model inherits, else "apache-2.0".
        pictures: paths of sample pictures, relative to the card.

    Returns:
        Markdown with a YAML head.
    """
    config: Mapping[str, Any] = record.get("config", {})
    svd = record.get("svd") or config.get("svd")
    from_svd = bool(svd)
    head: dict[str, Any] = {"license": licence or ("other" if from_svd else "apache-2.0")}
    if from_svd and licence is None:
        head["license_name"] = "stable-video-diffusion-community"
    head |= {"library_name": "diffusers", "pipeline_tag": "image-to-3d", "tags": list(TAGS)}
    if hub.is_hub_id(str(svd)):  # a folder's name would be another model's
        head["base_model"] = str(svd)
    views = len(pipeline.cameras)
    lines = [
        f"# {name}",
        "",
        f"One picture to {views} views and {views} normal maps of its object, {pipeline.config.size} px, for a "
        "textured mesh: an implementation of [NOVA3D](https://arxiv.org/abs/2506.07698).",
        "",
        "```",
        "pip install .    # in a clone of nova3d, which is not on PyPI yet",
        "nova3d generate photo.png --model THIS_REPOSITORY",
        "```",
        "",
        *(f"![views and normal maps that the model makes of one picture]({path})\n" for path in pictures),
        "## Parts",
        "| part | class | parameters |",
        "|---|---|---|",
        *(f"| `{part}` | {type(network).__name__} | {_millions(network)} |" for part, network in _networks(pipeline)),
        "",
        "## Training",
        *(_training(record) or ["No record of the training was found beside the weights."]),
        "",
        "## Limits",
        f"- The views are at elevation 0 and {pipeline.config.size} px: top and underside are guesses of the fusion.",
        "- Views behind the object are guesses of the model.",
        "- No measurement stands here yet. `nova3d reproduce` and `nova3d evaluate` make them.",
        "",
    ]
    return f"---\n{yaml_text.dump(head)}---\n\n" + "\n".join(lines)


def _networks(pipeline: Nova3DPipeline) -> list[tuple[str, Any]]:
    named = ((name, getattr(pipeline, name)) for name in ("unet", "vae", "image_encoder"))
    return [(name, network) for name, network in named if network is not None]


def _millions(network: Any) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"


def _training(record: Mapping[str, Any]) -> list[str]:
    """The facts of a record that a reader of the card needs; those that it lacks are left out."""
    config: Mapping[str, Any] = record.get("config", {})
    optim: Mapping[str, Any] = config.get("optim", {})
    facts = {
        "steps": config.get("steps"),
        "objects per device and micro-step": config.get("batch_size"),
        "objects per step": config.get("effective_batch"),
        "optimizer": optim.get("name"),
        "peak learning rate": optim.get("learning_rate"),
        "attention arm": config.get("model", {}).get("alignment"),
        "precision": config.get("mixed_precision"),
        "seed": config.get("seed"),
        "commit of the code": record.get("commit"),
        "created": record.get("created"),
    }
    rows = [f"| {key} | {value} |" for key, value in facts.items() if value not in (None, "", 0)]
    return ["| | |", "|---|---|", *rows] if rows else []
