"""Stand-ins for two packages that SGLang imports and, on a CPU, never calls: `torchvision` and `sgl_kernel`.

Installed as `sitecustomize.py` into the environment of `install_sglang.sh`, and nowhere else. Anything that does
call into them says so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types

STAND_INS = ("torchvision", "sgl_kernel")
ABSENT = ("sgl_kernel.scalar_type",)  # SGLang has its own where this one is missing
ASKERS = "transformers/utils/import_utils.py"  # asks what is installed: must hear the truth
LOOK_BACK = 6  # frames


class _Base:
    """Any class of a stand-in; others may derive from it, with whatever arguments."""

    def __init_subclass__(cls, **_: object) -> None:
        super().__init_subclass__()


class _StandIn(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__file__ = __file__

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if full in sys.modules:
            return sys.modules[full]
        made: object = type(name, (_Base,), {"__module__": self.__name__})
        if not name[:1].isupper():

            def made(*_: object, **__: object) -> object:
                raise RuntimeError(f"{full} is a stand-in: this environment is for tests on a CPU")

        self.__dict__[name] = made
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name in ABSENT:
            raise ModuleNotFoundError(name)
        if name.split(".")[0] not in STAND_INS or _asked_by_transformers():
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _asked_by_transformers() -> bool:
    frame = sys._getframe(1)
    for _ in range(LOOK_BACK):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith(ASKERS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


sys.meta_path.append(_Finder())
