"""What an installation exposes, what an import costs, and which way imports go."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_the_wheel_exposes_exactly_the_library_and_the_profiler(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"halp_iee", "halp_profiler"}


def test_the_wheel_carries_the_shipped_tables_inside_the_profiler(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {p.name for p in (ROOT / "latency_tables").iterdir() if p.is_file()}
    assert shipped
    assert {f"halp_profiler/_tables/{name}" for name in shipped} <= set(names)


def test_the_checkout_leaks_no_other_importable_name() -> None:
    code = (
        "import importlib.util as u; print([n for n in ('tools', 'docs', 'latency_tables', 'tests') if u.find_spec(n)])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == "[]"


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_profiler_names_nothing_that_a_bare_device_lacks() -> None:
    for path in (ROOT / "profiler" / "halp_profiler").rglob("*.py"):
        assert not _imported(path) & {"halp_iee", "torchvision", "ortools"}, path


def test_the_profiler_runs_where_torch_and_the_library_cannot_be_imported() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'ortools', 'halp_iee'): sys.modules[name] = None\n"
        "import halp_profiler.__main__, halp_profiler.table, halp_profiler.timing, halp_profiler.devices\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["halp_iee", "halp_profiler"])
def test_an_import_neither_loads_torch_nor_touches_cuda(package: str) -> None:
    code = f"import {package}, sys; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_using_the_public_names_does_not_initialise_cuda() -> None:
    code = (
        "import halp_iee, torch\n"
        "assert all(hasattr(halp_iee, name) for name in halp_iee.__all__)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_loads_no_heavy_library() -> None:
    """The bar is two seconds; what makes it slow is a heavy import, so that is what is asserted."""
    code = (
        "import sys\n"
        "from halp_iee.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'torch', 'pandas', 'onnxruntime', 'plotly', 'scipy', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"halp-iee --help took {time.monotonic() - start:.2f} s")


def test_solve_can_be_called_whatever_was_imported_before() -> None:
    """`halp_iee.solve` is a function and a package of that name."""
    for first in ("import halp_iee", "import halp_iee.solve", "from halp_iee.solve import Problem; import halp_iee"):
        subprocess.run([sys.executable, "-c", f"{first}; assert callable(halp_iee.solve)"], check=True)
