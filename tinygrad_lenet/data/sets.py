"""The image sets: MNIST, Fashion-MNIST and others from files, and a small set of digits that comes with the package."""

import hashlib
import os
import re
import struct
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import PathLike
from .idx_files import DataError, read_idx

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_PREFIX = {"train": "train", "test": "t10k"}  # the test files are named after their 10,000 images
_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
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

# MD5 of the unpacked contents: the same images if they are packed differently.
_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def mnist(root: PathLike | None = None, split: str = "train", download: bool = False) -> tuple[Images, Labels]:
    """Return MNIST's handwritten digits, white on black: images uint8 (N, H, W) = (N, 28, 28), labels int64 (N,).

    Split "train" has 60,000 images, "test" 10,000. The IDX files, gzipped or not, are looked up in root's subfolders
    mnist and MNIST/raw and in root itself; root=None means the folder named by the environment variable
    TINYGRAD_LENET_DATA, or else the user's cache. download=True downloads missing or wrong files with pooch into root's
    subfolder mnist and verifies each by SHA-256. Raises DataError for files that are missing, damaged or, by their MD5,
    not MNIST's; `idx` reads other sets.
    Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits.
    """
    return _load("mnist", root, split, download)


def fashion_mnist(root: PathLike | None = None, split: str = "train", download: bool = False) -> tuple[Images, Labels]:
    """Return Fashion-MNIST's articles of clothing: images uint8 (N, H, W) = (N, 28, 28), labels int64 (N,).

    Like `mnist`, with the subfolders fashion_mnist and FashionMNIST/raw.
    Source: Xiao, Rasul, Vollgraf, Fashion-MNIST, arXiv:1708.07747 (MIT licence).
    """
    return _load("fashion_mnist", root, split, download)


def idx(root: PathLike, split: str = "train") -> tuple[Images, Labels]:
    """Return any set in MNIST's format, such as KMNIST or EMNIST: images uint8 (N, H, W), labels int64 (N,).

    root is the folder of the set's IDX files, gzipped or not, whose names end in train-images-idx3-ubyte and
    train-labels-idx1-ubyte, with t10k or test instead of train for split "test". If several sets share a folder, append
    the beginning of the file names, for example "data/emnist-letters". Files called emnist-... hold transposed images,
    which are transposed back. Raises DataError for files that are missing, damaged or do not fit together.
    Source: Cohen, Afshar, Tapson, van Schaik, EMNIST, arXiv:1702.05373.

    >>> import tempfile
    >>> from tinygrad_lenet.data import write_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_idx(f"{folder}/t10k-images-idx3-ubyte.gz", np.zeros((2, 28, 28), np.uint8))
    ...     write_idx(f"{folder}/t10k-labels-idx1-ubyte.gz", np.array([25, 3], np.uint8))
    ...     images, labels = idx(folder, "test")
    >>> images.shape, labels
    ((2, 28, 28), array([25,  3]))
    """
    _prefix("idx", split)
    place = Path(root)
    folder, start = (place, "") if place.is_dir() else (place.parent, place.name)
    part = "train" if split == "train" else "(?:t10k|test)"
    form = re.compile(rf"({re.escape(start)}.*{part})-{_KINDS[0]}(?:\.gz)?")
    try:
        sets = {found[1] for name in os.listdir(folder) if (found := form.fullmatch(name))}
    except OSError as error:
        raise DataError(
            f"idx: {folder} cannot be read ({error.strerror or error}), expected a folder of IDX files; check the path"
        ) from error
    if start and not sets:
        raise DataError(
            f"idx: {place} is no folder, and {folder} holds no {start}... to {split} on; expected a folder of IDX "
            "files, or a folder and what the names of the set's files begin with, such as data/emnist-letters"
        )
    if len(sets) != 1:
        raise DataError(
            f"idx: {folder} holds {', '.join(sorted(sets)) or 'no set'} to {split} on; expected one set, whose files' "
            f"names end in {split}-{_KINDS[0]} and {split}-{_KINDS[1]}; if there are several, append what the names of "
            "one set's files begin with"
        )
    (stem,) = sets
    paths = [folder / f"{stem}-{kind}" for kind in _KINDS]
    paths = [path if path.exists() else path.with_name(f"{path.name}.gz") for path in paths]
    images, labels = map(read_idx, paths)
    for path, array, ndim in zip(paths, (images, labels), (3, 1), strict=True):
        if array.dtype != np.uint8 or array.ndim != ndim:
            raise DataError(
                f"idx: {path} holds {array.dtype} of shape {array.shape}, expected uint8 of "
                f"{ndim} {'axes' if ndim > 1 else 'axis'}; check that the files were not mixed up"
            )
    if len(images) != len(labels):
        raise DataError(
            f"idx: {paths[0]} holds {len(images)} images and {paths[1]} {len(labels)} labels, expected one label "
            "per image; check that the files were not mixed up"
        )
    if stem.startswith("emnist-"):
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, labels.astype(np.int64)


