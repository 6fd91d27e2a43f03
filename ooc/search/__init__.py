"""Searching an index directory: coarse, prefetch, scan, prefetch rows, re-rank."""
