"""Render jobs: many meshes to training shards, on one machine, SLURM or Ray."""
