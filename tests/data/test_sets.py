"""The image sets: found, checked, downloaded only when asked for, and never taken for each other."""

import errno
import gzip
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_lenet import data
from tinygrad_lenet.data import DataError, sets, write_idx

Loader = Callable[..., tuple[np.ndarray, np.ndarray]]
ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)


def header(ndim: int, N: int) -> bytes:
    return bytes([0, 0, 8, ndim]) + b"".join(length.to_bytes(4, "big") for length in (N, 28, 28)[:ndim])


def fill(
    folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, prefix: str = "train", ending: str = ""
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", labels)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """IMAGES and LABELS pass for the whole of MNIST; in another order they pass for Fashion-MNIST."""
    for name, images, labels in (("mnist", IMAGES, LABELS), ("fashion_mnist", IMAGES[::-1], LABELS[::-1])):
        for prefix, i in (("train", 0), ("t10k", 1)):
            for kind, array in (("images-idx3", np.roll(images, i, axis=0)), ("labels-idx1", np.roll(labels, i))):
                content = header(array.ndim, len(array)) + array.tobytes()
                monkeypatch.setitem(sets._MD5[name], f"{prefix}-{kind}-ubyte", hashlib.md5(content).hexdigest())


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
def test_files_are_found(tmp_path: Path, place: str, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With root given, and by the environment's; a wrong file beside a right one does no harm."""
    fill(tmp_path / place, ending=ending)
    fill(tmp_path / place, np.roll(IMAGES, 1, axis=0), np.roll(LABELS, 1), prefix="t10k", ending=ending)
    fill(tmp_path, IMAGES + 1, ending=".gz" if not ending else "")
    monkeypatch.setenv("TINYGRAD_LENET_DATA", str(tmp_path))
    for images, labels in (data.mnist(tmp_path), data.mnist(str(tmp_path), "train"), data.mnist()):
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)
        assert images.dtype == np.uint8 and labels.dtype == np.int64
    assert data.mnist(tmp_path, "test")[1].tolist() == np.roll(LABELS, 1).tolist()


def test_default_folder_is_the_one_that_pooch_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("TINYGRAD_LENET_DATA", raising=False)
    assert sets._cache() == Path(pooch.os_cache("tinygrad_lenet"))


@pytest.mark.usefixtures("published")
def test_missing_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        data.mnist(tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith("mnist: train-labels-idx1-ubyte not found in ")
    assert str(tmp_path) in sentence and "MNIST/raw" in sentence and "data.mnist(download=True)" in sentence


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("images", "found"),
    [
        (IMAGES[::-1], "is fashion_mnist's train-images-idx3-ubyte"),
        (np.roll(IMAGES, 1, axis=0), "is mnist's t10k-images-idx3-ubyte"),
        (LABELS, "is mnist's train-labels-idx1-ubyte"),
        (IMAGES ^ 1, r"is another file, uint8 of shape \(7, 28, 28\)"),
        (IMAGES.astype(np.int16), "is another file, int16 of shape .*"),
    ],
)
def test_files_of_other_sets_are_refused(tmp_path: Path, images: np.ndarray, found: str) -> None:
    """Whatever their name and form; the sentence says whose they are, if it is known, and how they can be read."""
    fill(tmp_path, images, ending=".gz")
    with pytest.raises(DataError, match=rf"mnist: .*images-idx3-ubyte.gz {found}, expected mnist's train-i.*data\.idx"):
        data.mnist(tmp_path)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ending=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is a damaged gzip file"):
        data.mnist(tmp_path)


# Other sets in the same format


