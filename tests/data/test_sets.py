"""The image sets: found, checked, downloaded only when asked for, and never taken for each other."""

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


def fill(
    folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, prefix: str = "train", ending: str = ""
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", labels)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize(
    ("load", "place"),
    [
        (data.mnist, "."),
        (data.mnist, "mnist"),
        (data.mnist, "MNIST/raw"),
        (data.fashion_mnist, "."),
        (data.fashion_mnist, "fashion_mnist"),
        (data.fashion_mnist, "FashionMNIST/raw"),
    ],
)
def test_files_are_found(tmp_path: Path, load: Loader, place: str, split: str, prefix: str, ending: str) -> None:
    fill(tmp_path / place, prefix=prefix, ending=ending)
    for root in (tmp_path, str(tmp_path)):
        images, labels = load(root, split)
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)
        assert images.dtype == np.uint8 and labels.dtype == np.int64


def test_default_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGRAD_LENET_DATA", str(tmp_path))
    fill(tmp_path / "mnist")
    assert len(data.mnist()[0]) == len(IMAGES)


def test_default_folder_is_the_one_that_pooch_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("TINYGRAD_LENET_DATA", raising=False)
    assert sets._cache() == Path(pooch.os_cache("tinygrad_lenet"))


def test_missing_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        data.mnist(tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith("mnist: train-labels-idx1-ubyte not found in ")
    assert "train-images" not in sentence
    assert str(tmp_path) in sentence and "MNIST/raw" in sentence and "data.mnist(download=True)" in sentence


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (LABELS, LABELS, r"train-images-idx3-ubyte holds uint8 of shape \(7,\), expected uint8 images"),
        (IMAGES, IMAGES, r"train-labels-idx1-ubyte holds uint8 of shape \(7, 28, 28\), expected uint8 labels"),
        (IMAGES[:, :, :27], LABELS, "train-images-idx3-ubyte holds"),
        (IMAGES.astype(np.int16), LABELS, "train-images-idx3-ubyte holds int16"),
        (IMAGES, LABELS.astype(np.int32), "train-labels-idx1-ubyte holds int32"),
        (IMAGES[:6], LABELS, "6 images and .*train-labels-idx1-ubyte 7 labels"),
        (IMAGES, LABELS + 1, "train-labels-idx1-ubyte holds the label 10, expected 0 to 9"),
    ],
)
def test_mislabelled_files_are_refused(tmp_path: Path, images: np.ndarray, labels: np.ndarray, sentence: str) -> None:
    fill(tmp_path, images, labels)
    with pytest.raises(DataError, match=f"mnist: .*{sentence}"):
        data.mnist(tmp_path)


def test_sets_and_splits_are_not_taken_for_each_other(tmp_path: Path) -> None:
    labels = np.array(sets._FIRST_LABELS["mnist", "train"], np.uint8)
    fill(tmp_path, np.zeros((10, 28, 28), np.uint8), labels)
    fill(tmp_path, np.zeros((10, 28, 28), np.uint8), labels, prefix="t10k")
    assert data.mnist(tmp_path)[1].tolist() == labels.tolist()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is the train file of mnist, expected fashion_mnist's"):
        data.fashion_mnist(tmp_path)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is the train file of mnist, expected mnist's test"):
        data.mnist(tmp_path, "test")


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ending=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is a damaged gzip file"):
        data.mnist(tmp_path)


@pytest.mark.parametrize("load", [data.mnist, data.fashion_mnist, data.digits])
def test_unknown_split(load: Loader) -> None:
    with pytest.raises(ValueError, match=f"{load.__name__}: split is 'foo', expected 'train' or 'test'"):
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
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the four files, whose checksums stand in for the published ones."""
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "upstream"
    for prefix in ("train", "t10k"):
        fill(folder, prefix=prefix, ending=".gz")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setitem(sets._SHA256, "mnist", sums)
    return folder


def test_download_goes_on_to_the_next_mirror(
    tmp_path: Path, upstream: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(tmp_path / "empty"), serve(upstream)))
    images, labels = data.mnist(tmp_path / "root", "test", download=True)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
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
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz came intact from no mirror: .*SHA256"):
        data.mnist(tmp_path / "root", download=True)
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(forged), serve(upstream)))
    np.testing.assert_array_equal(data.mnist(tmp_path / "root", download=True)[0], IMAGES)


def test_no_mirror_answers(
    tmp_path: Path, upstream: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sets._MIRRORS, "mnist", (serve(tmp_path / "a"), serve(tmp_path / "b")))
    with pytest.raises(DataError, match=r"no mirror: .*127.0.0.1.*404.*127.0.0.1.*404.*put the file into .*mnist by"):
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
    sums = [value for listed in sets._SHA256.values() for value in listed.values()]
    assert all(set(listed) == names for listed in sets._SHA256.values())
    assert len(set(sums)) == 8 and all(len(value) == 64 and int(value, 16) for value in sums)


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


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    whole = datasets.load_digits()
    np.testing.assert_array_equal(sets._embedded("digits-images-idx3-ubyte.gz"), whole.images)
    fifth = np.arange(1797) % 5 == 0
    np.testing.assert_array_equal(data.digits()[1], whole.target[~fifth])
    np.testing.assert_array_equal(data.digits("test")[1], whole.target[fifth])


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
@pytest.mark.parametrize(
    ("split", "N", "images_sum", "labels_sum"),
    [
        # SHA-256 of the published files, uncompressed
        (
            "train",
            60_000,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        (
            "test",
            10_000,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ],
)
def test_real_mnist(split: str, N: int, images_sum: str, labels_sum: str) -> None:
    images, labels = data.mnist(mnist_folder(), split)
    assert images.shape == (N, 28, 28) and labels.shape == (N,)
    assert hashlib.sha256(header(3, N) + images.tobytes()).hexdigest() == images_sum
    assert hashlib.sha256(header(1, N) + labels.astype(np.uint8).tobytes()).hexdigest() == labels_sum


def header(ndim: int, N: int) -> bytes:
    return bytes([0, 0, 8, ndim]) + b"".join(length.to_bytes(4, "big") for length in (N, 28, 28)[:ndim])
