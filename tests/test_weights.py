"""Nothing loads whose hash is not known; nothing that a checkpoint could hide gets further than its error message."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtool import tensorfiles, weights
from avtool.errors import AvtoolError, UsageError, WeightsError

torch = pytest.importorskip("torch")
from safetensors.torch import save  # noqa: E402  (needs torch)

SHAPES = {"head.bias": (3,), "head.weight": (3, 4)}


def tensors() -> dict[str, Any]:
    return {"head.weight": torch.arange(12.0).reshape(3, 4), "head.bias": torch.ones(3, dtype=torch.float16)}


def checkpoint(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def table(name: str, **fields: object) -> str:
    base = {"sha256": "0" * 64, "bytes": 0, "kind": "k", "licence": "l", "commercial": "ask", "source": "a paper"}
    return f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in {**base, **fields}.items())


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped weights with a manifest: `small` ships, `foreign` is published elsewhere."""
    folder = tmp_path / "embedded"
    folder.mkdir()
    shipped, published = save(tensors(), metadata={"card": "x"}), checkpoint(tensors())
    (folder / "small.safetensors").write_bytes(shipped)
    (tmp_path / "foreign.pt").write_bytes(published)
    urls = ["https://example.org/dir/foreign_v1.pt?download=1"]
    (folder / "manifest.toml").write_text(
        table("small", sha256=sha256(shipped), bytes=len(shipped), file="small.safetensors")
        + table("foreign", sha256=sha256(published), bytes=len(published), urls=urls, also=["1" * 64])
    )
    monkeypatch.setattr(weights, "embedded_dir", lambda: folder)
    return folder


def load(name: str, expect: Any = None, weights_dir: Path | None = None) -> weights.State:
    return weights.load_safetensors(weights.path(name, weights_dir), expect)


def refused(action: Callable[[], object], word: str, kind: type[AvtoolError] = WeightsError) -> AvtoolError:
    with pytest.raises(kind) as caught:
        action()
    error = caught.value
    for line in (error.what, error.why, error.hint):
        assert "\n" not in line
        assert line.isprintable()
    assert word in f"{error.what} | {error.why} | {error.hint}"
    return error


# ---------------------------------------------------------------- the project's own manifest


def test_manifest_of_the_project(repo: Path) -> None:
    assert weights.embedded_dir() == repo / "weights"
    known = weights.manifest()
    assert {"mn04", "mobilenetv2-coral"} <= known.keys()
    for entry in known.values():
        assert entry.licence and entry.source and entry.kind
        assert entry.commercial in (True, False, "ask")
        if entry.file:
            assert (repo / "weights" / entry.file).stat().st_size == entry.bytes


def test_everything_that_ships_is_known_and_sound(repo: Path) -> None:
    shipped = set((repo / "weights").glob("*.safetensors"))
    described = {file for file in shipped if file.with_suffix(".toml").is_file()}  # localizers describe themselves
    assert {file.name for file in shipped - described} == {e.file for e in weights.manifest().values() if e.file}
    for file in described:
        weights.load(file)
    for name, entry in weights.manifest().items():
        if entry.file:
            assert load(name).sha256 == entry.sha256
    assert {check.name: check.state for check in weights.verify() if check.state == "damaged"} == {}


@pytest.mark.parametrize(
    ("name", "file", "key", "shape"),
    [
        ("mn04", "mn04_as.pt", "classifier.5.weight", (527, 512)),
        ("mobilenetv2-coral", "mobilenet_v2_imagenet.pt", "classifier.weight", (1000, 1280)),
    ],
)
def test_teachers_can_be_imported(shared: Path, name: str, file: str, key: str, shape: tuple[int, ...]) -> None:
    source = shared / "corpus" / "teachers" / file
    refused(lambda: weights.path(name), f"avtool weights import {name} FILE")
    made = weights.import_weights(source, name)
    assert weights.path(name) == made
    loaded = load(name)
    original = torch.load(source, weights_only=True)
    assert loaded.tensors.keys() == original.keys()
    assert loaded.tensors[key].shape == shape
    for tensor_name, tensor in original.items():
        assert torch.equal(loaded.tensors[tensor_name], tensor)
        assert loaded.tensors[tensor_name].dtype == tensor.dtype


# ---------------------------------------------------------------- where things lie


