#!/usr/bin/env python
"""Ablations: arms of the attention trained alike and scored, or arms of the fusion on planted faults."""

from nova3d.cli import main

if __name__ == "__main__":
    main("ablate")