def digits(split: str = "train") -> tuple[Images, Labels]:
    """Return 1,797 small handwritten digits that come with the package: images uint8 (N, 28, 28), labels int64 (N,).

    Every fifth image belongs to split "test" (360 images), the others to "train" (1,437). Unlike in MNIST, both splits
    share their writers, so expect fewer errors (nearest neighbour has 0.8%). The 8x8 originals, with values 0..16, are
    converted to MNIST's format: 20x20 by cubic interpolation, with more contrast, centred on 28x28, white on black.
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
    """Convert (N, 8, 8) values 0..16 to (N, 28, 28) values 0..255: cubic convolution to 20x20, contrast, a border of 4.

    The kernel is by Keys, Cubic convolution interpolation for digital image processing, 1981, with a = -1/2.
    """
    centre = (np.arange(20) + 0.5) * 8 / 20 - 0.5  # of each new pixel, in old pixels
    t = np.abs(centre[:, None] - np.arange(8))
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weight = np.where(t < 1, near, np.where(t < 2, far, 0.0))  # [20 8]
    ink = weight @ (small / 16) @ weight.T
    ink = np.clip((ink - 0.15) * 1.6, 0, 1)  # makes strokes as white and edges as steep as MNIST's
    large = np.zeros((len(small), 28, 28), np.uint8)
    large[:, 4:24, 4:24] = np.rint(ink * 255)
    return large


def _load(name: str, root: PathLike | None, split: str, download: bool) -> tuple[Images, Labels]:
    prefix = _prefix(name, split)
    folder = _cache() if root is None else Path(root)
    images, labels = (_find(name, folder, f"{prefix}-{kind}", download) for kind in _KINDS)
    return images, labels.astype(np.int64)


def _find(name: str, folder: Path, file: str, download: bool) -> Images:
    """The contents of one of a set's files, from the first folder that has the right file."""
    wrong = []
    for place in _FOLDERS[name]:
        for path in (folder / place / file, folder / place / f"{file}.gz"):
            if path.exists():
                try:
                    return _verified(name, path, file)
                except DataError as error:
                    wrong.append(error)
    if download:
        return _verified(name, _fetch(name, f"{file}.gz", folder / _FOLDERS[name][0]), file)
    if wrong:
        raise wrong[0]
    raise DataError(
        f"{name}: {file} not found in {folder} or its subfolders {' and '.join(_FOLDERS[name][:-1])}, with or without "
        f".gz; put it into one of these, or pass --download (in Python: data.{name}(download=True))"
    )


def _verified(name: str, path: Path, file: str) -> Images:
    """The array in ``path``; DataError unless `_MD5` says that it is this file of the set."""
    array: Images = read_idx(path, max_bytes=2**26)
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(array.data)
    known = {md5: f"{other}'s {content}" for other, sums in _MD5.items() for content, md5 in sums.items()}
    found = known.get(digest.hexdigest(), f"another file, {array.dtype} of shape {array.shape}")
    if found != f"{name}'s {file}":
        raise DataError(
            f"{name}: {path} is {found}, expected {name}'s {file}; "
            f"data.{name}(download=True) or --download gets that one; data.idx or --dataset idx reads other sets"
        )
    return array


def _cache() -> Path:
    """The folder named in the environment, or else what pooch.os_cache("tinygrad_lenet") would give, without pooch."""
    chosen = os.environ.get("TINYGRAD_LENET_DATA")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local, "tinygrad_lenet", "tinygrad_lenet", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinygrad_lenet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tinygrad_lenet")


def _cause(error: BaseException) -> str:
    """What an error goes back to: requests wraps what the socket said three times."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {error}"


def _fetch(name: str, file: str, folder: Path) -> Path:
    """Download one file into folder from the first mirror that has it; only a verified file gets its name."""
    try:
        import pooch  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(
            f"{name}: downloading {file} needs pooch, which is not installed; run python -m pip install pooch"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DataError(
            f"{name}: {folder} cannot be written to ({error.strerror or error}), expected a folder for {file}; "
            "choose another one, or put the file there by hand"
        ) from error
    failures = []
    for mirror in _MIRRORS[name]:
        try:
            # pooch writes beside the file, verifies, and renames.
            pooch.retrieve(mirror + file, f"sha256:{_SHA256[name][file]}", fname=file, path=folder)
        except (OSError, ValueError) as error:  # no connection; wrong checksum
            failures.append(f"{mirror} ({_cause(error)})")
        else:
            return folder / file
    raise DataError(
        f"{name}: no mirror delivered {file} intact: {'; '.join(failures)}; check the connection, "
        f"or put the file into {folder} by hand"
    )
