#!/usr/bin/env python
"""Train NovaUNet on rendered views; running the same command again resumes."""

from nova3d.cli import main

if __name__ == "__main__":
    main("train")
