#!/usr/bin/env python
"""Generate 16 views and 16 normal maps of the object in a picture."""

from nova3d.cli import main

if __name__ == "__main__":
    main("sample")
