"""What every layer uses: dtypes, digests, file names, indexing, threads, cancellation. No I/O, no format."""
