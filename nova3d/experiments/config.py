"""Settings of the studies: reproduction of the paper's tables, and the ablation of the attention."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from nova3d.choices import AlignmentInit
from nova3d.config import MISSING
from nova3d.settings import SampleConfig
from nova3d.utils.resources import Shipped


@dataclass
class TableArm:
    """One method of a table."""

    model: str | None = None
    """A model folder, or a folder of one per seed (seed0/model ...), inside sample.model. null: that folder itself."""
    fusion: list[str] = field(default_factory=list)
    """Changes to the fusion's config, as key=value."""
    paper: str | None = None
    """The method's row in the paper's table. null: it has none."""


@dataclass
class ReproduceConfig:
    """The keys of `nova3d reproduce`, one file per table. Paths are relative to where the script runs."""

    table: str = "table1"
    """The name of the table and of its folder in `out`."""
    objects: str = MISSING
    """A folder of meshes, of Google Scanned Objects as downloaded (MODEL/meshes/model.obj), or of shards."""
    names: list[str] = field(default_factory=list)
    """The objects to take. Empty: all."""
    out: str = "outputs/reproduce"
    """The output folder. Tables with equal settings share what is generated in it."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds to sample with."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How views are sampled. Its image, out, seed, framed and keep_input are set by the study."""
    fusion: Annotated[str | None, Shipped("config", "fusion")] = None
    """The config of the fusion. null: the table is of views."""
    fusion_changes: list[str] = field(default_factory=list)
    """Changes to it for all arms, as key=value."""
    arms: dict[str, TableArm] = field(default_factory=dict)
    """The methods by name."""
    baseline: str | None = None
    """The arm that the others are compared with, object by object."""
    protocol: Annotated[str, Shipped("protocol")] = "configs/eval/nova3d-el0.yaml"
    """The protocol of the scores."""
    protocol_changes: list[str] = field(default_factory=list)
    """Changes to it, as key=value."""
    weights: dict[str, str] = field(default_factory=dict)
    """Perceptual metric -> weights file."""
    published: Annotated[str, Shipped("config")] = "configs/eval/published.yaml"
    """The file of published numbers."""
    paper_table: str | None = None
    """A title in `published`. null: the paper's table is not in our copy."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """The paper's quantity -> our metrics."""


@dataclass
class AttentionArm:
    """One arm of the suite."""

    alignment: str = MISSING
    """A name of nova3d.models.alignment.ALIGNMENTS."""
    init: AlignmentInit = "copied"
    """How its units start."""
    row_attention: bool = False
    """Row attention besides, where the training config has none."""


@dataclass
class AttentionConfig:
    """What `nova3d ablate --suite attention` reads. Paths are relative to where the script runs."""

    out: str = "outputs/attention"
    """The output folder."""
    train: Annotated[str, Shipped("config", "train")] = "configs/train/mini.yaml"
    """The config of every training."""
    train_changes: list[str] = field(default_factory=list)
    """Changes to it, as key=value; out, seed, model.alignment and resume are set by the suite."""
    trunk: list[str] = field(default_factory=list)
    """Changes to the training config, as key=value, for one training without alignment. All arms of all seeds start
    from its weights. Empty: the training config decides."""
    held_out: str = MISSING
    """Objects to score: a folder of meshes, of Google Scanned Objects as downloaded, or of shards. None of them may be
    trained on."""
    names: list[str] = field(default_factory=list)
    """Those to take of them; empty: all."""
    arms: dict[str, AttentionArm] = field(default_factory=dict)
    """The arms by name; empty: one per alignment of the model, under its name."""
    baseline: str = "gta"
    """The arm that the others are compared with."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the trainings; each model samples with its own."""
    budget: Literal["steps", "flops"] = "steps"
    """steps: every arm takes as many steps. flops: as much arithmetic as the baseline's steps."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How views are sampled; its image, model, out, seed and framed are set by the suite."""
    protocol: Annotated[str, Shipped("protocol")] = "configs/eval/mini.yaml"
    """The protocol of the scores."""
    protocol_changes: list[str] = field(default_factory=list)
    """Changes to it, as key=value."""
    weights: dict[str, str] = field(default_factory=dict)
    """Perceptual metric -> weights file."""
