"""The index directory on disk: where things lie, their records, and how they are read."""
