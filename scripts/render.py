#!/usr/bin/env python
"""Render meshes into training shards: plan, run, look, mend, pack, check."""

from nova3d.cli import main

if __name__ == "__main__":
    main("render")
