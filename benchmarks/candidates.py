"""Whether the candidate whose views agree best is better than the mean candidate, on objects with true views."""

from argparse import ArgumentParser
from pathlib import Path
from statistics import fmean, stdev

from nova3d.cli import common


def main() -> None:
    """Sample candidates of each object and print what the choice gains."""
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("objects", nargs="+", type=Path, help="mesh files; never those of an evaluation")
    arguments.add_argument("--model", default="mini")
    arguments.add_argument("--candidates", type=int, default=3, help="of each object")
    options = arguments.parse_args()

    from nova3d import render_object
    from nova3d.candidates import agreement
    from nova3d.metrics import mask_iou, psnr
    from nova3d.sampling import generate_views, load_pipeline
    from nova3d.settings import SampleConfig

    pipeline = load_pipeline(SampleConfig(model=options.model), "cpu")
    print("| object | pick of its seeds | mask IoU, pick | mean candidate | PSNR, pick | mean candidate |")
    print("|---|---|---|---|---|---|")
    gains = []
    for index, path in enumerate(options.objects):
        truth = render_object(path, pipeline.cameras, supersample=2)
        rows = []
        # Seeds of its own: the same noise is often the best one of several objects, which then are one measurement.
        for seed in range(index * options.candidates, (index + 1) * options.candidates):
            config = SampleConfig(model=options.model, framed=True, seed=seed)
            views, task_iou = generate_views(pipeline, truth.straight_alpha(0), config)
            iou = float(mask_iou(views.mask[1:], truth.mask[1:]).mean())
            decibels = float(psnr(views.rgb[1:], truth.rgb[1:]).mean())
            rows.append((agreement(views, task_iou), seed, iou, decibels))
        _, seed, iou, decibels = max(rows)
        pick = seed % options.candidates
        means = [sum(row[column] for row in rows) / len(rows) for column in (2, 3)]
        print(
            f"| {path.stem} | {pick} | {iou:.3f} | {means[0]:.3f} | {decibels:.2f} | {means[1]:.2f} |",
            flush=True,
        )
        gains.append((iou - means[0], decibels - means[1]))
    if len(gains) > 1:
        for name, gain in zip(("mask IoU", "PSNR, dB"), zip(*gains, strict=True), strict=True):
            error = stdev(gain) / len(gain) ** 0.5
            print(
                f"{name}: the pick beats the mean candidate by {fmean(gain):+.3f} (standard error {error:.3f}), "
                f"on {sum(value > 0 for value in gain)} of {len(gain)} objects"
            )


if __name__ == "__main__":
    common.run(main)
