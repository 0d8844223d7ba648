"""The image sets: MNIST and Fashion-MNIST from files, and a small set of digits that comes with the package."""

import os
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .idx import DataError, PathLike, read_idx

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_PREFIX = {"train": "train", "test": "t10k"}  # the test files are named after their 10,000 images
_CLASSES = 10
_FOLDERS = {"mnist": ("mnist", "MNIST/raw", "."), "fashion_mnist": ("fashion_mnist", "FashionMNIST/raw", ".")}

# Mirrors are tried in this order.
_MIRRORS: dict[str, Sequence[str]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
}

# SHA-256 of the published .gz files, as TensorFlow Datasets lists them for these addresses.
_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}

# Both sets use the same file names; their first ten labels tell them apart.
_FIRST_LABELS = {
    ("mnist", "train"): (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ("mnist", "test"): (7, 2, 1, 0, 4, 1, 4, 9, 5, 9),
    ("fashion_mnist", "train"): (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ("fashion_mnist", "test"): (9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
}


def mnist(root: PathLike | None = None, split: str = "train", download: bool = False) -> tuple[Images, Labels]:
    """Return MNIST's handwritten digits, white on black: images uint8 (N, H, W) = (N, 28, 28), labels int64 (N,).

    split "train" has 60,000 images, "test" 10,000. The IDX files, gzipped or not, are looked for in root's
    subfolders mnist and MNIST/raw and in root itself; root=None means the folder named by the environment variable
    TINYGRAD_LENET_DATA, else the user's cache. download=True fetches missing files with pooch into root's mnist,
    each verified by SHA-256. Raises DataError for files that are missing, damaged or not MNIST's.
    Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits.
    """
    return _load("mnist", root, split, download)


def fashion_mnist(root: PathLike | None = None, split: str = "train", download: bool = False) -> tuple[Images, Labels]:
    """Return Fashion-MNIST's articles of clothing: images uint8 (N, H, W) = (N, 28, 28), labels int64 (N,).

    Like `mnist`, with the subfolders fashion_mnist and FashionMNIST/raw.
    Source: Xiao, Rasul, Vollgraf, Fashion-MNIST, arXiv:1708.07747 (MIT licence).
    """
    return _load("fashion_mnist", root, split, download)


def digits(split: str = "train") -> tuple[Images, Labels]:
    """Return 1,797 small handwritten digits that come with the package: images uint8 (N, 28, 28), labels int64 (N,).

    Every fifth image belongs to split "test" (360 images), the others to "train" (1,437): the writers of one are those
    of the other, as in MNIST they are not, so expect fewer errors here (nearest neighbour makes 0.8%). The 8x8
    originals, values 0..16, are brought to MNIST's format: 20x20 by cubic interpolation, contrast raised, centred on
    28x28, white on black.
    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    https://doi.org/10.24432/C50P49, CC BY 4.0.

    >>> images, labels = digits("test")
    >>> images.shape, labels[:5]
    ((360, 28, 28), array([0, 5, 0, 5, 0]))
    """
    _prefix("digits", split)
    small, labels = (_embedded(f"digits-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    chosen = (np.arange(len(small)) % 5 == 0) == (split == "test")
    return _enlarge(small[chosen]), labels[chosen].astype(np.int64)


def _prefix(function: str, split: str) -> str:
    if split not in _PREFIX:
        raise ValueError(f"{function}: split is {split!r}, expected 'train' or 'test'")
    return _PREFIX[split]


def _embedded(name: str) -> npt.NDArray[Any]:
    with as_file(files(__package__) / "digits" / name) as path:
        return read_idx(path)


def _enlarge(small: Images) -> Images:
    """Bring (N, 8, 8) values 0..16 to (N, 28, 28) values 0..255: cubic convolution to 20x20, contrast, a border of 4.

    The kernel is that of Keys, Cubic convolution interpolation for digital image processing, 1981, with a = -1/2.
    """
    centre = (np.arange(20) + 0.5) * 8 / 20 - 0.5  # of each new pixel, in old pixels
    t = np.abs(centre[:, None] - np.arange(8))
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weight = np.where(t < 1, near, np.where(t < 2, far, 0.0))  # [20 8]
    ink = weight @ (small / 16) @ weight.T
    ink = np.clip((ink - 0.15) * 1.6, 0, 1)  # strokes as white, and edges as steep, as MNIST's
    large = np.zeros((len(small), 28, 28), np.uint8)
    large[:, 4:24, 4:24] = np.rint(ink * 255)
    return large


def _load(name: str, root: PathLike | None, split: str, download: bool) -> tuple[Images, Labels]:
    prefix = _prefix(name, split)
    folder = _cache() if root is None else Path(root)
    wanted = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    found = {file: _find(name, folder, file) for file in wanted}
    missing = [file for file, path in found.items() if path is None]
    if missing and not download:
        raise DataError(
            f"{name}: {' and '.join(missing)} not found in {folder} or its subfolders "
            f"{' and '.join(_FOLDERS[name][:-1])}, with or without .gz; put them into one of these, "
            f"or call data.{name}(download=True)"
        )
    for file in missing:
        found[file] = _fetch(name, f"{file}.gz", folder / _FOLDERS[name][0])
    paths = [path for path in found.values() if path is not None]
    return _check(name, split, *paths)


def _cache() -> Path:
    """Where pooch.os_cache("tinygrad_lenet") would point, unless the environment says otherwise; needs no pooch."""
    chosen = os.environ.get("TINYGRAD_LENET_DATA")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local, "tinygrad_lenet", "tinygrad_lenet", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinygrad_lenet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tinygrad_lenet")


def _find(name: str, folder: Path, file: str) -> Path | None:
    for place in _FOLDERS[name]:
        for ending in ("", ".gz"):
            path = folder / place / f"{file}{ending}"
            if path.is_file():
                return path
    return None


def _fetch(name: str, file: str, folder: Path) -> Path:
    """Download one file into folder from the first mirror that has it; only a verified file gets its name."""
    try:
        import pooch  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(
            f"{name}: downloading {file} needs pooch, which is not installed; run python -m pip install pooch"
        ) from error
    failures = []
    for mirror in _MIRRORS[name]:
        try:
            # pooch writes beside the file, verifies, and renames.
            pooch.retrieve(mirror + file, f"sha256:{_SHA256[name][file]}", fname=file, path=folder)
        except (OSError, ValueError) as error:  # no connection; wrong checksum
            failures.append(f"{mirror} ({type(error).__name__}: {error})")
        else:
            return folder / file
    raise DataError(
        f"{name}: {file} came intact from no mirror: {'; '.join(failures)}; check the connection, "
        f"or put the file into {folder} by hand"
    )


def _check(name: str, split: str, image_path: Path, label_path: Path) -> tuple[Images, Labels]:
    """Read an image and a label file and make sure that they are what their names say and belong together."""
    images, labels = read_idx(image_path), read_idx(label_path)
    advice = "check that the files were not mixed up, or fetch them again"
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        found = f"{images.dtype} of shape {images.shape}"
        raise DataError(f"{name}: {image_path} holds {found}, expected uint8 images of shape (N, 28, 28); {advice}")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        found = f"{labels.dtype} of shape {labels.shape}"
        raise DataError(f"{name}: {label_path} holds {found}, expected uint8 labels of shape (N,); {advice}")
    if len(images) != len(labels):
        raise DataError(
            f"{name}: {image_path} holds {len(images)} images and {label_path} {len(labels)} labels, "
            f"expected one label an image; {advice}"
        )
    if labels.max() >= _CLASSES:
        raise DataError(f"{name}: {label_path} holds the label {labels.max()}, expected 0 to {_CLASSES - 1}; {advice}")
    for (other, part), first in _FIRST_LABELS.items():
        if (other, part) != (name, split) and tuple(labels[:10].tolist()) == first:
            raise DataError(f"{name}: {label_path} is the {part} file of {other}, expected {name}'s {split}; {advice}")
    return images, labels.astype(np.int64)
