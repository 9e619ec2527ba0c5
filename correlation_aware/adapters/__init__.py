"""Backbones for other people's trackers; one file a tracker, which imports that tracker's code."""
