"""Interfaces of existing tools: fsspec, transformers, torch.distributed.checkpoint. Each is imported when used."""
