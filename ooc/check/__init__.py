"""Checking an index: what lies on disk against what its records say, and against the rows themselves."""
