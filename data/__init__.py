"""Data sets, transforms and batches."""
