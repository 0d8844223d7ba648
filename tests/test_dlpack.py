"""DLPack both ways: with NumPy, and with PyTorch and JAX where they are installed. Memory is shared, not copied."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.refusals import refused
from tinygrad_lenet import Tensor, jit
from tinygrad_lenet.backend import DeviceError

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: x, "transposed": lambda x: x.T, "strided": lambda x: x[:, ::2], "empty": lambda x: x[:0],
    "no axes": lambda x: x[1, 2], "repeated": lambda x: np.broadcast_to(x[0], (3, 4)), "backwards": lambda x: x[::-1],
}  # fmt: skip


def library(name: str) -> tuple[ModuleType, Callable[[Any], Any], Callable[[Any], np.ndarray]]:
    """A library, its from_dlpack, and how its arrays become NumPy's."""
    module = pytest.importorskip(name)
    if name == "jax":
        module.config.update("jax_enable_x64", True)
        return module.numpy, module.numpy.from_dlpack, np.asarray
    return module, module.from_dlpack, np.asarray


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_out_and_back(name: str, dtype: str, form: str) -> None:
    _, take, host = library(name)
    if name == "jax" and form in ("strided", "repeated"):
        pytest.skip("JAX takes no such strides")
    values = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    array = np.asarray(SHAPES[form](values))
    there = take(Tensor(array))
    assert str(there.dtype).removeprefix("torch.") == dtype
    np.testing.assert_array_equal(host(there), array)
    back = Tensor.from_dlpack(there)
    assert (back.shape, back.dtype, back.device, back.requires_grad) == (array.shape, np.dtype(dtype), "cpu", False)
    np.testing.assert_array_equal(back.numpy(), array)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_memory_is_shared_both_ways(name: str) -> None:
    _, take, _ = library(name)
    t = Tensor(np.zeros((2, 3)).T)
    there = take(t)
    there[2, 0] = 7.0
    assert t.numpy()[2].tolist() == [7, 0]
    back = Tensor.from_dlpack(there)
    back[0] = 5.0
    assert t.numpy().tolist() == [[5, 5], [0, 0], [7, 0]]


def test_jax_shares_its_memory_read_only() -> None:
    jnp, take, _ = library("jax")
    x = jnp.ones((64, 64), "float32")
    t = Tensor.from_dlpack(x)
    assert t.numpy().ctypes.data == x.unsafe_buffer_pointer()
    with refused(ValueError, "read-only"):
        t[0] = 1.0
    t = Tensor(np.asarray(np.zeros((64, 64), np.float32)))
    assert np.asarray(take(t)).shape == (64, 64)


def test_read_only_memory_stays_read_only() -> None:
    array = np.zeros(3)
    array.flags.writeable = False
    t = Tensor(array)
    assert not np.from_dlpack(t).flags.writeable
    assert not Tensor.from_dlpack(array).numpy().flags.writeable
    with pytest.raises(BufferError):
        t.__dlpack__(max_version=None)  # to a library that does not know the flag


def test_copies_where_they_are_asked_for() -> None:
    t = Tensor([1.0, 2.0])
    copied = np.from_dlpack(t, copy=True)
    copied[0] = 9.0
    assert t.numpy().tolist() == [1, 2]
    with pytest.raises(ValueError):
        np.from_dlpack(t, device="cuda")


class Elsewhere:
    def __init__(self, kind: int) -> None:
        self.kind = kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("the memory of a device that cannot be read was asked for")


def test_what_is_refused_before_any_memory_is_touched() -> None:
    for given in ([1.0], 1.0, None, "x"):
        with refused(TypeError, "__dlpack__"):
            Tensor.from_dlpack(given)
    for kind in (4, 7, 8, 14, 15):  # OpenCL, Vulkan, Metal, oneAPI, WebGPU
        with refused(DeviceError, str(kind)):
            Tensor.from_dlpack(Elsewhere(kind))
    with refused(TypeError, "complex64"):
        Tensor.from_dlpack(np.zeros(2, np.complex64))
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(Tensor([1.0], requires_grad=True))
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(Tensor([1.0], requires_grad=True) * 2.0)


def test_cuda_where_there_is_none() -> None:
    try:
        import cupy  # noqa: F401
    except ImportError:
        with refused(DeviceError, "cuda"):
            Tensor.from_dlpack(Elsewhere(2))
    else:
        pytest.skip("CuPy is installed")


def test_pytorchs_own_refusals() -> None:
    torch, _, _ = library("torch")
    with pytest.raises(BufferError):
        Tensor.from_dlpack(torch.zeros(2, requires_grad=True))
    with refused(TypeError, "bfloat16"):
        Tensor.from_dlpack(torch.zeros(2, dtype=torch.bfloat16))


def test_a_recorded_function_may_not_hand_values_out() -> None:
    @jit
    def leak(x: Tensor) -> Tensor:
        np.from_dlpack(x * 2.0)
        return x

    with pytest.raises(ValueError, match="__dlpack__"):
        leak(Tensor([1.0]))


def test_cuda_memory_is_shared_with_cupy() -> None:
    """On CuPy's current stream, as the protocol asks; CuPy waits for the producer's."""
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    t = Tensor([1.0, 2.0], device="cuda")
    there = cupy.from_dlpack(t)
    with cupy.cuda.Stream():
        there = cupy.from_dlpack(t)
        there += 1
        back = Tensor.from_dlpack(there)
    assert (back.device, back.numpy().tolist()) == ("cuda", [2, 3])
    assert back.data.data.ptr == t.data.data.ptr
