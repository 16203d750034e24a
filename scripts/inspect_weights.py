#!/usr/bin/env python
"""Print what loading SVD does with every key, from the files' headers alone."""

from nova3d.cli import main

if __name__ == "__main__":
    main("inspect")