def test_idx(tmp_path: Path) -> None:
    """KMNIST's names and EMNIST's, whose letters have more classes, and whose images lie transposed."""
    fill(tmp_path / "kmnist", ending=".gz")
    letters = LABELS + 17
    fill(tmp_path / "emnist", IMAGES, letters, "emnist-letters-train", ".gz")
    fill(tmp_path / "emnist", IMAGES, letters, "emnist-letters-test")
    np.testing.assert_array_equal(data.idx(tmp_path / "kmnist")[0], IMAGES)
    for split in ("train", "test"):
        for root in (tmp_path / "emnist", str(tmp_path / "emnist" / "emnist-letters")):
            images, labels = data.idx(root, split)
            np.testing.assert_array_equal(images, IMAGES.transpose(0, 2, 1))
            assert images.flags.c_contiguous and labels.dtype == np.int64
            assert labels.tolist() == letters.tolist()
    fill(tmp_path / "emnist", IMAGES[:3], LABELS[:3], "emnist-digits-test")
    assert len(data.idx(tmp_path / "emnist" / "emnist-digits", "test")[0]) == 3
    with pytest.raises(DataError, match=r"holds emnist-digits-test, emnist-letters-test to test on; expected one"):
        data.idx(tmp_path / "emnist", "test")


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (LABELS, LABELS, r"train-images-idx3-ubyte holds uint8 of shape \(7,\), expected uint8 of 3 axes"),
        (IMAGES, IMAGES, r"train-labels-idx1-ubyte holds uint8 of shape \(7, 28, 28\), expected uint8 of 1 axis"),
        (IMAGES.astype(np.int16), LABELS, "train-images-idx3-ubyte holds int16"),
        (IMAGES[:6], LABELS, "6 images and .*train-labels-idx1-ubyte 7 labels"),
    ],
)
def test_idx_refuses_what_does_not_fit(tmp_path: Path, images: np.ndarray, labels: np.ndarray, sentence: str) -> None:
    fill(tmp_path, images, labels)
    with pytest.raises(DataError, match=f"idx: .*{sentence}"):
        data.idx(tmp_path)
    with pytest.raises(DataError, match=r"idx: .* holds no set to test on"):
        data.idx(tmp_path, "test")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz cannot be read|holds"):
        data.idx(tmp_path)
    with pytest.raises(DataError, match=r"idx: .* cannot be read"):
        data.idx(tmp_path / "none" / "none")


@pytest.mark.parametrize("load", [data.mnist, data.fashion_mnist, partial(data.idx, "."), data.digits])
def test_unknown_split(load: Loader) -> None:
    with pytest.raises(ValueError, match="split is 'foo', expected 'train' or 'test'"):
        load(split="foo")


# Downloads, from servers on this machine.


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Give a function that serves a folder and returns its address; the servers stop at the end of the test."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    def start(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def upstream(tmp_path: Path, published: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the four files, whose checksums stand in for the published ones."""
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "upstream"
    fill(folder, ending=".gz")
    fill(folder, np.roll(IMAGES, 1, axis=0), np.roll(LABELS, 1), prefix="t10k", ending=".gz")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setitem(sets._SHA256, "mnist", sums)
    return folder


def test_download_goes_on_to_the_next_mirror(
    tmp_path: Path, upstream: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(tmp_path / "empty"), serve(upstream)))
    images, labels = data.mnist(tmp_path / "root", "test", download=True)
    np.testing.assert_array_equal(images, np.roll(IMAGES, 1, axis=0))
    np.testing.assert_array_equal(labels, np.roll(LABELS, 1))
    names = sorted(str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*.*"))
    assert names == ["mnist/t10k-images-idx3-ubyte.gz", "mnist/t10k-labels-idx1-ubyte.gz"]
    monkeypatch.setitem(sets._MIRRORS, "mnist", ())
    assert len(data.mnist(tmp_path / "root", "test", download=True)[0]) == len(IMAGES)  # no second download


def test_wrong_checksum_never_reaches_the_cache(
    tmp_path: Path, upstream: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = tmp_path / "forged"
    fill(forged, IMAGES[::-1], LABELS[::-1], ending=".gz")  # a good file, but not the published one
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(forged),))
    with pytest.raises(DataError, match=r"no mirror delivered train-images-idx3-ubyte.gz intact: .*SHA256"):
        data.mnist(tmp_path / "root", download=True)
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(forged), serve(upstream)))
    np.testing.assert_array_equal(data.mnist(tmp_path / "root", download=True)[0], IMAGES)


