"""Shoal against its peers."""
