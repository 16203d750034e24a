"""Install the requirements of nova3d and of some extras, and nova3d itself where this environment has none.

An environment may be shared by several clones. `make` runs each clone's own code by PYTHONPATH; only the clone that an
environment was made for is installed in it.

    python .ci/install.py EXTRA,EXTRA [pip's options ...]
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirements(extras: list[str]) -> list[str]:
    """The requirements of the package and of its extras, as pip reads them; extras that name extras are followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, seen = list(project["dependencies"]), set()
    while extras:
        if (extra := extras.pop()) in seen:
            continue
        seen.add(extra)
        if extra not in project["optional-dependencies"]:
            sys.exit(f"error: '{extra}' is none of the extras {', '.join(project['optional-dependencies'])}")
        for line in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
            if own:
                extras += own[1].split(",")
            else:
                found.append(line)
    return found


def installed_from() -> Path | None:
    """The folder that nova3d is installed from in this environment; None where it is not installed."""
    for found in metadata.distributions(name="nova3d", path=[p for p in sys.path if Path(p).resolve() != ROOT]):
        origin = json.loads(found.read_text("direct_url.json") or "{}").get("url", "")
        return Path(origin.removeprefix("file://") or str(found.locate_file("")))
    return None


def main() -> None:
    """Install."""
    extras, *options = sys.argv[1:]
    pip = [sys.executable, "-m", "pip", "install", "-q", *options]
    subprocess.run([*pip, *requirements([extra for extra in extras.split(",") if extra])], check=True)
    there = installed_from()
    if there is None or there.resolve() == ROOT:
        subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    else:
        sys.stdout.write(f"This environment's nova3d is the one in '{there}' and stays; make runs that of '{ROOT}'.\n")


if __name__ == "__main__":
    main()