@pytest.mark.parametrize("content", [b"", b"an error page", gzip.compress(header(3, 7) + IMAGES[::-1].tobytes())])
def test_wrong_files_are_fetched_again(
    content: bytes, tmp_path: Path, upstream: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that downloads go to they are replaced; elsewhere they are somebody's, and left."""
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(upstream),))
    (tmp_path / "root" / "mnist").mkdir(parents=True)
    wrong = [tmp_path / "root" / "mnist" / "train-images-idx3-ubyte.gz", tmp_path / "root" / "train-labels-idx1-ubyte"]
    for path in wrong:
        path.write_bytes(content)
    for download in (True, False):
        np.testing.assert_array_equal(data.mnist(tmp_path / "root", download=download)[0], IMAGES)
    assert [path.read_bytes() == content for path in wrong] == [False, True]


def test_folder_that_cannot_be_written_to(tmp_path: Path, upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named as such, before any mirror is asked."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"mnist: .*file/mnist cannot be written to \(Not a directory\), expected"):
        data.mnist(tmp_path / "file", download=True)

    def fail(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(sets.tempfile, "TemporaryFile", fail)
    with pytest.raises(DataError, match=r"mnist: .*mnist cannot be written to \(Read-only file system\)"):
        data.mnist(tmp_path, download=True)


def test_no_mirror_answers(
    tmp_path: Path, upstream: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(tmp_path / "a"), serve(tmp_path / "b")))
    with pytest.raises(
        DataError, match=r"no mirror delivered .*127.0.0.1.*404.*127.0.0.1.*404.*put the file into .*mnist by"
    ):
        data.mnist(tmp_path / "root", download=True)


def test_no_pooch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)  # importing it now fails
    with pytest.raises(DataError, match=r"needs pooch.*pip install pooch"):
        data.mnist(tmp_path, download=True)


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys, tinygrad_lenet.data.sets as s; s.digits(); print({'pooch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_every_checksum_is_there_once() -> None:
    names = {f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")}
    for table, length in ((sets._SHA256, 64), (sets._MD5, 32)):
        sums = [value for listed in table.values() for value in listed.values()]
        assert all({f"{name.removesuffix('.gz')}.gz" for name in listed} == names for listed in table.values())
        assert len(set(sums)) == 8 and all(len(value) == length and int(value, 16) for value in sums)


# The digits that come with the package.


def test_digits() -> None:
    train, test = data.digits(), data.digits("test")
    assert train[0].shape == (1437, 28, 28) and test[0].shape == (360, 28, 28)
    for images, labels in (train, test):
        assert images.dtype == np.uint8 and labels.dtype == np.int64 and labels.shape == images.shape[:1]
        assert np.bincount(labels, minlength=10).min() >= 25
        assert images.max() == 255
        assert not images[:, :4].any() and not images[:, 24:].any() and not images[:, :, :4].any()
        rows, columns = (images.sum(axis, dtype=float) @ np.arange(28) / images.sum((1, 2)) for axis in (2, 1))
        assert abs(rows.mean() - 13.5) < 0.5 and abs(columns.mean() - 13.5) < 0.5


def test_enlarging_keeps_flat_areas_flat_and_orientation() -> None:
    small = np.zeros((1, 8, 8), np.uint8)
    small[0, :3, 5:] = 16
    large = sets._enlarge(small)[0]
    assert (large[5:9, 18:23] >= 240).all() and not large[14:].any() and not large[:, :14].any()


def mnist_folder() -> Path:
    chosen = os.environ.get("TINYGRAD_LENET_MNIST")
    return Path(chosen) if chosen else ROOT.parent / "shared" / "data" / "mnist"


@pytest.mark.skipif(
    not any(mnist_folder().glob("*-idx3-ubyte*")), reason="needs MNIST: set TINYGRAD_LENET_MNIST to its folder"
)
def test_real_mnist() -> None:
    for split, N in (("train", 60_000), ("test", 10_000)):
        images, labels = data.mnist(mnist_folder(), split)
        assert images.shape == (N, 28, 28) and labels.shape == (N,)
        assert abs(images.mean() / 255 - 0.1317) < 0.002 and np.bincount(labels).min() > 0.08 * N
