"""From checkpoints to a file: fit, quantise, write; and further steps of a run."""
