"""Imports a package as if the modules it needs had more names than they have.

Neural Tangents reads names that JAX has moved since. Patching JAX for the time of
the import would be seen by every other thread, and code that looks a name up when
it is called would still miss it. Python lets each module have its own builtins,
hence its own `__import__`: the modules of the package get one that hands them
*views*, which look like the modules asked for and know the missing names too.
Nothing else sees the views, and no module is changed.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Names = Mapping[str, Any]


class View(types.ModuleType):
    """A module together with names that it may lack.

    The names that the module defines come first. Those that it computes on request
    do not count: that is how JAX keeps a name that it warns about.
    """

    def __init__(self, module: types.ModuleType, missing: Names) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__["_view"] = (module, missing)

    def __getattr__(self, name: str) -> Any:
        module, missing = self.__dict__["_view"]
        if name in missing and name not in vars(module):
            return missing[name]
        return getattr(module, name)

    def __dir__(self) -> Iterator[str]:
        module, missing = self.__dict__["_view"]
        return iter(sorted({*dir(module), *missing}))


def make_views(missing: Mapping[str, Names]) -> dict[str, View]:
    """Views of the modules named by the keys of `missing` and of their parents.

    Args:
      missing: from the dotted name of a module, which need not exist, to the
        names it should have and their values.

    Returns:
      From dotted names to views. The view of a parent has the views of its
      children as attributes.
    """
    names = set()
    for name in missing:
        parts = name.split(".")
        names |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    views = {}
    for name in sorted(names):  # parents before children
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            module = types.ModuleType(name)
        views[name] = View(module, missing.get(name, {}))
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(views[parent], child, views[name])
    return views


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of `package` and lets them see `views` when they import.

    Put it at the head of `sys.meta_path` while the package is being imported.

    Args:
      package: top-level name of the package.
      views: what `make_views` returns.
      left_out: from dotted names of modules of the package that shall not run to
        the reason why; an empty module that tells it on use stands for each.
    """

    def __init__(
        self, package: str, views: Mapping[str, View], left_out: Mapping[str, str]
    ) -> None:
        self._package = package
        self._left_out = left_out
        self._builtins = {**vars(builtins), "__import__": _importer(views)}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != self._package:
            return None
        if fullname in self._left_out:
            loader = _LeftOut(self._left_out[fullname])
            return importlib.machinery.ModuleSpec(fullname, loader)
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._builtins)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Runs a module as `loader` does, but with builtins of its own."""

    def __init__(self, loader: importlib.abc.Loader, builtins: Names) -> None:
        self._loader = loader
        self._builtins = builtins

    def create_module(
        self, spec: importlib.machinery.ModuleSpec
    ) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        # From here on the module shows its true loader to whoever asks for its
        # source, say a traceback.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__dict__["__builtins__"] = self._builtins
        self._loader.exec_module(module)


class _LeftOut(importlib.abc.Loader):
    """Makes an empty module whose use raises AttributeError with `reason`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        name, reason = module.__name__, self._reason

        def __getattr__(attribute: str) -> Any:
            raise AttributeError(f"{name}.{attribute} is not available: {reason}")

        module.__dict__["__getattr__"] = __getattr__


def _importer(views: Mapping[str, View]) -> Callable[..., types.ModuleType]:
    """The `__import__` that returns views where there are some."""

    def __import__(name: str, *args: Any, **kwargs: Any) -> types.ModuleType:
        try:
            module = builtins.__import__(name, *args, **kwargs)
        except ModuleNotFoundError as error:
            if error.name is None or error.name not in views:
                raise
            return views[error.name]
        return views.get(module.__name__, module)

    return __import__
