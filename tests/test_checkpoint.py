"""What is saved comes back to the bit, a file is replaced wholly or not at all, and nothing that is read is trusted."""

import itertools
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.strict import STRICT
from tinygrad_lenet import Tensor, checkpoint, files, nn
from tinygrad_lenet.checkpoint import HEADER_LIMIT, CheckpointError, load, replace, replace_all, save, to_bytes

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
assert STRICT.name == "strict"  # importing it has made the device known

ROOT = Path(__file__).parents[1]
TENSORS = {
    "model.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.array(7),
    "none": np.zeros((0, 2), bool),
}
STATE = {"epoch": 3, "lr": 0.1, "losses": [2.5, 1e-300], "name": "Adam", "done": False, "data": None, "in": {"a": {}}}

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "<i2",
    "uint16",
    ">i4",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "<f4",
    ">f4",
    "float64",
]
arrays = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda name: name != "__metadata__")
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether these are the same arrays to the bit, but for the order of their bytes."""
    return a.keys() == b.keys() and all(
        (x.dtype.newbyteorder("="), x.shape) == (b[name].dtype.newbyteorder("="), b[name].shape)
        and x.astype(x.dtype.newbyteorder("=")).tobytes() == b[name].astype(b[name].dtype.newbyteorder("=")).tobytes()
        for name, x in a.items()
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for property tests, which cannot have a fresh folder for each example."""
    return tmp_path_factory.mktemp("checkpoint") / "run.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "run.safetensors"
    save(path, TENSORS, STATE)
    return path


# Round trips


