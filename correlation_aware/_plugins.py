"""Plug-ins: packages of other people that add models, heads, readers and weights.

A package names a module under the entry-point group `correlation_aware.plugins`. The module is imported the
first time somebody asks for names; its decorators do the rest. See docs/plugins.md.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from timm.models import _registry as timm_registry

__all__ = ["GROUP", "is_loading", "load_plugins", "plugin_packages"]

GROUP = "correlation_aware.plugins"

_logger = logging.getLogger(__name__)
_lock = threading.RLock()  # a plug-in may ask for names while it is imported
_packages: set[str] = set()
_pending: list[EntryPoint] | None = None  # plug-ins to import; None before the first question
_failures: list[str] = []  # warnings to give
_loading = False


def load_plugins() -> None:
    """Imports the families of this package and every installed plug-in, once.

    A plug-in that raises is reported by name in a `RuntimeWarning`, and all that it registered is taken back;
    the others and this package work on. After an interruption (Ctrl-C) the next call goes on with the plug-in
    that was interrupted.
    """
    global _pending, _loading
    # the families of this package first: in the command line nothing has imported them yet
    import_module("correlation_aware.zoo")
    with _lock:
        if _loading:
            return
        _loading = True
        try:
            if _pending is None:
                _pending = sorted(entry_points(group=GROUP), key=lambda point: point.name)
            while _pending:
                _load(_pending[0])
                del _pending[0]
        finally:
            _loading = False
        while _failures:  # after the last import: with `-W error` a warning is an exception
            warnings.warn(_failures.pop(0), RuntimeWarning, stacklevel=3)


def is_loading() -> bool:
    """Whether a plug-in is being imported, so that what it adds is not complete."""
    return _loading


def plugin_packages() -> frozenset[str]:
    """Names of the top-level packages that plug-ins came from."""
    load_plugins()
    return frozenset(_packages)


def _load(point: EntryPoint) -> None:
    try:
        with _taken_back_on_error(point):
            point.load()
    except (Exception, SystemExit) as error:  # whatever somebody's package raises
        owner = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
        _failures.append(
            f"The plug-in {point.name!r} ({point.value}){owner} cannot be used, and what it adds is "
            f"missing: {type(error).__name__}: {error}"
        )
        return
    _packages.add(point.module.partition(".")[0])
    _logger.debug("plug-in %s: %s", point.name, point.value)


@contextmanager
def _taken_back_on_error(point: EntryPoint) -> Iterator[None]:
    """Takes back what a plug-in registered if it raises, and forgets its modules for another import."""
    tables = _tables()
    before, modules = [_copied(table) for table in tables], set(sys.modules)
    try:
        yield
    except BaseException:
        for table, entries in zip(tables, before):
            table.clear()
            table.update(entries)
        # other plug-ins that this one imported, whose entries are gone too, will be imported again
        packages = {other.module.partition(".")[0] for other in (point, *(_pending or ()))}
        for name in set(sys.modules) - modules:
            if name.partition(".")[0] in packages:
                del sys.modules[name]
        raise


def _tables() -> list[Any]:
    """All tables that plug-ins add to, with those of timm: dictionaries and sets."""
    from correlation_aware.data.videos import readers
    from correlation_aware.models import registry
    from correlation_aware.weights import manifest

    timm_tables = [
        value
        for name, value in vars(timm_registry).items()
        if isinstance(value, (dict, set)) and not name.startswith("__")
    ]
    ours = [registry._MODELS, registry._REPORTED, registry._HEADS, registry._FORMATS]
    return [*ours, readers.READERS, manifest._registered, *timm_tables]


def _copied(table: Any) -> Any:
    if isinstance(table, set):
        return set(table)
    return {key: set(value) if isinstance(value, set) else value for key, value in table.items()}
