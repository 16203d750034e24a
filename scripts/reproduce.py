#!/usr/bin/env python
"""Make a table of the paper anew: generate, reconstruct, score, and print ours beside the paper's."""

from nova3d.cli import main

if __name__ == "__main__":
    main("reproduce")
