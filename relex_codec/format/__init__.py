"""FORMAT.md in code: header, manifest, records, chunks, packings; a reader and a writer of files."""
