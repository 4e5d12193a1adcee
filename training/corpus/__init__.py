"""Texts and labels: files, folders, hub data sets and presets become one checked `Corpus`."""
