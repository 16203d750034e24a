"""docs/how-to/extending.md, followed to the letter in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from tests.helpers.examples import FILE, apply_page

ROOT = Path(__file__).parents[1]
# They use what the page adds, and run in the copy only.
USES = ("data", "layouts", "metrics", "models", "rendering", "training")
TESTS = 10


def test_every_block_of_the_page_can_be_applied_and_used(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("nova3d", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("assets", "configs", "docs", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name)
    assert apply_page(ROOT / "docs/how-to/extending.md", checkout) == [
        "A render engine",
        "A source of objects",
        "A layout",
        "A metric",
        "An alignment arm",
    ]
    files = [f"tests/{room}/extending.py" for room in USES]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}", *files]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TESTS} passed" in done.stdout, done.stdout


def test_the_arm_of_the_page_is_trained_from_a_module_outside_the_package(tmp_path: Path) -> None:
    section = (ROOT / "docs/how-to/extending.md").read_text().partition("\n## An alignment arm\n")[2]
    ((_, code),) = FILE.findall(section)
    (tmp_path / "my_arms.py").write_text(code)
    commands = (
        "train model.alignment=gated steps=1 batch_size=1 --out run --device cpu --import my_arms",
        f"ablate --suite attention --objects {ROOT / 'assets/objects'} --arms gta,odd --import my_arms",
    )
    program = "import sys; from nova3d import cli\n"
    program += "".join(f"sys.argv[1:] = {words.split()}; cli.main()\n" for words in commands)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr  # of the second command, which is refused
    weights = load_file(tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors")
    gates = [weight for name, weight in weights.items() if name.endswith(".gate")]
    assert gates and all(gate.abs().max() > 0 for gate in gates)
    known = "none, cross_domain, gta, gta_spatial, gta_temporal, gated"
    assert done.stderr.endswith(f"error: --arms: 'odd' is not one of {known}\n"), done.stderr
