"""What every layer uses: dtypes, digests, names of files, indexing, threads, cancellation. No I/O, nothing of the format."""
