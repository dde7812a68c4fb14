"""Rules that hold for the whole tree: who may write files, who may print, what must be typed and documented."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

# ---------------------------------------------------------------- who writes

WRITING_METHODS = {
    "write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "rename",
    "save", "savez", "savez_compressed", "savetxt", "savefig", "tofile", "save_file", "imwrite", "imsave", "to_csv",
    "to_json", "to_parquet", "memmap", "open_memmap", "extractall", "mkfifo", "copyfile", "copy2",
    "copytree", "move", "rmtree", "urlretrieve", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory", "mkstemp",
    "mkdtemp", "truncate",
}  # fmt: skip
OS_WRITING = {"replace", "rename", "link", "symlink", "mkfifo", "truncate"}
PURE_OWNERS = {"self"}  # a method of our own class with such a name is judged where it is defined
MAY_WRITE = {"avtool/files.py"}


def sources(repo: Path) -> list[Path]:
    return sorted((repo / "avtool").rglob("*.py"))


def short(file: Path, repo: Path) -> str:
    return file.relative_to(repo).as_posix()


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def mode_of(call: ast.Call, position: int) -> str | None:
    """The mode of an open(); None where it is not a constant."""
    given = [k.value for k in call.keywords if k.arg == "mode"] or call.args[position : position + 1]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else None


def goes_into_memory(call: ast.Call, function: ast.AST) -> bool:
    """True for `numpy.save(buffer, ...)` and the like where the target is an open stream, not a path.

    A stream in this project comes from io.BytesIO() or files.atomic_stream().
    """
    if not call.args or not isinstance(call.args[0], ast.Name):
        return False
    name = call.args[0].id
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            if ast.unparse(node.value.func).endswith("BytesIO") and ast.unparse(node.targets[0]) == name:
                return True
        elif isinstance(node, ast.withitem) and isinstance(node.context_expr, ast.Call) and node.optional_vars:
            maker = ast.unparse(node.context_expr.func).rpartition(".")[2]
            if maker in ("BytesIO", "atomic_stream") and ast.unparse(node.optional_vars) == name:
                return True
    return False


def writes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Calls that open, make or replace a file: line and text."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        text = ast.unparse(call.func)
        owner, _, name = text.rpartition(".")
        if name == "open" and owner in ("", "io", "gzip", "bz2", "lzma", "codecs"):
            mode = mode_of(call, 1)
            if mode is None or set(mode) & set("wax+"):
                yield call.lineno, ast.unparse(call)
        elif name in ("open", "fdopen") and owner == "os":
            if name == "open" and not re.search(r"O_RDONLY|os\.devnull", ast.unparse(call)):
                yield call.lineno, ast.unparse(call)
        elif name == "open" and (call.args or call.keywords) and owner not in ("av", "Image"):
            mode = mode_of(call, 0)  # Path.open(mode)
            if mode is not None and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+"):
                yield call.lineno, ast.unparse(call)
        elif owner == "os" and name in OS_WRITING:
            yield call.lineno, ast.unparse(call)
        elif owner and name in WRITING_METHODS and owner not in PURE_OWNERS:
            if name in ("save", "savez", "savez_compressed", "savefig", "memmap") and goes_into_memory(call, tree):
                continue
            if name == "save" and owner.startswith("safetensors"):
                continue  # safetensors.torch.save gives bytes
            yield call.lineno, ast.unparse(call)


def test_only_files_py_writes(repo: Path) -> None:
    found = [
        f"{short(file, repo)}:{line}: {text[:100]}"
        for file in sources(repo)
        if short(file, repo) not in MAY_WRITE
        for line, text in writes(parsed(file))
    ]
    assert not found, "only avtool/files.py may write files:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "open('x', 'w')",
        "open('x', mode='ab')",
        "open('x', mode)",
        "path.open('x')",
        "path.open(mode='r+')",
        "path.write_text('x')",
        "Path('x').write_bytes(b'')",
        "np.save('x.npy', a)",
        "np.savez(path, a=a)",
        "torch.save(state, 'x.pt')",
        "save_file(t, 'x')\nimport safetensors.torch as s\ns.save_file(t, 'x')",
        "os.replace(a, b)",
        "os.open('x', os.O_WRONLY | os.O_CREAT)",
        "figure.savefig('x.png')",
        "frame.to_csv('x')",
        "tempfile.mkdtemp()",
        "shutil.rmtree('x')",
    ],
)
def test_the_scan_finds_writers(code: str) -> None:
    assert list(writes(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "open('x')",
        "open('x', 'rb')",
        "av.open('x')",
        "path.open()",
        "path.open('rb')",
        "os.open('x', os.O_RDONLY)",
        "buffer = io.BytesIO()\nnp.save(buffer, a)",
        "with atomic_stream(path) as stream:\n    np.savez(stream, a=a)",
        "text.replace('a', 'b')",
    ],
)
def test_the_scan_lets_readers_pass(code: str) -> None:
    assert not list(writes(ast.parse(code)))


# ---------------------------------------------------------------- who prints


def test_the_library_never_prints(repo: Path) -> None:
    """Results and messages are the command line's; the library logs and calls the progress hook."""
    allowed = ("avtool/cli/", "avtool/interrupts.py", "avtool/__main__.py")
    # the child talks to its parent through its standard streams
    talks = (*allowed, "avtool/media/child.py")
    found = []
    for file in sources(repo):
        name = short(file, repo)
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "pprint", "input", "breakpoint"):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
            is_stream = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
            if is_stream and not name.startswith(talks):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def test_no_program_is_started_but_our_own(repo: Path) -> None:
    """PyAV does all media work; what is started is Python with avtool in it."""
    found = []
    for file in sources(repo):
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ("os.system", "os.popen") or name.startswith(("os.exec", "os.spawn")):
                found.append(f"{short(file, repo)}:{node.lineno}: {name}")
            if name.startswith("subprocess.") and "sys.executable" not in ast.unparse(file_scope(node, parsed(file))):
                found.append(f"{short(file, repo)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not found, "\n".join(found)


def file_scope(node: ast.AST, tree: ast.Module) -> ast.AST:
    """The smallest function of a module around a line, or the module."""
    line = getattr(node, "lineno", 0)
    around = [
        f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.lineno <= line <= (f.end_lineno or f.lineno)
    ]
    return max(around, key=lambda f: f.lineno, default=tree)


# ---------------------------------------------------------------- typed and documented


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions that a reader of the module may call, and the methods whose name and few lines do not say it all."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                is_method = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
                if is_method and not part.name.startswith("_") and len(part.body) > 3:
                    yield f"{node.name}.{part.name}", part


def all_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_function_is_typed(repo: Path) -> None:
    found = []
    for file in sources(repo):
        for function in all_functions(parsed(file)):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            arguments += [a for a in (function.args.vararg, function.args.kwarg) if a]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or function.returns is None:
                found.append(f"{short(file, repo)}:{function.lineno}: {function.name} {bare or 'returns what?'}")
    assert not found, "\n".join(found)


def test_every_public_function_is_documented(repo: Path) -> None:
    """`forward` of a network is documented by its class; `__init__` too."""
    found = []
    for file in sources(repo):
        for name, function in public_functions(parsed(file)):
            if not ast.get_docstring(function) and name.rpartition(".")[2] not in ("forward", "extra_repr"):
                found.append(f"{short(file, repo)}:{function.lineno}: {name}")
    assert not found, "\n".join(found)


def test_every_module_and_public_class_says_what_it_is(repo: Path) -> None:
    found = []
    for file in sources(repo):
        tree = parsed(file)
        if tree.body and not ast.get_docstring(tree):
            found.append(short(file, repo))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{short(file, repo)}:{node.lineno}: class {node.name}")
    assert not found, "\n".join(found)


def test_functions_stay_short(repo: Path) -> None:
    lengths = [
        ((function.end_lineno or 0) - function.body[bool(ast.get_docstring(function)) :][0].lineno + 1, file, function)
        for file in sources(repo)
        for function in all_functions(parsed(file))
        if function.body[bool(ast.get_docstring(function)) :]
    ]
    lengths.sort(key=lambda item: item[0])
    median = lengths[len(lengths) // 2][0]
    long = [f"{short(file, repo)}: {function.name} ({n} lines)" for n, file, function in lengths if n > 40]
    assert median <= 10, f"the median function has {median} lines"
    assert len(long) <= max(3, len(lengths) // 100), "too many long functions:\n" + "\n".join(long)


def test_public_names_exist(repo: Path) -> None:
    import avtool

    homes = avtool._HOMES
    assert set(avtool.__all__) == {*homes, "__version__"}
    assert dir(avtool) == sorted(avtool.__all__)
    for name, (module, _) in homes.items():
        if (repo / (module.replace(".", "/") + ".py")).is_file():
            assert getattr(avtool, name) is not None
    with pytest.raises(AttributeError):
        _ = avtool.nothing


# ---------------------------------------------------------------- the package


def test_version_is_one(repo: Path) -> None:
    import avtool

    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    assert avtool.__version__ == project["version"]
    assert project["scripts"] == {"avtool": "avtool.__main__:main"}


def test_pins_are_the_tested_triple(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    assert {"torch~=2.11.0", "torchvision~=0.26.0", "torchaudio~=2.11.0", "av>=18.1,<19"} <= set(
        project["dependencies"]
    )


def test_constraints_cover_what_is_asked_for(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pinned = re.findall(r"^([a-z0-9-]+)==\d", (repo / "constraints.txt").read_text(), re.MULTILINE)
    names = {re.split(r"[<>=~\[ ]", requirement)[0] for requirement in asked} - {"avtool"}
    assert names <= set(pinned)


# ---------------------------------------------------------------- the tree


def tracked(repo: Path) -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the list of files is unknown")
    return [repo / name for name in listed.stdout.split("\0") if name and (repo / name).is_file()]


def test_no_paths_or_hosts_of_one_machine(repo: Path) -> None:
    hosts = r"(?:pypi|registry|mirror|proxy)[\w.-]*\.(?:org|com|io|net|internal|local)\b|files\.pythonhosted"
    places = r"/(?:home|Users|root|work|workspace)/[\w.-]+"
    pattern = re.compile(f"{hosts}|{places}")
    found = []
    for file in tracked(repo):
        data = file.read_bytes()
        if b"\0" in data or file.name == "LICENSE" or file == Path(__file__):
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{short(file, repo)}:{number}: {match[0]}")
    assert not found, "\n".join(found)


def test_the_tree_is_small(repo: Path) -> None:
    large = [f"{short(f, repo)}: {f.stat().st_size / 1e6:.1f} MB" for f in tracked(repo) if f.stat().st_size > 16e6]
    assert not large, "\n".join(large)


def test_shipped_tensors_are_safetensors(repo: Path) -> None:
    pickles = [short(file, repo) for file in tracked(repo) if file.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".bin")]
    assert not pickles


def test_mutants_are_up_to_date() -> None:
    """Each planted fault of `make mutants` still has its line and its tests."""
    from tests.mutants import MUTANTS, faults_in_the_table

    assert len(MUTANTS) >= 12
    assert not faults_in_the_table()
