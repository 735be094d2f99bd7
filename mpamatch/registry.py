"""Classes by name: our own, and those that other packages bring through an entry point."""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from mpamatch.errors import InputError, unknown

Kind = TypeVar("Kind", bound=type[Any])


class Registry(Mapping[str, Kind], Generic[Kind]):
    """A mapping from name to class, sorted by name.

    Looking up a class of another package imports it, and raises InputError if it cannot be imported or is no `base` of
    that name.

    Args:
        base: the class that all derive from; each has a class attribute `name`.
        field: the field of the configuration whose value is a name, for messages.
        group: the entry-point group through which other packages add classes: `name = "package.module:Class"`. They
            are imported when they are looked up.
    """

    def __init__(self, base: Kind, field: str, group: str):
        self.base, self.field, self.group = base, field, group
        self._classes: dict[str, Kind] = {}

    def register(self, cls: Kind) -> Kind:
        """Adds a class under its `name`; a decorator.

        Args:
            cls: a subclass of `base`.

        Returns:
            The class itself.

        Raises:
            ValueError: the name is taken by another class.
        """
        known = self._classes.get(cls.name)
        if known is not None and f"{known.__module__}.{known.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
            raise ValueError(f"{self.field} {cls.name!r} is {known.__module__}.{known.__qualname__} already.")
        self._classes[cls.name] = cls
        return cls

    def find(self, name: str) -> Kind:
        """Looks up a class.

        Args:
            name: of the class, as the configuration says it.

        Returns:
            The class.

        Raises:
            InputError: there is none of that name (the message has the nearest one), or it cannot be imported.
        """
        if name not in self:
            raise unknown(self.field, name, self)
        return self[name]

    def __getitem__(self, name: str) -> Kind:
        if name not in self._classes:
            self._classes[name] = self._load(self._entry_points()[name])
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._entry_points()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._classes, *self._entry_points()}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _load(self, point: EntryPoint) -> Any:
        try:
            cls = point.load()
        except Exception as error:  # whatever another package raises while it is imported
            raise InputError(
                f"{self.field}: {point.name!r} stands for {point.value}, which cannot be imported ({error})."
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, self.base)) or getattr(cls, "name", None) != point.name:
            raise InputError(
                f"{self.field}: {point.name!r} stands for {point.value}, expected a {self.base.__name__} of that name."
            )
        return cls
