#!/usr/bin/env python
"""One picture to 16 views, 16 normal maps, a textured mesh and a report."""

from nova3d.cli import main

if __name__ == "__main__":
    main("generate")
