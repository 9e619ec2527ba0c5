"""Plug-ins: packages of other people that add models, heads, readers and weights.

A package names a module under the entry-point group `correlation_aware.plugins`. The module is imported the
first time somebody asks for names; its decorators do the rest. See docs/plugins.md.
"""

import logging
import threading
import warnings
from importlib.metadata import entry_points

__all__ = ["GROUP", "load_plugins", "plugin_packages"]

GROUP = "correlation_aware.plugins"

_logger = logging.getLogger(__name__)
_lock = threading.RLock()  # a plug-in may ask for names while it is imported
_packages: set[str] = set()
_started = False


def load_plugins() -> None:
    """Imports every installed plug-in, once.

    A plug-in that raises is reported by name in a `RuntimeWarning`; the others and this package work on.
    """
    global _started
    with _lock:
        if _started:
            return
        _started = True
        for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
            try:
                point.load()
            except Exception as error:  # whatever somebody's package raises
                owner = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
                warnings.warn(
                    f"The plug-in {point.name!r} ({point.value}){owner} cannot be used, and what it adds is "
                    f"missing: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
                continue
            _packages.add(point.module.partition(".")[0])
            _logger.debug("plug-in %s: %s", point.name, point.value)


def plugin_packages() -> frozenset[str]:
    """Names of the top-level packages that plug-ins came from."""
    load_plugins()
    return frozenset(_packages)
