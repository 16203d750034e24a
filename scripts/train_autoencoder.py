#!/usr/bin/env python
"""Train the autoencoder that turns views and normal maps into latents; running it again resumes."""

from nova3d.cli import main

if __name__ == "__main__":
    main("train-autoencoder")
