#!/usr/bin/env python
"""Measure how far a model's views can be believed, and keep that in the model's folder for the fusion."""

from nova3d.cli import main

if __name__ == "__main__":
    main("calibrate")
