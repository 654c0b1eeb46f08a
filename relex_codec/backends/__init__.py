"""Single requests to storage: one attempt each, with what the answer tells of the object (see storage/remote.py for the rest)."""
