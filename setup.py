"""Packages and their files; everything else about the distribution is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

# A clone keeps configs and assets at its top. A wheel has them inside the package, where nova3d.utils.resources looks.
RESOURCES = {"nova3d.configs": "configs", "nova3d.assets": "assets"}

setup(
    packages=[*find_namespace_packages(include=["nova3d*"]), *RESOURCES],
    package_dir=RESOURCES,
    package_data={
        **{package: ["**/*"] for package in RESOURCES},
        "nova3d": ["py.typed"],
        "nova3d.app": ["*.css"],
        "nova3d.report": ["*.css", "*.js", "vendor/*"],
    },
)
