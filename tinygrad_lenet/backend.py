"""The NumPy/CuPy switch: arrays decide which library computes, and devices decide where new arrays are.

Nothing outside this file asks which backend it runs on. An op receives the namespace ``xp`` of its inputs
(`backend_of`), and faster kernels for an op on a backend are found in one table (`kernel`).
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Array = Any  # an array of any backend
Kernel = Callable[..., Array]


class DeviceError(ValueError):
    """A device that does not exist or does not work here, or inputs that are on different devices."""


class Graphs:
    """Records work on a CUDA device as graphs, on a stream of its own and in memory that nothing else uses."""

    def __init__(self, xp: Any, index: int) -> None:
        self._xp, self._device = xp, xp.cuda.Device(index)
        with self._device:
            self._stream, self._pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this block work goes to the stream, and new memory comes from the pool."""
        with self._device:
            self._device.synchronize()
            with self._stream, self._xp.cuda.using_allocator(self._pool.malloc):
                yield
            self._stream.synchronize()

    def begin(self) -> None:
        """From now on work is noted, not done."""
        self._stream.begin_capture()

    def end(self) -> Any:
        """A graph of what was noted; its ``launch()`` does that, on the stream that is current then."""
        return self._stream.end_capture()

    def abandon(self) -> None:
        """Forget what was noted."""
        with suppress(Exception):
            self._stream.end_capture()


@dataclass(frozen=True)
class Backend:
    """An array library: its namespace, its array type, and how to convert from and to NumPy."""

    name: str
    xp: Any
    array_type: type
    from_numpy: Callable[[np.ndarray, int], Array]
    to_numpy: Callable[[Array], np.ndarray]
    index_of: Callable[[Array], int] = lambda array: 0
    selected: Callable[[int], Any] = lambda index: nullcontext()  # entered while arrays are created on device `index`
    count: int = 1  # number of devices
    graphs: "Callable[[int], Graphs | None]" = lambda index: None  # what records work on a device as graphs
    block: int = 2**62  # elements that several passes take at a time, so that they find them in the cache

    def current(self, *arrays: Array) -> Any:
        """A context in which new arrays and results are on the device of ``arrays``."""
        if self.count == 1:
            return nullcontext()
        return self.selected(next((self.index_of(array) for array in arrays if type(array) is self.array_type), 0))

    def device_of(self, array: Array) -> str:
        """The device name of an array, for instance "cpu" or "cuda:1"."""
        index = self.index_of(array)
        return f"{self.name}:{index}" if index else self.name


NUMPY = Backend("cpu", np, np.ndarray, from_numpy=lambda array, index: array, to_numpy=lambda array: array, block=2**17)

_by_name: dict[str, Backend] = {"cpu": NUMPY}
_by_type: dict[type, Backend] = {np.ndarray: NUMPY}
_ALIASES = {"numpy": "cpu", "gpu": "cuda", "cupy": "cuda"}


def register(backend: Backend) -> None:
    """Register a backend, whose arrays and device name are then accepted."""
    _by_name[backend.name] = backend
    _by_type[backend.array_type] = backend


_INSTALL = (
    'run python -m pip install "cupy-cuda12x[ctk]" (or cupy-cuda13x, as the driver is), which brings all that CuPy '
    'needs, or use device "cpu"'
)


