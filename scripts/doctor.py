#!/usr/bin/env python
"""Report what this machine has and lacks for nova3d."""

from nova3d.cli import main

if __name__ == "__main__":
    main("doctor")