@given(
    tensors=st.dictionaries(names, arrays, max_size=4), state=st.dictionaries(st.text(max_size=4), values, max_size=4)
)
def test_what_is_saved_comes_back(place: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    save(place, tensors, state)
    found, found_state = load(place)
    assert same(found, tensors)
    assert repr(found_state) == repr(state)  # 1, 1.0 and True are equal, but not the same
    assert all(array.flags.writeable and array.flags.c_contiguous for array in found.values())


def test_layouts_devices_and_tensors(tmp_path: Path) -> None:
    """Transposed arrays, Tensors, those of another device, and Python's numbers are saved by their values."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = tmp_path / "x"
    device = Tensor(x, device="strict")
    save(
        path,
        {"t": x.T, "step": x[:, ::-2], "tensor": Tensor(x.T), "device": device, "raw": device.data, "list": [1, 2]},
    )
    found, state = load(path)
    assert state == {}
    assert same(found, {"t": x.T, "step": x[:, ::-2], "tensor": x.T, "device": x, "raw": x, "list": np.array([1, 2])})


def test_other_programs_read_it_and_write_it(tmp_path: Path) -> None:
    """A file is plain safetensors."""
    save(tmp_path / "ours", TENSORS, STATE)
    assert same(safetensors.load_file(tmp_path / "ours"), TENSORS)
    save(tmp_path / "ours", TENSORS)
    safetensors.save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    found, state = load(tmp_path / "theirs")
    assert same(found, TENSORS)
    assert state == {}


@given(tensors=st.dictionaries(names, arrays, max_size=4))
def test_bytes_of_the_library(place: Path, tensors: dict[str, Any]) -> None:
    """Without a state, a file is to the byte what the library writes with our checksum in its header."""
    save(place, tensors)
    tensors = {name: x.astype(x.dtype.newbyteorder("<")) for name, x in tensors.items()}
    assert place.read_bytes() == safetensors.save(tensors, {"crc32": checkpoint._checksum(tensors)})


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"loss": float("nan")}, "state 'loss' cannot be written as JSON"),
        ({"loss": [1.0, float("inf")]}, "state 'loss' cannot be written"),
        ({"ok": 1, "betas": (0.9, 0.99)}, "state 'betas' would be changed by JSON; expected names as keys, and lists"),
        ({"steps": {1: 2}}, "state 'steps' would be changed"),
        ({1: "a"}, "state 1 would be changed"),
        ({"lr": np.float32(1)}, "state 'lr' cannot be written .*float32"),
        ({"path": Path()}, "state 'path' cannot be written"),
        ({"long": "x" * HEADER_LIMIT}, r"names and state take 4,\d+,\d+ bytes; expected at most 4,194,304"),
    ],
)
def test_a_state_that_would_not_come_back(state: Any, sentence: str, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises((TypeError, ValueError), match=f"^checkpoint.save: {sentence}"):
        save(saved, {}, state)
    assert (saved.read_bytes(), os.listdir(saved.parent)) == (before, [saved.name])


def test_a_state_that_holds_itself(tmp_path: Path) -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(ValueError, match="state 'a' cannot be written"):
        save(tmp_path / "x", {}, {"a": state})
    for _ in range(100_000):
        state = [state]
    with pytest.raises(ValueError, match="state 'a' cannot be written"):
        save(tmp_path / "x", {}, {"a": state})


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"a": np.zeros(1, complex)}, "tensor a has dtype complex128; expected booleans"),
        ({"a": np.array(["text"])}, "tensor a has dtype <U4"),
        ({"a": np.array(None)}, "tensor a has dtype object"),
        ({3: np.zeros(1)}, "a tensor's name is 3; expected a string"),
        ({"__metadata__": np.zeros(1)}, "a tensor is called '__metadata__'"),
        ({"\ud800": np.zeros(1)}, "a name is .+; expected names that are valid text"),
        ([np.zeros(1)], "the tensors are list; expected a dictionary"),
        (nn.Linear(1, 1), "the tensors are Linear; expected a dictionary"),
    ],
)
def test_tensors_that_the_format_has_not(tensors: Any, sentence: str, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises((TypeError, ValueError), match=f"^checkpoint.save: {sentence}"):
        save(saved, tensors)
    assert saved.read_bytes() == before


def test_without_safetensors(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is what files are compared with here; saving and loading needs NumPy alone."""
    for name in ["safetensors", *sys.modules]:
        if name.partition(".")[0] == "safetensors":
            monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    save(saved, TENSORS, STATE)
    assert same(load(saved)[0], TENSORS)


# Files that are not what they should be


def forged(header: Any, data: bytes = b"") -> bytes:
    """A file with this header, JSON or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def with_state(text: str) -> bytes:
    return forged({"__metadata__": {"state": text}})


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "short": b"\0" * 7,
    "zeros": b"\0" * 100,
    "text": b"not safetensors at all",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "header of 2**64 - 1 bytes": b"\xff" * 8 + b"{}",
    "header longer than the file": struct.pack("<Q", 3) + b"{}",
    "header over the limit": forged(b"{" + b" " * HEADER_LIMIT + b"}"),
    "header is a list": forged([]),
    "header is a number": forged(7),
    "tensor is a number": forged({"a": 7}),
    "metadata is a list": forged({"__metadata__": []}),
    "metadata is a number": forged({"__metadata__": {"state": 7}}),
    "size is true": forged({"a": entry("U8", [True], 0, 1)}, b"1"),
    "size of 10,000 digits": forged(b'{"a":{"dtype":"U8","shape":[1' + b"0" * 9999 + b'],"data_offsets":[0,1]}}', b"1"),
    "size beyond 64 bits": forged({"a": entry("U8", [0, 2**64], 0, 0)}),
    "header is not UTF-8": forged(b'{"\xff": 1}'),
    "nested header": forged(b'{"a":' * 100_000),
    "a terabyte": forged({"a": entry("F32", [2**38], 0, 2**40)}),
    "a terabyte, offsets small": forged({"a": entry("F32", [2**38], 0, 4)}, b"1234"),
    "sizes that overflow": forged({"a": entry("F64", [2**32, 2**32], 0, 0)}),
    "sizes that overflow, none": forged({"a": entry("F64", [0, 2**62, 2**62], 0, 0)}),
    "negative size": forged({"a": entry("F32", [-1], 0, 4)}, b"1234"),
    "fractional size": forged({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}, b"1234"),
    "offsets backwards": forged({"a": entry("F32", [1], 4, 0)}, b"1234"),
    "overlap": forged({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"1234"),
    "a gap": forged({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"123456789012"),
    "data too short": forged({"a": entry("F32", [2], 0, 8)}, b"1234"),
    "data too long": forged({"a": entry("F32", [1], 0, 4)}, b"12345"),
    "unknown dtype": forged({"a": entry("OBJECT", [1], 0, 8)}, b"12345678"),
    "dtype that NumPy lacks": forged({"a": entry("F8_E4M3", [4], 0, 4)}, b"1234"),
    "too many axes": forged({"a": entry("U8", [1] * 100_000, 0, 1)}, b"1"),
    "missing offsets": forged({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "state is a list": with_state("[]"),
    "state is not JSON": with_state("{"),
    "state is nested": with_state("[" * 1_000_000),
    "state has NaN": with_state('{"lr": NaN}'),
    "state has infinity": with_state('{"lr": -Infinity}'),
    "state has 1e999": with_state('{"lr": 1e999}'),
    "state has a number of many digits": with_state('{"lr": ' + "1" * 100_000 + "}"),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """AssertionError if the block takes 16 MB more than there was, at any moment; unchecked without Linux's /proc."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def most() -> int:
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])

    try:
        reset.write_text("5")  # from here on, the most is counted anew
        before = most()
    except (OSError, IndexError):
        before = None
    try:
        yield
    finally:
        assert before is None or most() - before < 16 * 2**20


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    """One sentence that names the file, and little memory, even for a header that claims a terabyte."""
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[case])
    with (
        pytest.raises(CheckpointError, match=r"^checkpoint.load: .*hostile.safetensors .+; expected .+") as caught,
        little_memory(),
    ):
        load(path)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_truncated_and_extended(saved: Path) -> None:
    """Cut anywhere, or longer by a byte, it is refused."""
    data = saved.read_bytes()
    for end in range(len(data)):
        saved.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=r"run.safetensors"):
            load(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match=r"run.safetensors"):
        load(saved)
    saved.write_bytes(data)
    assert same(load(saved)[0], TENSORS)


