"""Saved adapters in use: loaded, asked for predictions, certified, exported and pushed."""