def test_cache_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.cache_dir().is_relative_to(home)
    monkeypatch.setattr(sys, "platform", "linux")
    assert weights.cache_dir() == home / ".cache" / "avtool" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_dir() == tmp_path / "xdg" / "avtool" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert weights.cache_dir() == home / ".cache" / "avtool" / "weights"
    monkeypatch.setenv("AVTOOL_WEIGHTS", str(tmp_path / "env"))
    assert weights.cache_dir() == tmp_path / "env"
    assert weights.cache_dir(tmp_path / "flag") == tmp_path / "flag"


def test_shipped_weights_load_with_hash_and_metadata(embedded: Path) -> None:
    state = load("small", SHAPES)
    assert state.sha256 == sha256((embedded / "small.safetensors").read_bytes())
    assert state.metadata == {"card": "x"}
    assert torch.equal(state.tensors["head.weight"], tensors()["head.weight"])
    header = tensorfiles.read_header(embedded / "small.safetensors")
    assert header.shapes == SHAPES
    assert weights.locate("small") == (embedded / "small.safetensors", state.sha256)
    assert weights.load(embedded / "small.safetensors", SHAPES).keys() == SHAPES.keys()
    assert weights.licence("small") == "l"
    refused(lambda: weights.licence("smal"), "known: foreign, small", UsageError)


def test_message_for_missing_weights_is_the_manual_route(embedded: Path, tmp_path: Path) -> None:
    """Doing exactly what the message says makes the weights load."""
    cache = tmp_path / "cache"
    error = refused(lambda: weights.path("foreign", cache), "https://example.org/dir/foreign_v1.pt")
    digest = sha256((tmp_path / "foreign.pt").read_bytes())
    assert digest in error.hint
    place = Path(error.hint.split("or put it at ")[1])
    place.parent.mkdir(parents=True)
    (tmp_path / "foreign.pt").rename(place)
    state = load("foreign", SHAPES, cache)
    assert torch.equal(state.tensors["head.weight"], tensors()["head.weight"])


def test_unknown_name_and_damaged_installation(embedded: Path) -> None:
    refused(lambda: weights.path("smal"), "known: foreign, small", UsageError)
    (embedded / "small.safetensors").unlink()
    refused(lambda: weights.path("small"), "install avtool again")
    (embedded / "manifest.toml").write_text("[broken\n")
    refused(weights.manifest, "install avtool again")
    (embedded / "manifest.toml").write_text(table("x", sha256="short"))
    refused(weights.manifest, "bad name or sha256")
    (embedded / "manifest.toml").write_text("[x]\nsha256 = 'y'\n")
    refused(weights.manifest, "missing")


# ---------------------------------------------------------------- loading: bad files


