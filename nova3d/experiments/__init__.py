"""Studies that use all other packages: ablations, planted faults, the paper's tables."""
