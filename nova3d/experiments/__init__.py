"""Studies above all rooms: planted faults, ablations, and the paper's tables made anew."""
