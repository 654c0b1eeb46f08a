"""What a user holds: a run that is open, its steps as tensors, checkpoints and files."""
