#!/usr/bin/env python
"""Write a trained model as it is shipped: fp16 safetensors and their checksums."""

from nova3d.cli import main

if __name__ == "__main__":
    main("export")
