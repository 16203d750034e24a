"""Training: from shards or cached latents to a saved pipeline. `trainer.py` is the loop, `setup.py` builds a run."""
