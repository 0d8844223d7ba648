"""Faster array kernels behind single ops, one file a backend. No derivative is stated here."""
