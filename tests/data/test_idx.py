"""IDX files: what is written is read back, and whatever is wrong with a file ends in one DataError naming it."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygrad_lenet import files
from tinygrad_lenet.data import DataError, read_idx, write_idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
HEADER = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4)
WHOLE = HEADER + ARRAY.tobytes()


def save(folder: Path, content: bytes, name: str = "some-images") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_round_trip(tmp_path: Path, dtype: type, name: str) -> None:
    array = ARRAY.astype(dtype)
    write_idx(tmp_path / name, array)
    again = read_idx(tmp_path / name)
    assert again.dtype == array.dtype and again.dtype.isnative
    assert again.flags.writeable and again.flags.c_contiguous
    np.testing.assert_array_equal(again, array)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_paths_of_bytes_and_no_descriptors(tmp_path: Path) -> None:
    """A path may be bytes, as the system's own are; a number would be a file that somebody else has open."""
    path = os.fsencode(tmp_path / "a")
    write_idx(path, ARRAY)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_idx(path), ARRAY)  # type: ignore[arg-type]
    with (tmp_path / "a").open("rb") as file:
        for work in (files.open_regular, read_idx, lambda path: write_idx(path, ARRAY)):
            with pytest.raises(TypeError):
                work(file.fileno())  # type: ignore[arg-type]
        assert file.read(2) == b"\0\0"


def test_transposed_array_is_written_in_its_own_order(tmp_path: Path) -> None:
    write_idx(tmp_path / "a", ARRAY.T)
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), ARRAY.T)


def test_gzip_is_told_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_idx(save(tmp_path, gzip.compress(WHOLE), "plain-name")), ARRAY)
    np.testing.assert_array_equal(read_idx(save(tmp_path, WHOLE, "name.gz")), ARRAY)


def test_gzipped_file_depends_on_the_array_alone(tmp_path: Path) -> None:
    write_idx(tmp_path / "a.gz", ARRAY)
    write_idx(tmp_path / "b.gz", ARRAY)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == bytes(4)  # no time stamp


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\0\0\x08", "begins with the bytes 00 00 08"),
        (b"PK\x03\x04" + WHOLE, "begins with the bytes 50 4b 03 04"),
        (b"\0\0\x07\x03" + WHOLE[4:], "has the type code 0x07"),
        (b"\0\0\x08\x00" + WHOLE[4:], "has 0 axes"),
        (b"\0\0\x08\xff" + WHOLE[4:], "has 255 axes"),
        (HEADER[:-1], "ends inside its header"),
        (HEADER[:4] + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1), "expected at least one element"),
        (WHOLE[:-1], "expected .* shape|shape .* expected"),
        (WHOLE + b"\0", "shape .* expected"),
        (HEADER, "expected .* shape|shape .* expected"),
    ],
)
def test_damage_is_named(tmp_path: Path, pack: type, content: bytes, sentence: str) -> None:
    path = save(tmp_path, pack(content))
    with pytest.raises(DataError, match=f"read_idx: .*some-images .*({sentence})"):
        read_idx(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_hostile_header_allocates_nothing(tmp_path: Path, pack: type) -> None:
    # 100 kB that do not compress, so that the gzipped file could hold the 64 MB which the header promises
    noise = np.random.default_rng(0).bytes(100_000)
    path = save(tmp_path, pack(bytes([0, 0, 8, 3]) + struct.pack(">3I", 1000, 256, 256) + noise))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="some-images"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_promise_that_no_gzip_file_of_this_size_can_keep(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    with pytest.raises(DataError, match="not the bytes for it"):
        read_idx(save(tmp_path, gzip.compress(header)))


def test_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = save(tmp_path, gzip.compress(WHOLE + bytes(50_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="goes on after the last element"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [2, 5, 15, -9, -8, -1])
def test_truncated_gzip(tmp_path: Path, cut: int) -> None:
    with pytest.raises(DataError, match="some-images is a damaged gzip file"):
        read_idx(save(tmp_path, gzip.compress(WHOLE)[:cut]))


def test_wrong_crc(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(WHOLE))
    content[-8] ^= 1
    with pytest.raises(DataError, match=r"damaged gzip file .*CRC"):
        read_idx(save(tmp_path, bytes(content)))


def test_a_bomb_that_keeps_its_promise_is_refused_by_its_size(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1000, 256, 256) + bytes(1000 * 256 * 256)
    path = save(tmp_path, gzip.compress(content, compresslevel=1))
    assert path.stat().st_size < 400_000
    with pytest.raises(DataError, match="some-images has 65,536,016 bytes, expected at most max_bytes, 65,536,015"):
        read_idx(path, max_bytes=65_536_015)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe would be waited for; a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "pipe", "/dev/zero", "a\0b"):
        with pytest.raises(DataError, match=r"read_idx: .*cannot be read .*check the path"):
            read_idx(path)
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(DataError, match=r"write_idx: .*cannot be written"):
            write_idx(path, ARRAY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_mutations_parse_or_raise_data_error(tmp_path: Path, data: st.DataObject, zipped: bool) -> None:
    content = bytearray(gzip.compress(WHOLE, mtime=0) if zipped else WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif change == "delete":
            del content[at]
        else:
            del content[max(at, 1) :]
        if not content:
            break
    path = save(tmp_path, bytes(content))
    try:
        array = read_idx(path)
    except DataError as error:
        assert "some-images" in str(error)
    else:
        # Axes may have been swapped and elements changed, but never more or fewer read than the file holds.
        assert array.nbytes <= len(content) if not zipped else array.shape == ARRAY.shape


def test_write_idx_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    for array in (np.zeros(3, np.int64), np.zeros(3, np.complex64), np.zeros(3, bool), [1, 2]):
        with pytest.raises(TypeError, match="write_idx: array has dtype"):
            write_idx(tmp_path / "a", array)  # type: ignore[arg-type]
    for array in (np.zeros((), np.uint8), np.zeros((0, 3), np.uint8), np.zeros((1,) * 9, np.uint8)):
        with pytest.raises(ValueError, match="write_idx: array has shape"):
            write_idx(tmp_path / "a", array)
    assert not list(tmp_path.iterdir())
