#!/usr/bin/env python
"""Fuse a folder of views into a textured mesh."""

from nova3d.cli import main

if __name__ == "__main__":
    main("reconstruct")