def test_cut_while_it_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header has been read and fits, and then the file gets shorter."""
    real = np.fromfile

    def fromfile(*args: Any) -> Any:
        os.truncate(saved, saved.stat().st_size - 1)
        return real(*args)

    monkeypatch.setattr(np, "fromfile", fromfile)
    with pytest.raises(CheckpointError, match=r"run.safetensors is damaged .*became shorter"):
        load(saved)


def test_oversized(tmp_path: Path) -> None:
    """A file that is whole and valid, but larger than expected, is not read: here 4 GB of zeros, which take no disk."""
    path = tmp_path / "large"
    path.write_bytes(forged({"a": entry("U8", [2**32], 0, 2**32)}))
    os.truncate(path, path.stat().st_size + 2**32)
    with (
        pytest.raises(CheckpointError, match=r"large has 4,294,967,.+ bytes; expected at most 1,073,741,824"),
        little_memory(),
    ):
        load(path)
    save(path, {"w": np.zeros(1000)})
    with pytest.raises(CheckpointError, match=r"large has 8,1.. bytes; expected at most 8,000"):
        load(path, max_bytes=8000)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe would be waited for; a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "none", tmp_path / "none" / "none", "a\0b"):
        with pytest.raises(CheckpointError, match=r"cannot be read .+; expected a safetensors file; check the path"):
            load(path)


def test_cut_short_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, where memory that is mapped from the file would end the process by a signal."""
    path = tmp_path / "run"
    save(path, {"w": np.zeros(100_000)})
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        result = real(descriptor)
        os.truncate(path, 10_000)
        return result

    monkeypatch.setattr("tinygrad_lenet.checkpoint.os.fstat", fstat)
    with pytest.raises(CheckpointError, match="run is damaged or of another kind"):
        load(path)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A good file with bytes changed, cut out, repeated or inserted, and sometimes its header's length set right."""
    tensors = {f"t{i}": np.ones(i, dtype) for i, dtype in enumerate(("float32", "int64", "bool", "float16"))}
    data = bytearray(safetensors.save(tensors, {"state": json.dumps(STATE)}))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 12)))
        kind = draw(st.integers(0, 4))
        if kind == 0 and at < len(data):
            data[at] = draw(st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",:-e'))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == 2:
            data[at:at] = draw(
                st.sampled_from([b"9", b"99999999999", b"-", b"[", b'"', b"null", b"\\u0000", b"\xff", b"NaN"])
            )
        elif kind == 3:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        else:
            data[0:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, len(data))))
    if draw(st.booleans()) and b"}}" in data:
        data[0:8] = struct.pack("<Q", data.rindex(b"}") + 1 - 8)
    return bytes(data)


def test_mutated_files(place: Path) -> None:
    """A mutated file is loaded or refused by one sentence; no other error, no crash, no large allocation."""

    @settings(max_examples=10 * settings().max_examples)  # 10,000 under the thorough profile
    @given(mutations())
    def check(data: bytes) -> None:
        place.write_bytes(data)
        try:
            with little_memory():
                tensors, _ = load(place)
        except CheckpointError as error:
            assert place.name in str(error)
        else:
            assert same(tensors, safetensors.load(data))  # what the library refuses is refused here, too
            assert sum(array.nbytes for array in tensors.values()) <= len(data)

    check()


# Replacing


