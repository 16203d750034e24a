#!/usr/bin/env python
"""Two tables on Google Scanned Objects: true views to mesh, and the model's views and meshes.

Writes OUT/references-256, OUT/references-128, OUT/true-views and OUT/model, each with a folder per object that
scripts/evaluate.py scores. What exists is kept, so an interrupted run goes on where it was.
"""

import json
import time
from pathlib import Path

from nova3d import cli, config

EIGHT = (
    "SCHOOL_BUS",
    "Schleich_Lion_Action_Figure",
    "Nintendo_Mario_Action_Figure",
    "Room_Essentials_Mug_White_Yellow",
    "Android_Figure_Panda",
    "Cole_Hardware_School_Bell_Solid_Brass_38",
    "Breyer_Horse_Of_The_Year_2015",
    "Womens_Multi_13",
)


def main() -> None:
    arguments = cli.parser(__doc__, "python benchmarks/gso.py --objects gso --out outputs/gso --stages true model")
    arguments.add_argument("--objects", type=Path, required=True, help="folder of GSO meshes (.glb)")
    arguments.add_argument("--names", nargs="+", default=list(EIGHT), help="which objects (default: eight)")
    arguments.add_argument("--model", type=Path, default=Path("assets/nova3d-mini"))
    arguments.add_argument("--out", type=Path, default=Path("outputs/gso"))
    arguments.add_argument("--stages", nargs="+", default=["true", "model"], choices=["true", "model", "model-mesh"])
    arguments.add_argument("--true-fusion", default="configs/fusion/cpu.yaml")
    arguments.add_argument("--model-config", default="configs/generate/mini.yaml")
    options = arguments.parse_args()

    from nova3d.evaluation import Protocol, score
    from nova3d.evaluation.tables import hardware
    from nova3d.provenance import commit

    facts = {"commit": commit(), "hardware": hardware()}
    tables = []
    for stage in options.stages:
        size = 256 if stage == "true" else 128
        references = options.out / f"references-{size}"
        predictions = options.out / ("true-views" if stage == "true" else "model")
        for name in options.names:
            reference(options.objects / f"{name}.glb", references / name, size)
            if stage == "true":
                fuse(references / name, predictions / name, options.true_fusion)
            else:
                generate(references / name, predictions / name, options.model, options.model_config, stage)
        protocol = config.load(Protocol, "configs/eval/nova3d-el0.yaml")
        table = score(predictions, references, protocol)
        table.save(options.out / f"scores-{stage}", {"stage": stage}, facts)
        tables.append(f"## {stage}\n\n{table.markdown(facts)}\n\n{seconds(predictions, options.names)}")
    print("\n\n".join(tables))


def reference(mesh: Path, folder: Path, size: int) -> None:
    """True views, and the mesh in the same frame."""
    if (folder / "mesh.glb").exists():
        return
    import trimesh

    from nova3d.cameras import preset
    from nova3d.data import render_object

    render_object(mesh, preset("ortho16", size), supersample=2).save(folder)
    solid = trimesh.load_scene(mesh, process=False).to_mesh()
    low, high = solid.bounds
    solid.apply_translation(-(low + high) / 2)
    solid.apply_scale(1 / (high - low).max())
    solid.export(folder / "mesh.glb")


def fuse(views: Path, folder: Path, preset: str) -> None:
    """A view folder's mesh, with the seconds it took."""
    if (folder / "mesh.glb").exists():
        return
    from nova3d.fusion import FusionConfig, reconstruct
    from nova3d.views import ViewSet

    folder.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    with cli.progress_bar(f"fusing {folder.name}") as bar:
        settings = preset if isinstance(preset, FusionConfig) else config.load(FusionConfig, preset)
        result = reconstruct(ViewSet.load(views), settings, None, lambda s, m: bar(round(100 * s), 100, m))
    result.save(folder / "mesh.glb")
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **result.timings}
    (folder / "seconds.json").write_text(json.dumps(spent | {"report": result.report}, default=str))


def generate(reference_views: Path, folder: Path, model: Path, path: str, stage: str) -> None:
    """The model's views of view 0's picture, and their mesh."""
    from nova3d.generation import GenerateConfig
    from nova3d.views import ViewSet

    settings = config.load(GenerateConfig, path)
    if not (folder / "transforms.json").exists():
        import torch

        from nova3d.pipeline import Nova3DPipeline

        truth = ViewSet.load(reference_views)
        picture = torch.cat([truth.rgb[0], truth.mask[0][..., None]], dim=-1)
        wall = time.perf_counter()
        views = Nova3DPipeline.load(model)(picture, framed=True, seed=0, keep_input=True).views
        assert isinstance(views, ViewSet)
        views.save(folder)
        (folder / "sampling.json").write_text(json.dumps({"wall": time.perf_counter() - wall}))
    if stage == "model-mesh":
        fuse(folder, folder, settings.fusion)  # type: ignore[arg-type]


def seconds(folder: Path, names: list[str]) -> str:
    """Wall and CPU seconds of every object's fusion."""
    found = {name: folder / name / "seconds.json" for name in names}
    spent = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    rows = [f"| {name} | {row['wall']:.0f} | {row['cpu']:.0f} |" for name, row in spent.items()]
    return "\n".join(["| object | fusion wall s | CPU s |", "|---|---|---|", *rows]) if rows else ""


if __name__ == "__main__":
    cli.run(main)
