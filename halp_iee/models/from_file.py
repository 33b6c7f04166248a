"""A network that a function in a person's own file builds."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from halp_iee.errors import HalpError, UsageError


def looks_like_file(spec: str) -> bool:
    """Whether `spec` means `path/to/file.py:function`."""
    return spec.endswith(".py") or ".py:" in spec


def from_file(spec: str, **options: Any) -> nn.Module:
    """Run the file and call the function.

    The file is the person's own code and is run as such, with its folder on the import path while
    it is being read.

    Args:
        spec: `path/to/file.py:function`.
        options: passed by keyword where the function has a parameter of that name and the value
            is not None; dropped where it does not.

    Raises:
        UsageError: no such file or function; the file or the function raises; what the function
            returns is no `nn.Module`.
    """
    path_text, _, name = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise UsageError(f"the network {spec!r} cannot be built", f"there is no file {path}", "check the path")
    if not name:
        raise UsageError(f"the network {spec!r} cannot be built", "it names no function", f"write {path}:FUNCTION")
    function = getattr(_run(path), name, None)
    if function is None:
        raise UsageError(f"the network {spec!r} cannot be built", f"{path} defines no {name!r}", "check the name")
    if isinstance(function, nn.Module):
        raise UsageError(
            f"the network {spec!r} cannot be built", f"{name!r} is a network, not a function that builds one",
            f"write a function that returns it: def build_{name}(): ...",
        )  # fmt: skip
    if not callable(function):
        raise UsageError(
            f"the network {spec!r} cannot be built", f"{name!r} is a {type(function).__name__}, not a function",
            "name a function that returns an nn.Module",
        )  # fmt: skip
    try:
        model = function(**_accepted(function, options))
    except HalpError:
        raise
    except Exception as error:
        raise UsageError(
            f"the network {spec!r} cannot be built",
            f"{name}() raised {_where(error, path)}",
            "correct the function",
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"the network {spec!r} cannot be built", f"{name}() returned a {type(model).__name__}",
            "return an nn.Module",
        )  # fmt: skip
    return model


def _run(path: Path) -> ModuleType:
    # The name carries the path, so that two files called model.py do not take each other's place.
    name = f"halp_iee_user_{zlib.crc32(str(path.resolve()).encode()):08x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"the file {path} cannot be run", f"it raised {_where(error, path)}", "correct it") from error
    finally:
        sys.path.remove(folder)
    return module


def _where(error: BaseException, path: Path) -> str:
    """The error in one line, with the last line of the person's own file that it passed through."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None and not isinstance(error, SyntaxError):
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")


def _accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    # `**kwargs` gets nothing: it is mostly handed on to something that knows other names.
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in options.items() if value is not None and key in named}
