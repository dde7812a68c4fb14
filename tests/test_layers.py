"""A module imports only from lower layers; every import in the package is parsed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Module or package -> layer. The longest match decides; inside one entry everything may import everything.
LAYERS = {
    "avtool.errors": 0,
    "avtool.interrupts": 0,
    "avtool.allocator": 0,
    "avtool.calibration": 0,
    "avtool.timeline": 0,
    "avtool.timegrid": 0,
    "avtool.vocabulary": 0,
    "avtool.settings": 0,
    "avtool.files": 0,
    "avtool.media": 1,
    "avtool.weights": 1,
    "avtool.tensorfiles": 1,
    "avtool.download": 1,
    "avtool.formats": 1,
    "avtool.features": 2,
    "avtool.models": 2,
    "avtool.detect": 3,
    "avtool.evaluation": 3,
    "avtool.session": 3,
    "avtool.extraction": 3,
    "avtool.pipeline": 4,
    "avtool.batch": 5,
    "avtool.training": 5,
    "avtool.cli": 6,
    "avtool.__main__": 6,
    "avtool": 6,  # __init__: names that load on first use
}

# What a layer may import from outside the standard library, besides NumPy; higher layers may use what lower ones may.
FOREIGN = {
    0: set[str](),
    1: {"av", "safetensors"},
    2: {"torch", "torchvision", "torchaudio", "panns_inference", "h5py"},
}
LIGHT = {
    "avtool.detect": set[str](),
    "avtool.evaluation": {"matplotlib"},
    "avtool.formats": {"matplotlib"},
}  # NumPy alone
SMALL = {
    "avtool.__main__",
    "avtool.errors",
    "avtool.interrupts",
    "avtool.allocator",
}  # standard library alone, at any depth
INSIDE_FUNCTIONS = {
    "avtool.tensorfiles": {"torch", "h5py"},
    "avtool.weights": {"torch"},
}  # a checkpoint cannot be read without


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(repo: Path) -> dict[str, Path]:
    return {module_name(file, repo): file for file in sorted((repo / "avtool").rglob("*.py"))}


def entry_of(module: str) -> str:
    while module not in LAYERS and "." in module:
        module = module.rpartition(".")[0]
    return module


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that can run, with True for those inside a function."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        yield child, inside
        yield from nodes(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imports(name: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[str, int, bool]]:
    """Modules that a file imports: name, line, and whether only inside a function."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node, inside in nodes(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known or base == "avtool" else base), node.lineno, inside


def test_every_module_has_a_layer(repo: Path) -> None:
    loose = [name for name in modules(repo) if entry_of(name) == "avtool" and name != "avtool"]
    assert not loose, f"not in the layer table: {loose}"


def test_imports_point_down(repo: Path) -> None:
    known = modules(repo)
    wrong = []
    for name, file in known.items():
        own = entry_of(name)
        for target, line, _ in imports(name, file, known):
            other = entry_of(target)
            if not target.startswith("avtool") or other in (own, "avtool"):
                continue  # the package itself holds only its version and lazy names
            same_layer = LAYERS[own] == LAYERS[other]
            if LAYERS[other] > LAYERS[own] or (same_layer and LAYERS[own] == 5):
                wrong.append(f"{name}:{line} (layer {LAYERS[own]}) imports {target} (layer {LAYERS[other]})")
    assert not wrong, "\n".join(wrong)


def test_no_circles(repo: Path) -> None:
    """Modules of one layer may know each other, but not in a circle at import time."""
    known = modules(repo)
    graph = {
        name: {target for target, _, inside in imports(name, file, known) if target in known and not inside} - {name}
        for name, file in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            pytest.fail("circle: " + " -> ".join([*trail[trail.index(name) :], name]))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def allowed(module: str) -> set[str]:
    own = entry_of(module)
    layer = LAYERS[own]
    if own in LIGHT:
        return {"numpy", *LIGHT[own]}
    found = {"numpy"}.union(*(names for level, names in FOREIGN.items() if level <= layer))
    if layer >= 5:
        found |= {"ray", "typer", "rich", "fsspec", "pyarrow"}
    return found


def test_foreign_packages_belong_to_their_layer(repo: Path) -> None:
    known = modules(repo)
    wrong = []
    for name, file in known.items():
        for target, line, inside in imports(name, file, known):
            package = target.split(".")[0]
            if package in sys.stdlib_module_names or package == "avtool":
                continue
            late = INSIDE_FUNCTIONS.get(entry_of(name), set()) if inside else set()
            if package not in allowed(name) | late or name in SMALL:
                wrong.append(f"{name}:{line} (layer {LAYERS[entry_of(name)]}) imports {package}")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_click(repo: Path) -> None:
    """Typer vendors it: the name is private."""
    known = modules(repo)
    assert not [n for n, f in known.items() for target, _, _ in imports(n, f, known) if target.split(".")[0] == "click"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("avtool", ("torch", "av", "ray", "numpy", "typer", "rich")),
        ("avtool.__main__", ("torch", "av", "ray", "numpy", "typer", "rich")),
        ("avtool.cli.app", ("torch", "torchvision", "torchaudio", "av", "ray", "librosa", "matplotlib", "h5py")),
        ("avtool.media.child", ("torch", "torchvision", "torchaudio", "ray", "typer", "rich")),
        ("avtool.media", ("torch", "ray", "typer", "rich")),
        ("avtool.weights", ("torch", "av", "ray", "typer", "rich")),
        ("avtool.detect.softnms", ("torch", "av", "ray", "typer", "rich")),
        ("avtool.evaluation", ("torch", "av", "ray", "typer", "rich", "matplotlib")),
        ("avtool.formats", ("torch", "av", "ray", "typer", "rich", "matplotlib")),
        ("avtool.batch.scheduler", ("torch", "av", "ray", "typer", "rich")),
    ],
)
def test_import_stays_light(repo: Path, module: str, heavy: tuple[str, ...]) -> None:
    if module not in modules(repo):
        pytest.skip(f"{module} does not exist yet")
    code = f"import sys, {module}; print(*(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import {module} loads {done.stdout}"


def test_the_parser_sees_what_it_should(tmp_path: Path) -> None:
    """The test above is only as good as this."""
    package = tmp_path / "avtool" / "media"
    package.mkdir(parents=True)
    file = package / "probe.py"
    file.write_text(
        "import av, os.path\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import ray\n"
        "from avtool import cli, errors\n"
        "from . import frames\n"
        "from ..cli.app import run\n"
        "def f():\n    import torch\n    return lambda: __import__('x')\n"
    )
    for name in ("avtool/media/__init__.py", "avtool/media/frames.py", "avtool/cli/app.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = list(imports("avtool.media.probe", file, modules(tmp_path)))
    assert [(target, inside) for target, _, inside in found] == [
        ("av", False),
        ("os.path", False),
        ("typing", False),
        ("avtool.cli", False),
        ("avtool.errors", False),
        ("avtool.media.frames", False),
        ("avtool.cli.app", False),
        ("torch", True),
    ]
