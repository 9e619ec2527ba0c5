"""Backbones for other people's trackers; one file a tracker, which imports that tracker's code.

To add one, see `docs/adapters.md`, section `Write an adapter for this package`.
"""
