"""Bytes in and out: URLs, ranged reads, retries, caches, prefetching, uploads. Knows no tensors."""
