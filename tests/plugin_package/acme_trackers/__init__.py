"""Acme's models, head, reader and weights; to import them is to register them."""

from acme_trackers import heads, models, readers, timm_models

__all__ = ["heads", "models", "readers", "timm_models"]
