"""What several test modules use: plain re-implementations, runs on disk, servers, faulty files."""
