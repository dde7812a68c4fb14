"""avtool weights fetch: from a published file to weights that load, with and without a network."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from avtool import download, weights
from avtool.errors import AvtoolError, UsageError, WeightsError
from tests.cli.conftest import Ran
from tests.servers import Served, cut, good, says, serving

torch = pytest.importorskip("torch")

STATE = {"head.weight": torch.arange(12.0).reshape(3, 4), "head.bias": torch.ones(3)}


def checkpoint(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


DATA = checkpoint(STATE)
SHA256, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()


UNPINNED = ("begins", "begins-otherwise", "nothing-known")


def table(name: str, **fields: object) -> str:
    base = {"kind": "k: more", "licence": "l", "commercial": "ask", "source": "a paper"}
    return f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in {**base, **fields}.items())


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(DATA) as served:
        yield served


@pytest.fixture
def known(tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of weights that this server publishes, in all degrees of being known."""
    folder = tmp_path / "embedded"
    folder.mkdir()
    here: dict[str, Any] = {"urls": [server.url], "bytes": len(DATA)}
    (folder / "manifest.toml").write_text(
        table("sure", **here, sha256=SHA256)
        + table("by-md5", **here, md5=MD5)
        + table("other", **here, sha256="1" * 64)
        + table("begins", **here, sha256_prefix=SHA256[:8], pinned=False)
        + table("begins-otherwise", **here, sha256_prefix="00000000", pinned=False)
        + table("nothing-known", urls=[server.url], pinned=False)
        + table("by-hand", sha256=SHA256)
    )
    monkeypatch.setattr(weights, "embedded_dir", lambda: folder)
    monkeypatch.setattr(download, "pause", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


def refused(action: Callable[[], object], word: str, kind: type[AvtoolError] = WeightsError) -> AvtoolError:
    with pytest.raises(kind) as caught:
        action()
    error = caught.value
    assert word in f"{error.what} | {error.why} | {error.hint}"
    for line in (error.what, error.why, error.hint):
        assert line.isprintable()
    return error


def loads(file: Path) -> None:
    state = weights.load(file)
    assert state.keys() == STATE.keys() and all(torch.equal(state[k], v) for k, v in STATE.items())


# ---------------------------------------------------------------- fetching


@pytest.mark.parametrize("name", ["sure", "by-md5"])
def test_fetched_weights_load(known: Path, server: Served, name: str) -> None:
    refused(lambda: weights.path(name), f"avtool weights fetch {name}")
    file = weights.fetch(name)
    loads(file)
    assert weights.path(name) == file == weights.fetch(name, offline=True)
    assert len(server.requests) == 1
    assert {p.name for p in weights.cache_dir().rglob("*") if p.is_file()} == {f"{name}.safetensors", f"{name}.toml"}
    record = weights._read_sidecar(file)
    assert (record["origin_sha256"], record["origin_md5"], record["pinned"]) == (SHA256, MD5, True)


def test_hash_decides(known: Path, server: Served) -> None:
    error = refused(lambda: weights.fetch("other"), f"its sha256 is {SHA256}, expected {'1' * 64}")
    assert "put it at" in error.hint
    assert not [p for p in weights.cache_dir().rglob("*") if p.is_file()]


def test_unpinned_weights_need_a_word(known: Path, server: Served, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("begins", "nothing-known"):
        refused(lambda name=name: weights.fetch(name), "--accept-unpinned")
        assert server.requests == []
    for name in ("begins", "nothing-known"):
        file = weights.fetch(name, accept_unpinned=True)
        loads(file)
        record = weights._read_sidecar(file)
        assert (record["origin_sha256"], record["pinned"]) == (SHA256, False)
        caplog.clear()
        assert weights.path(name) == file and "--accept-unpinned" in caplog.text
        server.requests.clear()


def test_what_is_known_of_a_hash_is_checked_all_the_same(known: Path, server: Served, tmp_path: Path) -> None:
    refused(lambda: weights.fetch("begins-otherwise", accept_unpinned=True), "expected 00000000...")
    (tmp_path / "x.pt").write_bytes(DATA)
    refused(lambda: weights.import_weights(tmp_path / "x.pt", "begins-otherwise", True), "expected 00000000...")
    refused(lambda: weights.import_weights(tmp_path / "x.pt", "begins"), "add --accept-unpinned")
    refused(lambda: weights.import_weights(tmp_path / "x.pt", "nothing-known"), "add --accept-unpinned")
    loads(weights.import_weights(tmp_path / "x.pt", "begins", accept_unpinned=True))
    loads(weights.import_weights(tmp_path / "x.pt", "by-md5"))
    (tmp_path / "x.pt").write_bytes(DATA + b"x")
    refused(lambda: weights.import_weights(tmp_path / "x.pt", "by-md5"), "its md5 is")


def test_mirrors(known: Path, server: Served) -> None:
    with serving(DATA, cut(500), good) as mirror:
        loads(weights.fetch("sure", mirror=mirror.url.rsplit("/", 1)[0] + "/a%20folder/"))
    assert {request["path"] for request in mirror.requests} == {"/a%20folder/weights.pt"}
    assert server.requests == []


def test_a_mirror_without_it(known: Path, server: Served) -> None:
    with serving(b"", says(404)) as mirror:
        loads(weights.fetch("sure", mirror=mirror.url.rsplit("/", 1)[0]))
    assert len(server.requests) == 1


def test_plain_http_needs_a_whole_hash(known: Path) -> None:
    mirror = "http://192.0.2.1/x"
    refused(lambda: weights.fetch("begins", accept_unpinned=True, mirror=mirror), "https only", UsageError)


def test_a_download_that_was_not_converted(known: Path, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between: the published file is whole, and is not sent again."""
    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception):
        patch.setattr(weights, "import_weights", lambda *_, **__: pytest.fail("killed"))
        weights.fetch("sure")
    assert (weights.cache_dir() / "downloads" / "weights.pt").read_bytes() == DATA
    loads(weights.fetch("sure", offline=True))
    assert len(server.requests) == 1
    assert not list((weights.cache_dir() / "downloads").iterdir())


def test_another_process_was_quicker(known: Path, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had the file, converted it and took it away while this one waited, or while this one looked at it."""
    file = weights.fetch("sure")
    answers = iter([None, file])
    monkeypatch.setattr(weights, "_sound", lambda *a: next(answers))
    assert weights.fetch("sure") == file and len(server.requests) == 1
    answers = iter([None, None, file])
    target = weights.cache_dir() / "downloads" / "weights.pt"

    def vanishes(source: Path, *_: object) -> Path:
        source.unlink()
        raise WeightsError(f"{source} cannot be read")

    target.write_bytes(DATA)
    monkeypatch.setattr(weights, "import_weights", vanishes)
    assert weights.fetch("sure") == file and len(server.requests) == 1


def test_damaged_weights_are_fetched_again(known: Path, server: Served, caplog: pytest.LogCaptureFixture) -> None:
    file = weights.fetch("sure")
    file.write_bytes(file.read_bytes()[:-1])
    refused(lambda: weights.load(file), "damaged")
    loads(weights.fetch("sure"))
    assert len(server.requests) == 2 and "was damaged" in caplog.text


def test_what_cannot_be_fetched(known: Path) -> None:
    refused(lambda: weights.fetch("sur"), "known: ", UsageError)
    refused(lambda: weights.fetch("by-hand"), "not published as a file", UsageError)


def test_weights_of_the_project_that_ship_are_here() -> None:
    assert weights.fetch("mini-audio", offline=True).is_file()


# ---------------------------------------------------------------- offline


@pytest.mark.parametrize("name", ["sure", "by-md5"])
@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_is_offline(
    known: Path, server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    """The message names the file, its address, its hash and its place; doing what it says is enough."""
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket"))
    if how == "variable":
        monkeypatch.setenv("AVTOOL_OFFLINE", "1")
    error = refused(lambda: weights.fetch(name, offline=how == "flag"), "switched off")
    assert server.url in error.hint and (SHA256 in error.hint or MD5 in error.hint)
    place = Path(error.hint.split("or put it at ")[1])
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    loads(weights.path(name))


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_offline_switched_off(known: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AVTOOL_OFFLINE", value)
    loads(weights.fetch("sure"))


def test_only_fetch_knows_a_network(repo: Path) -> None:
    """Nothing that localizes, extracts or loads weights imports what could open a connection."""
    code = (
        "import sys, avtool.session, avtool.pipeline, avtool.weights as w; w.manifest(); w.verify();"
        "print(*{'avtool.download', 'urllib.request', 'http.client'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# ---------------------------------------------------------------- the tensors of others


def test_published_tensors_are_mapped_to_our_names(known: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from types import ModuleType

    module = ModuleType("avtool.features.encoders.invented")
    module.good = lambda state: {"w": state["head.weight"].T, "b": state["head.bias"].half()}  # type: ignore[attr-defined]
    module.bad = lambda state: {"w": state["no.such"]}  # type: ignore[attr-defined]
    module.nan = lambda state: {"w": state["head.weight"] / 0}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    manifest = known / "manifest.toml"
    text = manifest.read_text()
    (tmp_path / "x.pt").write_bytes(DATA)
    for function in ("good", "bad", "nan"):
        manifest.write_text(text + table(function, sha256=SHA256, convert=f"invented:{function}"))
        if function == "good":
            state = weights.load(weights.import_weights(tmp_path / "x.pt", function))
            assert torch.equal(state["w"], STATE["head.weight"].T) and state["b"].dtype == torch.float16
        else:
            refused(lambda f=function: weights.import_weights(tmp_path / "x.pt", f), "")


def test_keras_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py, which reads them, is not installed")
    import numpy as np

    kernel = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1"]
        file["block1_conv1/block1_conv1_W_1:0"] = kernel
        file["block1_conv1/block1_conv1_b_1:0"] = np.zeros(2, np.float32)
    cache = tmp_path / "cache"
    state = weights.load(weights.import_weights(tmp_path / "k.h5", "keras", True, cache))
    assert torch.equal(state["block1_conv1/block1_conv1_W_1:0"], torch.from_numpy(kernel))
    data = (tmp_path / "k.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    refused(lambda: weights.import_weights(tmp_path / "cut.h5", "keras", True, cache), "refused")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("x", shape=(1 << 34,), dtype="f4", chunks=(1 << 20,), compression="gzip")
    refused(lambda: weights.import_weights(tmp_path / "bomb.h5", "keras", True, cache), "larger than the file")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file.create_dataset("x", shape=(4,), dtype="f4", external=[(str(tmp_path / "k.h5"), 0, 16)])
    refused(lambda: weights.import_weights(tmp_path / "link.h5", "keras", True, cache), "x is no array")
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["x"] = "text"
    refused(lambda: weights.import_weights(tmp_path / "text.h5", "keras", True, cache), "x is no array")


# ---------------------------------------------------------------- the command line


@pytest.fixture
def avtool(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    from avtool.cli.app import run

    def call(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call


def test_fetch_on_the_command_line(known: Path, server: Served, avtool: Callable[..., Ran], tmp_path: Path) -> None:
    ran = avtool("weights", "fetch", "sure", "by-md5", "--to", tmp_path / "usb")
    assert ran.code == 0 and len(ran.out.splitlines()) == 2
    for line in ran.out.splitlines():
        loads(Path(line))
    assert avtool("weights", "path", "sure", "--weights-dir", tmp_path / "usb").out in ran.out
    assert "sure is here" in ran.err
    ran = avtool("weights", "fetch", "sure", "other", "by-hand", "--progress", "json")
    assert ran.code == 7 and len(ran.out.splitlines()) == 1
    lines = [json.loads(line) for line in ran.lines]
    assert {"stage": "download", "file": "sure", "done": len(DATA), "total": len(DATA)} in lines
    assert [line["exit_code"] for line in lines if "error" in line] == [4, 2]


def test_fetch_all(known: Path, avtool: Callable[..., Ran]) -> None:
    """Those that need a word are named; the others are fetched."""
    ran = avtool("weights", "fetch", "--all")
    assert ran.code == 4 and len(ran.out.splitlines()) == 2
    assert [line for line in ran.lines if line.startswith("error")] == [
        "error: weights 'other' could not be downloaded",
        *(f"error: the whole hash of '{n}' is not known to avtool" for n in UNPINNED),
    ]


@pytest.mark.parametrize(
    "arguments", [(), ("sure", "--all"), ("sure", "--progress", "x"), ("x",), ("x", "--to", "a", "--weights-dir", "b")]
)
def test_slips(known: Path, avtool: Callable[..., Ran], arguments: tuple[str, ...]) -> None:
    ran = avtool("weights", "fetch", *arguments)
    assert ran.code == 2 and ran.out == "" and len(ran.lines) <= 3


def test_list_is_readable_in_80_columns(avtool: Callable[..., Ran]) -> None:
    ran = avtool("weights", "list")
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= 80
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == list(weights.manifest())
    for name, entry in weights.manifest().items():
        page = avtool("weights", "list", name).out
        assert entry.licence in page and all(digest in page for digest in entry.hashes)
    records = json.loads(avtool("weights", "list", "--json").out)
    assert [record["name"] for record in records] == list(weights.manifest())


def test_list_says_what_is_here(known: Path, avtool: Callable[..., Ran]) -> None:
    weights.fetch("sure")
    part = weights.cache_dir() / "downloads" / "weights.pt.part"
    part.write_bytes(DATA[: len(DATA) // 2])
    states = {line.split()[0]: line.split("  ")[2:] for line in avtool("weights", "list").out.splitlines()[1:]}
    assert "here" in states["sure"] and "49% here" in " ".join(states["other"]).replace("50%", "49%")
    assert "not here" in [cell.strip() for cell in states["by-hand"]]


def test_verify_on_the_command_line(known: Path, avtool: Callable[..., Ran]) -> None:
    file = weights.fetch("sure")
    assert avtool("weights", "verify").code == 0
    ran = avtool("weights", "verify", "sure")
    assert ran.code == 0 and len(ran.out.splitlines()) == 2 and "ok" in ran.out
    assert avtool("weights", "verify", "sure", "by-md5").code == 4
    assert avtool("weights", "verify", "never-heard-of").code == 2
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in ((), ("sure",)):
        ran = avtool("weights", "verify", *arguments)
        assert ran.code == 4 and "avtool weights fetch sure" in ran.err and "sha256 is" in ran.err
    assert avtool("weights", "fetch", "sure").code == 0
    assert avtool("weights", "verify", "sure").code == 0


# ---------------------------------------------------------------- the project's own manifest


def test_addresses_and_hashes_of_the_project() -> None:
    for entry in weights.manifest().values():
        assert entry.pinned == (entry.name != "vggish-pca"), "weights/README.md says which hash is not known"
        assert entry.urls or entry.file or entry.name == "mobilenetv2-coral"
        assert all(url.startswith("https://") for url in entry.urls)
        assert all(digest.startswith(entry.sha256_prefix) for digest in entry.hashes[:1])
        if entry.sha256_prefix:  # as its authors put it into the name
            assert f"-{entry.sha256_prefix}." in entry.published_name
        assert bool(entry.bytes) != bool(entry.about_bytes)


def test_torchvision_says_the_same() -> None:
    """Addresses and sizes that torchvision itself gives."""
    models = pytest.importorskip("torchvision.models")
    official = {
        "resnet50-v1": models.ResNet50_Weights.IMAGENET1K_V1,
        "resnet50-v2": models.ResNet50_Weights.IMAGENET1K_V2,
        "vgg19": models.VGG19_Weights.IMAGENET1K_V1,
        "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V1,
    }
    for name, theirs in official.items():
        entry = weights.manifest()[name]
        assert entry.urls == (theirs.url,)
        assert abs(entry.size / 2**20 - theirs.meta["_file_size"]) < (0.0006 if entry.bytes else 0.01)


# ---------------------------------------------------------------- ten bad files


def ten_bad_files(witness: Path) -> dict[str, bytes]:
    """What takes the place of weights in the wild: cut, bit flip, empty, HTML, LFS pointer, another file, ..."""

    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.mkdir, (str(witness),)

    flipped = bytearray(DATA)
    flipped[DATA.index(STATE["head.weight"].numpy().tobytes()) + 5] ^= 1
    return {
        "cut": DATA[: len(DATA) // 2],
        "bit flip": bytes(flipped),
        "empty": b"",
        "web page": b"<!DOCTYPE html><html>Not found</html>",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "wrong hash": checkpoint({**STATE, "head.bias": torch.zeros(3)}),
        "pickle with code": checkpoint({"head.weight": Program()}),
        "expanded tensor": checkpoint({"head.weight": torch.zeros(1).expand(1 << 33)}),
        "wrong shape": checkpoint({"head.weight": torch.zeros(4, 3), "head.bias": torch.ones(3)}),
        "NaN": checkpoint({"head.weight": torch.full((3, 4), float("nan")), "head.bias": torch.ones(3)}),
    }


@pytest.mark.parametrize("kind", ten_bad_files(Path("x")))
def test_none_of_ten_bad_files_loads(known: Path, tmp_path: Path, avtool: Callable[..., Ran], kind: str) -> None:
    """Not as what it claims to be, not under another name, not from a server: one line each, nothing kept."""
    witness, source = tmp_path / "ran", tmp_path / "weights.pt"
    data = ten_bad_files(witness)[kind]
    source.write_bytes(data)

    def one_line(ran: Ran, code: int) -> None:
        errors = [line for line in ran.lines if line.startswith("error: ")]
        assert ran.code == code and len(errors) == 1 and len(ran.lines) <= 3 and ran.out == "", ran

    one_line(avtool("weights", "import", "sure", source), 4)
    with serving(data) as server:
        manifest = known / "manifest.toml"
        manifest.write_text(table("served", urls=[server.url], sha256=SHA256, bytes=len(DATA)))
        one_line(avtool("weights", "fetch", "served"), 4)
    if kind in ("wrong hash", "wrong shape"):  # sound as such: whoever takes them under another name gets what they are
        kept = weights.import_weights(source, "mine", accept_unpinned=True)
        expect = {name: value.shape for name, value in STATE.items()}
        if kind == "wrong shape":
            refused(lambda: weights.load(kept, expect), "head.weight has shape (4, 3), the network wants (3, 4)")
    else:
        one_line(avtool("weights", "import", "mine", source, "--accept-unpinned"), 4)
    assert not witness.exists()
    assert not [p for p in weights.cache_dir().rglob("served*") if p.is_file()]
    assert not list(weights.cache_dir().rglob("*.part"))
