#!/usr/bin/env python
"""Encode a training config's shards once, for training from data.cache."""

from nova3d.cli import main

if __name__ == "__main__":
    main("cache-latents")
