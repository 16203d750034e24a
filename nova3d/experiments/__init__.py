"""Studies that use all other packages: ablations, injected faults, the paper's tables."""
