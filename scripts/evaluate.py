"""Score predictions against references and print the table."""

from dataclasses import asdict
from pathlib import Path

from nova3d import cli, config, provenance


def main() -> None:
    arguments = cli.parser(
        "Score DIR/<object>/ (a view folder, a mesh.glb or both) against references laid out alike.",
        "python scripts/evaluate.py --predictions outputs/gso --references data/gso --out outputs/scores",
    )
    arguments.add_argument("--predictions", type=Path, required=True, help="folder of predicted objects")
    arguments.add_argument("--references", type=Path, required=True, help="folder of reference objects")
    arguments.add_argument("--out", type=Path, required=True, help="folder for scores.md, scores.csv and scores.json")
    cli.add_config(arguments, "configs/eval/nova3d-el0.yaml")
    given = arguments.parse_args()

    from nova3d.evaluation import Protocol, score  # after parsing: --help need not wait for torch
    from nova3d.evaluation.tables import hardware

    protocol = config.load(Protocol, given.config, given.overrides)
    table = score(given.predictions, given.references, protocol)
    facts = {"commit": provenance.commit(), "hardware": hardware()}
    sources = {"predictions": str(given.predictions), "references": str(given.references)}
    table.save(given.out, provenance.record("evaluate", asdict(protocol), **sources), facts)
    print(table.markdown(facts))
    print(f"written: {given.out.resolve()}/scores.md, scores.csv, scores.json")


if __name__ == "__main__":
    cli.run(main)
