"""A run is a directory: config, checkpoints, event log, artifact, exports, result and report."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from halp_iee.errors import HalpError, UsageError
from halp_profiler.files import whole


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with whole(path) as partial:
        partial.write_text(text)


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file of this project, and check that it holds a value of the type `kind`.

    Raises:
        HalpError: missing, unreadable, not JSON, or JSON of something else.
    """
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text()))
    except FileNotFoundError:
        raise HalpError(
            f"cannot read {path}", "the file does not exist", "check the path, or run the step that makes it"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise HalpError(
            f"cannot use {path}",
            f"it does not hold what belongs there ({f'{at}: ' if at else ''}{first['msg']})",
            "delete it and run the step that makes it again",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise HalpError(
            f"cannot read {path}",
            f"it is not a JSON file that can be read ({error})",
            "delete it and run the step that makes it again",
        ) from None


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class RunDirectory:
    """Where everything about one run lies.

    Args:
        root: the directory; made when it is missing.

    Raises:
        HalpError: the path is a file, or cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise HalpError(
                f"cannot use {root} as a run directory", "a file stands in the way", "give another --out"
            ) from None
        except OSError as error:
            raise HalpError(
                f"cannot make the run directory {root}",
                error.strerror or str(error),
                "give an --out that can be written",
            ) from None
        if not os.access(root, os.W_OK):
            raise HalpError(
                f"cannot write to the run directory {root}", "it is read-only", "give an --out that can be written"
            )

    config = property(lambda self: self.root / "config.json")
    dense = property(lambda self: self.root / "dense")
    slim = property(lambda self: self.root / "slim")
    artifact = property(lambda self: self.root / "model.safetensors")
    onnx = property(lambda self: self.root / "model.onnx")
    dense_onnx = property(lambda self: self.root / "dense.onnx")
    result = property(lambda self: self.root / "result.json")
    report = property(lambda self: self.root / "report.html")
    evidence = property(lambda self: self.root / "evidence.json")
    calibration = property(lambda self: self.root / "calibration.json")
    table = property(lambda self: self.root / "table.jsonl")
    exports = property(lambda self: self.root / "exports.json")
    hub = property(lambda self: self.root / "hub")
    license = property(lambda self: self.root / "license.txt")
    seconds = property(lambda self: self.root / "seconds.json")
    tensorboard = property(lambda self: self.root / "tensorboard")

    def claim(self, config: Mapping[str, Any]) -> None:
        """Record what the run is, or check that the directory holds the same run.

        A run that failed before it had made anything leaves no claim.

        Raises:
            HalpError: the directory belongs to a run with other settings.
        """
        wanted = json.loads(json.dumps(config))
        if not self.config.exists() or not self._begun():
            write_json(self.config, wanted)
            return
        there = read_json(self.config, dict[str, Any])
        differing = sorted(k for k in {*wanted, *there} if wanted.get(k) != there.get(k))
        if differing:
            key = differing[0]
            raise UsageError(
                f"the directory {self.root} holds another run",
                f"its {key} is {there.get(key)!r} and this one's is {wanted.get(key)!r}",
                "give another --out, or --fresh to replace it",
            )

    def _begun(self) -> bool:
        """Whether a run has come as far as to have something to lose."""
        return any(path.exists() for path in (self.calibration, self.dense, self.slim, self.result))

    def keep_table(self, path: Path) -> None:
        """Keep a copy of the latency table that the run used."""
        if path.resolve() != self.table.resolve():
            with whole(self.table) as partial:
                shutil.copyfile(path, partial)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second process.

        Raises:
            HalpError: another process is at work on it.
        """
        with open(self.root / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HalpError(
                    f"cannot work in {self.root}",
                    "another process is at work on this run",
                    "wait for it, or give another --out",
                ) from None
            yield

    def clear(self) -> None:
        """Remove what a run of this tool leaves; nothing else that lies in the directory."""
        files = (self.config, self.artifact, self.onnx, self.dense_onnx, self.result, self.report)
        for path in (*files, self.evidence, self.calibration, self.table, self.seconds, self.exports, self.license):
            path.unlink(missing_ok=True)
        for folder in (self.dense, self.slim, self.tensorboard, self.hub):
            shutil.rmtree(folder, ignore_errors=True)
