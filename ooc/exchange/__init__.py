"""Indexes of plain faiss: written as one of its files, and taken over from one."""
