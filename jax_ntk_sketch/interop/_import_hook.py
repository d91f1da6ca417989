"""An import of a package whose modules see names that other modules lack.

Neural Tangents reads names that JAX has moved since. If JAX were patched during the
import, every other thread would see the patch, and code that looks up a name when it is
called would still not find it. Python lets each module have its own builtins, and with
them its own `__import__`. The modules of the package get one that returns *views*,
which look like the modules asked for and have the missing names as well. No other code
sees the views, and no module is changed.
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

    A name that the module defines has precedence. A name that its `__getattr__`
    computes has not, because that is how JAX keeps names that it warns about.
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
    """Return views of the modules that `missing` names, and of their parents.

    Args:
      missing: for the dotted name of each module, which need not exist, the names that
        it should have and their values.

    Returns:
      The views by dotted name. The view of a parent has the views of its children as
      attributes.
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
    """A finder of the modules of `package`, which see `views` when they import.

    It must be at the head of `sys.meta_path` while the package is imported.

    Args:
      package: the top-level name of the package.
      views: the views that `make_views` returns.
      left_out: the dotted names of modules of the package that must not run, and the
        reason for each. An empty module takes its place and raises the reason on use.
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
    """A loader that runs a module as `loader` does, with other builtins."""

    def __init__(self, loader: importlib.abc.Loader, builtins: Names) -> None:
        self._loader = loader
        self._builtins = builtins

    def create_module(
        self, spec: importlib.machinery.ModuleSpec
    ) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        # From here on the module shows its true loader to code that asks for its
        # source, for example a traceback.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__dict__["__builtins__"] = self._builtins
        self._loader.exec_module(module)


class _LeftOut(importlib.abc.Loader):
    """A loader of an empty module whose use raises AttributeError with `reason`."""

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
    """Return an `__import__` that returns the view of a module if there is one."""

    def __import__(name: str, *args: Any, **kwargs: Any) -> types.ModuleType:
        try:
            module = builtins.__import__(name, *args, **kwargs)
        except ModuleNotFoundError as error:
            if error.name is None or error.name not in views:
                raise
            return views[error.name]
        return views.get(module.__name__, module)

    return __import__
