"""Old names of dataclass fields, which keep working for one release with a `DeprecationWarning`."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["current_fields", "renamed_fields"]

T = TypeVar("T")


def renamed_fields(**new_names: str) -> Callable[[type[T]], type[T]]:
    """Class decorator of a dataclass: the constructor takes, and instances have, old field names too.

    Args:
        **new_names: Current name of the field for each old name.
    """

    def decorate(cls: type[T]) -> type[T]:
        init: Any = cls.__init__

        @functools.wraps(init)
        def __init__(self: T, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **current_fields(cls, kwargs, stacklevel=4))

        cls.__init__ = __init__  # type: ignore[method-assign, assignment]
        cls._renamed_fields = new_names  # type: ignore[attr-defined]
        for old, new in new_names.items():
            setattr(cls, old, property(functools.partial(_read, old, new)))
        return cls

    return decorate


def current_fields(cls: type, values: Mapping[str, Any], stacklevel: int = 3) -> dict[str, Any]:
    """Values by field name, old names replaced by the current ones.

    Args:
        cls: A dataclass, with or without `renamed_fields`.
        values: Values by old or current field name.
        stacklevel: Stack level of the warning, see `warnings.warn`.

    Raises:
        ValueError: Values for both names of one field.
    """
    renamed: Mapping[str, str] = getattr(cls, "_renamed_fields", {})
    for old in renamed.keys() & values.keys():
        if renamed[old] in values:
            raise ValueError(f"{old!r} is the old name of {renamed[old]!r}: pass only {renamed[old]!r}.")
        _warn(cls, old, renamed[old], stacklevel)
    return {renamed.get(name, name): value for name, value in values.items()}


def _read(old: str, new: str, instance: Any) -> Any:
    _warn(type(instance), old, new, stacklevel=3)
    return getattr(instance, new)


def _warn(cls: type, old: str, new: str, stacklevel: int) -> None:
    message = (
        f"{cls.__name__}.{old} is now called {new}; the old name will be removed after the next release."
    )
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