def test_order_of_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written beside, synced, renamed, the folder synced: at no moment is there less than a whole file."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    log: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"{os.fstat(descriptor).st_size} bytes"
        log.append(f"sync {kind} as {path.read_text()}")
        real_fsync(descriptor)

    def rename(source: str, target: str) -> None:
        log.append(f"rename {Path(source).read_text()} to {Path(target).name} in {Path(source).parent == tmp_path}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    replace(path, b"after!!!")
    assert log == ["sync 8 bytes as before", "rename after!!! to file in True", "sync folder as after!!!"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_what_was_there(
    where: str, error: BaseException, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of several files, of which a later one cannot be written."""

    def fail(source: object, *_: object) -> None:
        if where == "replace" or os.fstat(source).st_size == 4:  # type: ignore[arg-type]
            raise error

    before = saved.read_bytes()
    monkeypatch.setattr(os, where, fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
        replace_all({saved: to_bytes({"w": np.zeros(3)}), saved.with_name("more"): b"more"})
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"checkpoint: {saved} and {saved.with_name('more')} cannot be written (No space left on device); "
            "whatever was there before is intact; make room, or write to another folder"
        )
    assert (saved.read_bytes(), os.listdir(saved.parent)) == (before, [saved.name])


def test_links_and_what_is_no_file(tmp_path: Path) -> None:
    """A link stays one, and what it points to is replaced; folders, pipes and devices are not."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner" / "file")
    replace(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "inner") == ["file"]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (tmp_path / "inner", tmp_path / "none" / "file", tmp_path / "pipe", tmp_path / "null", "a\0b"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            replace(path, b"1")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["inner", "link", "null", "pipe"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_stay(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment are they wider than they were; a new file has those of any new file."""
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "file").chmod(mode)
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    umask = os.umask(0o027)
    try:
        replace(tmp_path / "file", b"after")
        replace(tmp_path / "new", b"after")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == seen[0] == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who guesses the name beside the file has no file of ours overwritten, and does not stop us."""
    (tmp_path / "victim").write_bytes(b"mine")
    monkeypatch.setattr(files, "_serial", itertools.count())
    for serial in range(3):
        (tmp_path / f"file.{os.getpid()}.{serial}.part").symlink_to(tmp_path / "victim")
    replace(tmp_path / "file", b"new")
    assert ((tmp_path / "victim").read_bytes(), (tmp_path / "file").read_bytes()) == (b"mine", b"new")
    assert not (tmp_path / "file").is_symlink()
    files.remove_remains(tmp_path)
    (tmp_path / "download.zip.part").touch()  # of another program
    files.remove_remains(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["download.zip.part", "file", "victim"]


def test_threads_that_save_at_once(tmp_path: Path) -> None:
    """Whoever is last wins, and a reader never sees a mixture."""
    path = tmp_path / "run"
    save(path, {"w": np.zeros(1000)})
    wrong: list[object] = []

    def write(value: int) -> None:
        for _ in range(10):
            save(path, {"w": np.full(1000, value)}, {"value": value})

    def read() -> None:
        while any(thread.is_alive() for thread in threads):
            tensors, state = load(path)
            if not (tensors["w"] == state.get("value", 0)).all():
                wrong.append(state)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    read()
    assert (wrong, os.listdir(tmp_path)) == ([], ["run"])


SAVE_TWICE = """
import numpy as np, sys
from tinygrad_lenet import checkpoint
path, limit = sys.argv[1], sys.argv[2]
checkpoint.save(path, {"w": np.arange(80_000.0)})
if limit == "RLIMIT_FSIZE":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
if limit == "read-only":
    import subprocess
    from pathlib import Path
    subprocess.run(["mount", "-o", "remount,ro", str(Path(path).parent)], check=True)
try:
    checkpoint.save(path, {"w": np.zeros(80_000)})
except checkpoint.CheckpointError as error:
    tensors, _ = checkpoint.load(path)
    assert (tensors["w"] == np.arange(80_000.0)).all()
    import os
    assert os.listdir(os.path.dirname(path)) == ["run"], os.listdir(os.path.dirname(path))
    print(error)
"""

MOUNT = [
    "unshare",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@"',
    "sh",
]


def may_mount() -> bool:
    """Whether a small disk of one's own can be mounted here, seen by one process only."""
    return (
        bool(shutil.which("unshare")) and not subprocess.run([*MOUNT, "/mnt", "true"], capture_output=True).returncode
    )


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("RLIMIT_FSIZE", "File too large"), ("full", "No space left on device"), ("read-only", "Read-only file system")],
)
def test_full_and_read_only_disks(limit: str, reason: str, tmp_path: Path) -> None:
    """One sentence; the previous file is intact, and nothing is left beside it."""
    if limit != "RLIMIT_FSIZE" and not may_mount():
        pytest.skip("mounting is not permitted")
    command = [sys.executable, "-c", SAVE_TWICE, str(tmp_path / "run"), limit]
    prefix = [] if limit == "RLIMIT_FSIZE" else [*MOUNT, str(tmp_path)]
    done = subprocess.run([*prefix, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert f"run cannot be written ({reason}); whatever was there before is intact; make room" in done.stdout


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", {"w": np.arange(100.0)})
    data = bytearray((tmp_path / "run").read_bytes())
    data[-5] ^= 1
    (tmp_path / "run").write_bytes(data)
    with pytest.raises(CheckpointError, match="run is damaged: its tensors are not those that were saved"):
        checkpoint.load(tmp_path / "run")
