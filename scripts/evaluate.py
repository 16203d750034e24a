#!/usr/bin/env python
"""Score predictions against references and print the table."""

from nova3d.cli import main

if __name__ == "__main__":
    main("evaluate")
