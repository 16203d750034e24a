#!/usr/bin/env python
"""Fuse true renders of real objects and measure the meshes: seconds per stage, Chamfer, normals, texture."""

from pathlib import Path

from nova3d import cli


def main() -> None:
    arguments = cli.parser(
        "Render every mesh of a folder from the default rig, fuse the views, compare with the mesh it came from.",
        "python benchmarks/fusion.py --objects data/gso --limit 3 --config configs/fusion/cpu.yaml",
    )
    arguments.add_argument("--objects", required=True, metavar="FOLDER", help="a folder of .glb, .obj or .ply files")
    arguments.add_argument("--limit", type=int, default=3, help="how many of them, by name (default: %(default)s)")
    arguments.add_argument("--size", type=int, default=256, help="pixels of the views (default: %(default)s)")
    arguments.add_argument("--preset", default="ortho16", help="camera rig (default: %(default)s)")
    arguments.add_argument("--out", default="outputs/benchmark-fusion", help="where meshes go (default: %(default)s)")
    cli.add_device(arguments)
    cli.add_config(arguments, "configs/fusion/cpu.yaml")
    options = arguments.parse_args()

    from nova3d import cameras
    from nova3d import config as configs
    from nova3d.data import render_object
    from nova3d.errors import InputError
    from nova3d.fusion import FusionConfig, reconstruct
    from nova3d.fusion.export import check_output

    config = configs.load(FusionConfig, options.config, options.overrides)
    device = cli.pick_device(options.device)
    meshes = [p for p in sorted(Path(options.objects).glob("*")) if p.suffix.lower() in (".glb", ".obj", ".ply")]
    if not meshes:
        raise InputError(f"'{options.objects}' holds no .glb, .obj or .ply file")
    rig = cameras.preset(options.preset, options.size)
    held_out = cameras.orbit(16, size=options.size, start_azimuth_deg=180 / 16)
    columns = ("fit s", "mesh s", "tex s", "chamfer", "F@0.01", "normal", "PSNR", "held-out", "unseen", "parts", "shut")
    print(f"{'object':32}" + "".join(f"{name:>9}" for name in columns))
    for path in meshes[: options.limit]:
        views = render_object(path, rig, light="flat", device=device)
        result = reconstruct(views, config, device)
        written = result.save(check_output(Path(options.out) / f"{path.stem}.glb"))
        truth = render_object(path, held_out, light="flat", device=device)
        chamfer, f_score, normal = compare(path, result.solid)
        seen, unseen = (
            psnr(render_object(written, v.cameras, light="flat", normalise=False), v) for v in (views, truth)
        )
        t, r = result.timings, result.report
        print(
            f"{path.stem[:31]:32}{t['fit']:9.1f}{t['mesh']:9.1f}{t['texture'] + t['conflict']:9.1f}{chamfer:9.5f}"
            f"{f_score:9.3f}{normal:9.3f}{seen:9.2f}{unseen:9.2f}{r['unseen_share']:9.3f}{r['components']:9d}"
            f"{'yes' if r['watertight'] else 'no':>9}",
            flush=True,
        )


def compare(path, mesh):  # type: ignore[no-untyped-def]
    """Chamfer distance (mean of both directions, unsquared, longest side 1), F-score at 0.01 and the mean cosine
    of normals, from 50,000 area-weighted points each."""
    import numpy as np
    import trimesh
    from scipy.spatial import cKDTree

    from nova3d.data.meshes import load_mesh

    source = load_mesh(path).normalised()
    truth = trimesh.Trimesh(source.vertices.numpy(), source.faces.numpy(), process=False)
    (p, p_face), (q, q_face) = (trimesh.sample.sample_surface(m, 50000, seed=0) for m in (mesh, truth))
    (d_pq, near_q), (d_qp, near_p) = cKDTree(q).query(p), cKDTree(p).query(q)
    forward = np.abs((mesh.face_normals[p_face] * truth.face_normals[q_face[near_q]]).sum(axis=1)).mean()
    backward = np.abs((truth.face_normals[q_face] * mesh.face_normals[p_face[near_p]]).sum(axis=1)).mean()
    precision, recall = (d_pq < 0.01).mean(), (d_qp < 0.01).mean()
    f_score = 2 * precision * recall / max(1e-9, precision + recall)
    return (d_pq.mean() + d_qp.mean()) / 2, f_score, (forward + backward) / 2


def psnr(ours, truth) -> float:  # type: ignore[no-untyped-def]
    """dB over pixels that either of the two covers; background would flatter the figure."""
    import torch

    both = (ours.mask > 0.5) | (truth.mask > 0.5)
    return float(-10 * torch.log10((ours.rgb - truth.rgb)[both].square().mean()))


if __name__ == "__main__":
    cli.run(main)
