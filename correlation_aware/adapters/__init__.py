"""Drop-in backbones for other people's trackers; one thin file per tracker, imported only on use."""
