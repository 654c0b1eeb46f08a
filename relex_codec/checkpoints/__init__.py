"""Checkpoints and runs of them on disk and in object stores: how they are found, opened and read."""