def _reason(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _load_cupy() -> Backend:
    """Import CuPy on first use, since the package itself needs only NumPy; DeviceError if it cannot compute here."""
    if "cuda" in _by_name:
        return _by_name["cuda"]
    with warnings.catch_warnings(record=True) as said:  # CuPy warns of a library that it cannot load, and goes on
        warnings.simplefilter("always")
        try:
            import cupy
        except ImportError as error:
            cause = _reason(error.__cause__ or error)  # CuPy's own text is a page
            raise DeviceError(f"device 'cuda' needs CuPy, which cannot be imported ({cause}); {_INSTALL}") from None
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(
                f"device 'cuda' needs an NVIDIA GPU, and CuPy finds none ({_reason(error)}); use device 'cpu'"
            ) from None
        if not count:
            raise DeviceError("device 'cuda' needs an NVIDIA GPU, and CuPy finds none; use device 'cpu'")
        try:  # a driver alone is not enough: this takes NVRTC, CUDA's headers, cuBLAS and some memory
            probe = cupy.ones((2, 2), np.float32)
            float((probe @ probe + probe).sum())
        except (MemoryError, cupy.cuda.runtime.CUDARuntimeError) as error:
            raise DeviceError(f"device 'cuda' cannot be used: {explained(error)}; or use device 'cpu'") from None
        except Exception as error:
            cause = next((str(each.message) for each in said if "failed to load" in str(each.message)), _reason(error))
            raise DeviceError(f"device 'cuda' has a GPU, but CuPy cannot compute on it ({cause}); {_INSTALL}") from None
    for each in said:
        warnings.warn(each.message, stacklevel=2)

    def from_numpy(array: np.ndarray, index: int) -> Array:
        # CuPy uploads slowly what is not contiguous, batch-last images too, so it gets the axes as they lie.
        order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        with cupy.cuda.Device(index):
            return cupy.asarray(np.asarray(array.transpose(order), order="C")).transpose(np.argsort(order).tolist())

    backend = Backend(
        "cuda",
        cupy,
        cupy.ndarray,
        from_numpy,
        cupy.asnumpy,
        lambda array: int(array.device.id),
        cupy.cuda.Device,
        count,
        partial(Graphs, cupy),
    )
    register(backend)
    return backend


def parse_device(device: str) -> tuple[Backend, int]:
    """The backend and the device number of a device name; DeviceError if there is no such device.

    >>> parse_device("numpy")[0].name
    'cpu'
    """
    if not isinstance(device, str):
        raise TypeError(f"device must be a name such as 'cpu', 'cuda' or 'cuda:1', not {device!r}")
    name, _, number = device.partition(":")
    name = _ALIASES.get(name, name)
    known = name in _by_name or name == "cuda"
    if not known or (number and not number.isdecimal()):
        raise DeviceError(f"unknown device {device!r}; expected 'cpu', 'cuda' or 'cuda:1'")
    backend, index = _by_name.get(name) or _load_cupy(), int(number or 0)
    if index >= backend.count:
        raise DeviceError(f"device {device!r} does not exist; there are {backend.count}, counted from 0")
    return backend, index


def explained(error: BaseException) -> str | None:
    """An error of CuPy's or CUDA's in one sentence that says what to do, or None for any other error."""
    if type(error).__module__.partition(".")[0] not in ("cupy", "cupy_backends"):
        return None
    reason = _reason(error)
    if isinstance(error, MemoryError):
        asked = re.search(r"allocating ([\d,]+) bytes", reason)
        try:
            free = f"{_by_name['cuda'].xp.cuda.runtime.memGetInfo()[0]:,} bytes are free"
        except Exception:  # a device that is lost has no memory to speak of
            free = "it does not say how much is free"
        wanted = f"{asked[1]} bytes were asked for" if asked else reason
        return f"there is not enough memory on the GPU: {wanted}, {free}; try a smaller batch"
    for name, meaning in _FAILURES.items():
        if name in reason:
            return f"{meaning} ({reason})"
    return f"the GPU reports: {reason}"


_FAILURES = {  # by what CUDA calls them
    "cudaErrorIllegalAddress": "an index was out of range on the GPU; run it under detect_anomaly() to find which",
    "cudaErrorAssert": "an index was out of range on the GPU; run it under detect_anomaly() to find which",
    "cudaErrorNoKernelImageForDevice": "CuPy does not fit this GPU; install the one for its driver",
    "cudaErrorInsufficientDriver": "the driver is too old for this CuPy; update it, or install cupy-cuda12x",
    "cudaErrorNoDevice": "the GPU is gone; start again, and look at nvidia-smi if that does not help",
    "cudaErrorDevicesUnavailable": "the GPU is busy or gone; start again, and look at nvidia-smi if that does not help",
    "cudaErrorECCUncorrectable": "the GPU's memory is damaged; look at nvidia-smi",
    "cudaErrorLaunchFailure": "the GPU failed; start again, and look at nvidia-smi if that does not help",
    "cudaErrorLaunchTimeout": "the GPU took too long, as one that also draws the screen may; try a smaller batch",
    "cudaErrorUnknown": "the GPU is lost; start again, and look at nvidia-smi if that does not help",
}


def backend_of(*arrays: Array) -> Backend:
    """The backend of the arrays; Python numbers go with any. DeviceError if the arrays are on different devices."""
    found: Backend | None = None
    for array in arrays:
        backend = _by_type.get(type(array))
        if backend is not None and backend is not found:
            if found is not None:
                names = " and ".join(sorted({found.name, backend.name}))
                raise DeviceError(f"inputs lie on different devices, {names}; move one of them with .to(device)")
            found = backend
    if found is None:
        return NUMPY
    if found is not NUMPY:
        devices = {found.device_of(array) for array in arrays if type(array) is found.array_type}
        if len(devices) > 1:
            names = " and ".join(sorted(devices))
            raise DeviceError(f"inputs lie on different devices, {names}; move one of them with .to(device)")
    return found


def backend_of_type(array_type: type) -> Backend | None:
    """The backend whose arrays have this type, or None; CuPy's arrays are recognised even before `use("cuda")`."""
    if array_type not in _by_type and array_type.__module__.partition(".")[0] == "cupy":
        _load_cupy()
    return _by_type.get(array_type)


def available() -> list[str]:
    """The devices that can compute, "cpu" first; `use` says why another cannot.

    >>> available()[0]
    'cpu'
    """
    try:
        backend = _load_cupy()
    except DeviceError:
        return ["cpu"]
    return ["cpu", "cuda", *(f"cuda:{index}" for index in range(1, backend.count))]


_default: ContextVar[str] = ContextVar("default_device", default="cpu")


class use:  # noqa: N801 - a verb: use("cuda") or with use("cuda"):
    """Put new tensors of this thread on ``device``, from now on or, as a context manager, within a block.

    >>> with use("cpu"):
    ...     default_device()
    'cpu'
    """

    def __init__(self, device: str) -> None:
        backend, index = parse_device(device)
        self._token = _default.set(f"{backend.name}:{index}" if index else backend.name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        _default.reset(self._token)


def default_device() -> str:
    """The device of new tensors."""
    return _default.get()


def transfer(array: Array, device: str) -> Array:
    """The array on ``device``: itself if it is already there, else a copy."""
    source = backend_of(array)
    target, index = parse_device(device)
    if source is target and source.index_of(array) == index:
        return array
    return target.from_numpy(source.to_numpy(array), index)


def memory_of(array: Array) -> Array:
    """The array that owns the memory of ``array``: itself, unless it is a view.

    >>> x = np.zeros((2, 3))
    >>> memory_of(x.T[1:]) is x
    True
    """
    owner, base = array, array.base
    while base is not None:
        if type(base) is type(array):
            owner = base
        base = getattr(base, "base", None)
    return owner


def is_writable(array: Array) -> bool:
    """Whether the memory of ``array`` is writable; on a GPU it always is.

    >>> is_writable(np.broadcast_to(1.0, (2,)))
    False
    """
    return bool(getattr(array.flags, "writeable", True))


_kernels: dict[tuple[str, str], Kernel] = {}


def kernel(backend: str, op: str) -> Callable[[Kernel], Kernel]:
    """Register a faster forward of ``op`` on ``backend``: ``kernel(op, xp, *arrays)``, or NotImplemented to decline."""

    def register_kernel(function: Kernel) -> Kernel:
        _kernels[backend, op] = function
        return function

    return register_kernel


def find_kernel(backend: str, op: str) -> Kernel | None:
    """The registered kernel for an op on a backend, or None."""
    return _kernels.get((backend, op))
