"""The names that users import."""

import importlib
import pkgutil
import subprocess
import sys

import nova3d


def test_the_package_lists_its_public_names_and_loads_them_on_use() -> None:
    assert {"generate", "reconstruct", "Nova3DPipeline", "ViewSet", "render_object"} <= set(dir(nova3d))
    for name in dir(nova3d):
        assert getattr(nova3d, name) is not None
    from nova3d import generate, reconstruct

    assert (generate.__module__, callable(reconstruct)) == ("nova3d.generation", True)


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, nova3d; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_bears_the_name_of_what_its_package_exports() -> None:
    """Else the package's attribute is the function first and, once the module was imported, the module."""
    packages = ["nova3d"]
    for module in pkgutil.walk_packages(nova3d.__path__, "nova3d."):
        packages += [module.name] if module.ispkg and "blender_worker" not in module.name else []
    assert len(packages) > 5
    for name in packages:
        package = importlib.import_module(name)
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        assert not modules & set(getattr(package, "__all__", ())), name