def bad_safetensors(good: bytes) -> dict[str, tuple[bytes, str]]:
    flipped = bytearray(good)
    flipped[-3] ^= 0x10
    return {
        "cut": (good[: len(good) // 2], "sha256"),
        "bit flip": (bytes(flipped), "sha256"),
        "empty": (b"", "it is empty"),
        "web page": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer"),
        "pickle": (checkpoint(tensors()), "sha256"),
        "other weights": (save({"a": torch.zeros(1)}), "sha256"),
    }


@pytest.mark.parametrize("kind", [*bad_safetensors(save({"a": torch.zeros(9)}))])
def test_bad_files_in_place_of_shipped_weights(embedded: Path, kind: str) -> None:
    file = embedded / "small.safetensors"
    data, word = bad_safetensors(file.read_bytes())[kind]
    file.write_bytes(data)
    refused(lambda: load("small"), word)
    assert {check.name: check.state for check in weights.verify()}["small"] == "damaged"


@pytest.mark.parametrize(
    ("expect", "word"),
    [
        ({"head.bias": (3,), "head.weight": (4, 3)}, "head.weight has shape (3, 4), the network wants (4, 3)"),
        ({**SHAPES, "tail": (1,)}, "tail is missing"),
        ({"head.bias": (3,)}, "head.weight is not part of this network"),
    ],
)
def test_wrong_shapes(embedded: Path, expect: dict[str, tuple[int, ...]], word: str) -> None:
    refused(lambda: load("small", expect), word)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(tmp_path: Path, value: float) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(save({"x": torch.tensor([1.0, value])}))
    refused(lambda: weights.load_safetensors(file, accept_unpinned=True), "NaN or infinity")
    assert weights.load_safetensors(file, finite=False, accept_unpinned=True).tensors["x"].shape == (2,)


def test_hash_must_be_known(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(save(tensors()))
    refused(lambda: weights.load_safetensors(file), "is not known to avtool")
    assert weights.load_safetensors(file, SHAPES, accept_unpinned=True).sha256 == sha256(file.read_bytes())
    (tmp_path / "mine.toml").write_text(f'sha256 = "{sha256(file.read_bytes())}"\n')
    assert weights.load_safetensors(file, SHAPES).sha256 == sha256(file.read_bytes())
    (tmp_path / "mine.toml").write_text(f'sha256 = "{"0" * 64}"\n')
    refused(lambda: weights.load_safetensors(file, accept_unpinned=True), "sha256")
    (tmp_path / "mine.toml").write_text("sha256 = \n")
    refused(lambda: weights.load_safetensors(file), "cannot be read")


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"abc", id="shorter than its length field"),
        pytest.param((1 << 62).to_bytes(8, "little") + b"{}", id="header length lies"),
        pytest.param(packed(b"{" * 5000), id="not JSON"),
        pytest.param(packed([F32]), id="not an object"),
        pytest.param(packed({"a": F32}, b"\0" * 9), id="something follows the tensors"),
        pytest.param(packed({"a": F32}, b"\0" * 4), id="tensors end after the file"),
        pytest.param(packed({"a": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), id="hole"),
        pytest.param(packed({"a": F32, "b": F32}, b"\0" * 8), id="overlap"),
        pytest.param(packed({"a": {**F32, "shape": [1 << 40]}}, b"\0" * 8), id="shape lies"),
        pytest.param(packed({"a": {**F32, "shape": [-1, -2]}}, b"\0" * 8), id="negative shape"),
        pytest.param(packed({"a": {**F32, "dtype": "OBJ"}}, b"\0" * 8), id="unknown dtype"),
        pytest.param(packed({"a": {"dtype": "F32"}}, b"\0" * 8), id="fields missing"),
        pytest.param(packed({"a": F32, "__metadata__": {"x": [1]}}, b"\0" * 8), id="metadata not text"),
        pytest.param(
            packed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2],'
                   b'"data_offsets":[0,8]}}', b"\0" * 8), id="name twice",
        ),
    ],
)  # fmt: skip
def test_malformed_headers(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(data)
    refused(lambda: weights.load_safetensors(file, accept_unpinned=True), "is damaged")


def test_not_a_regular_file(tmp_path: Path) -> None:
    refused(lambda: weights.load_safetensors(tmp_path, accept_unpinned=True), "not a regular file")
    refused(lambda: weights.load_safetensors(tmp_path / "none.safetensors", accept_unpinned=True), "No such file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        refused(lambda: weights.load_safetensors(tmp_path / "pipe.safetensors", accept_unpinned=True), "regular")
        refused(lambda: weights.import_weights(tmp_path / "pipe.safetensors", "x", True), "regular")


def test_large_files_are_hashed_when_they_change(tmp_path: Path, embedded: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(weights, "ALWAYS_HASHED", 0)
    cache = tmp_path / "cache"
    file = weights.import_weights(tmp_path / "foreign.pt", "foreign", weights_dir=cache)
    hashed: list[Path] = []
    original = weights._hash_of
    monkeypatch.setattr(weights, "_hash_of", lambda f: (hashed.append(f), original(f))[1])
    load("foreign", SHAPES, cache)
    assert hashed == []
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    refused(lambda: load("foreign", SHAPES, cache), "sha256")
    assert hashed == [file]


# ---------------------------------------------------------------- importing: bad files


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def circular() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["model"] = state
    return state


def deflated(data: bytes) -> bytes:
    """The same zip file with compressed parts and a large one of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/data/9", b"\0" * 5_000_000)
    return buffer.getvalue()


def bad_checkpoints(witness: Path) -> dict[str, tuple[bytes, str]]:
    good = checkpoint(tensors())
    shared_storage = torch.zeros(1000)
    return {
        "cut": (good[: len(good) // 2], "refused"),
        "empty": (b"", "it is empty"),
        "web page": (b"<html><body>404</body></html>", "web page"),
        "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "noise": (bytes(range(256)) * 20, "refused"),
        "code": (checkpoint({"x": Bomb(witness)}), "code or objects"),
        "bare pickle with code": (pickle.dumps(Bomb(witness)), "code or objects"),
        "expanded": (checkpoint({"x": torch.zeros(1).expand(1_000_000_000)}), "expanded or strided"),
        "strided": (checkpoint({"x": torch.zeros(4, 6)[:, ::2]}), "expanded or strided"),
        "many views of one storage": (
            checkpoint({f"x{i}": shared_storage[i % 2 :] for i in range(400)}), "larger than the file"
        ),
        "sparse": (checkpoint({"x": torch.eye(3).to_sparse()}), "sparse"),
        "complex": (checkpoint({"x": torch.zeros(3, dtype=torch.complex64)}), "sparse, quantized, complex"),
        "NaN": (checkpoint({"x": torch.tensor([float("nan")])}), "NaN or infinity"),
        "number inside": (checkpoint({"x": torch.zeros(1), "epoch": 3}), "epoch is int"),
        "wrapped in itself": (checkpoint(circular()), "is dict, not a tensor"),
        "a list": (checkpoint([torch.zeros(1)]), "no state dict"),
        "nothing": (checkpoint({}), "no state dict"),
        "grows when unpacked": (deflated(good), "would unpack to"),
        "safetensors with a tail": (save(tensors()) + b"tail", "damaged"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", [*bad_checkpoints(Path("x"))])
def test_bad_checkpoints(tmp_path: Path, home: Path, kind: str) -> None:
    witness, source, cache = tmp_path / "code ran", tmp_path / "in.pt", tmp_path / "cache"
    data, word = bad_checkpoints(witness)[kind]
    source.write_bytes(data)
    refused(lambda: weights.import_weights(source, "bad", accept_unpinned=True, weights_dir=cache), word)
    assert not witness.exists()
    assert not cache.exists()
    assert not any(home.iterdir())


def test_hash_comes_before_unpickling(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled a file with a wrong hash"))
    source = tmp_path / "foreign.pt"
    data = source.read_bytes()
    source.write_bytes(data[:-1])
    error = refused(lambda: weights.import_weights(source, "foreign"), "is not the file known as 'foreign'")
    assert f"it has {len(data) - 1} of {len(data)} bytes" in error.why
    assert "https://example.org" in error.hint
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    source.write_bytes(bytes(flipped))
    refused(lambda: weights.import_weights(source, "foreign"), sha256(data))
    refused(lambda: weights.import_weights(source, "never-heard-of"), "--accept-unpinned")


def test_accept_unpinned_does_not_open_a_pinned_name(embedded: Path, tmp_path: Path) -> None:
    """Neither the import nor what an earlier version or a hand left in the cache makes another file pass for it."""
    cache, other = tmp_path / "cache", tmp_path / "other.pt"
    other.write_bytes(checkpoint({**tensors(), "more": torch.zeros(1)}))
    error = refused(
        lambda: weights.import_weights(other, "foreign", accept_unpinned=True, weights_dir=cache),
        "is not the file known as 'foreign'",
    )
    assert "under another name" in error.hint and not cache.exists()
    mine = weights.import_weights(other, "mine", accept_unpinned=True, weights_dir=cache)
    right = weights.import_weights(tmp_path / "foreign.pt", "foreign", weights_dir=cache)
    forged = mine.with_name("foreign.safetensors")
    for suffix in (".safetensors", ".toml"):
        mine.with_suffix(suffix).rename(forged.with_suffix(suffix))
    assert weights.path("foreign", cache) == right
    for suffix in (".safetensors", ".toml"):
        forged.with_suffix(suffix).replace(right.with_suffix(suffix))  # even in the folder of the right hash
    refused(lambda: weights.path("foreign", cache), "not on this machine")
    assert weights.find(weights.manifest()["foreign"], cache) is None


def test_unpickling_is_without_code(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (calls.append(k), original(*a, **k))[1])
    weights.import_weights(tmp_path / "foreign.pt", "foreign", weights_dir=tmp_path / "cache")
    assert calls == [{"map_location": "cpu", "weights_only": True}]


# ---------------------------------------------------------------- importing: good files


def test_import_is_recorded_and_exact(embedded: Path, tmp_path: Path) -> None:
    cache, source = tmp_path / "cache", tmp_path / "foreign.pt"
    file = weights.import_weights(source, "foreign", weights_dir=cache)
    origin = sha256(source.read_bytes())
    assert file == cache / origin[:12] / "foreign.safetensors"
    record = weights._read_sidecar(file)
    assert record["sha256"] == sha256(file.read_bytes())
    assert (record["origin"], record["origin_sha256"], record["pinned"]) == ("foreign.pt", origin, True)
    state = load("foreign", SHAPES, cache)
    assert state.metadata == {"origin_sha256": origin}
    for name, tensor in tensors().items():
        assert torch.equal(state.tensors[name], tensor)
    assert {check.name: check.state for check in weights.verify(cache)} == {"small": "ok", "foreign": "ok"}
    again = weights.import_weights(source, "foreign", weights_dir=cache)
    assert sha256(again.read_bytes()) == record["sha256"], "the conversion is deterministic"


def test_interrupted_import_does_not_count(embedded: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    file = weights.import_weights(tmp_path / "foreign.pt", "foreign", weights_dir=cache)
    weights._sidecar(file).unlink()
    refused(lambda: weights.path("foreign", cache), "not on this machine")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "iteration": 7}, lambda s: {"state_dict": s}])
def test_wrapped_and_untidy_checkpoints(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    state = {**tensors(), "bn.num_batches_tracked": torch.tensor(9)}
    source = tmp_path / "in.pth"
    source.write_bytes(checkpoint(wrap(state)))
    weights.import_weights(source, "mine", accept_unpinned=True, weights_dir=tmp_path / "cache")
    assert load("mine", SHAPES, tmp_path / "cache").tensors.keys() == SHAPES.keys()
    assert [c.state for c in weights.verify(tmp_path / "cache") if c.name == "mine"] == ["ok"]


def test_axes_in_another_order_are_no_trick(tmp_path: Path) -> None:
    """Convolutions kept channels last, matrices transposed by a conversion from elsewhere."""
    matrix = torch.arange(12.0).reshape(3, 4)
    kernel = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    (tmp_path / "in.pt").write_bytes(checkpoint({"matrix": matrix.T, "kernel": kernel}))
    weights.import_weights(tmp_path / "in.pt", "mine", accept_unpinned=True, weights_dir=tmp_path / "cache")
    loaded = load("mine", {"matrix": (4, 3), "kernel": (2, 3, 4, 5)}, tmp_path / "cache").tensors
    assert torch.equal(loaded["matrix"], matrix.T) and torch.equal(loaded["kernel"], kernel)


def test_numpy_arrays_in_a_checkpoint(tmp_path: Path) -> None:
    """VGGish's PCA parameters are published so; anything but plain floating-point arrays is refused."""
    state = {"means": np.arange(6.0).reshape(6, 1), "vectors": np.asfortranarray(np.eye(6, dtype=np.float32)[::-1])}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (tmp_path / "in.pth").write_bytes(buffer.getvalue())
    weights.import_weights(tmp_path / "in.pth", "mine", accept_unpinned=True, weights_dir=tmp_path / "cache")
    loaded = load("mine", None, tmp_path / "cache").tensors
    for name, array in state.items():
        assert np.array_equal(loaded[name].numpy(), array) and loaded[name].numpy().dtype == array.dtype
    for bad in (np.array([{}]), np.array(["a"]), np.arange(3), np.array([Bomb(tmp_path / "ran")])):
        (tmp_path / "in.pth").write_bytes(checkpoint({"x": bad}))
        refused(lambda: weights.import_weights(tmp_path / "in.pth", "bad", True, tmp_path / "cache"), "refused")
    assert not (tmp_path / "ran").exists()


def test_safetensors_and_old_format_can_be_imported(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=False)
    for name, data in (("st", save(tensors())), ("old", buffer.getvalue())):
        (tmp_path / name).write_bytes(data)
        weights.import_weights(tmp_path / name, name, accept_unpinned=True, weights_dir=tmp_path / "cache")
        state = load(name, SHAPES, tmp_path / "cache")
        assert np.array_equal(state.tensors["head.weight"].numpy(), tensors()["head.weight"].numpy())


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "x" * 65, ".hidden", "new\nline", "small"])
def test_names_that_cannot_be_used(embedded: Path, tmp_path: Path, name: str) -> None:
    refused(lambda: weights.import_weights(tmp_path / "foreign.pt", name, accept_unpinned=True), "", UsageError)


def test_reading_headers_and_paths_needs_no_torch() -> None:
    code = "import sys, avtool.weights as w; w.manifest(); w.verify(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
