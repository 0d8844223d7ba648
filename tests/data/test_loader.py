"""Batches: every sample once, the same for the same seed, resumable anywhere; distortions that do what they say."""

import dataclasses
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strict import no_host_reads
from tinygrad_lenet import Tensor, backend, manual_seed
from tinygrad_lenet.data import Affine, DataLoader, to_input

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 28, 28), dtype=np.uint8)
LABELS = np.arange(23)
STILL = {"translation": 0.0, "scale": 0.0, "squeeze": 0.0, "shear": 0.0}


def epoch_of(loader: DataLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


# to_input


def test_to_input_values_and_border() -> None:
    x = to_input(IMAGES)
    assert x.shape == (23, 1, 32, 32) and x.dtype == np.float32
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2)))
    np.testing.assert_allclose(x[:, 0], (padded / 255 - 0.1307) / 0.3081, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(to_input(padded), x)
    x = to_input(IMAGES, background=-0.1, foreground=1.175)  # those of 1998
    np.testing.assert_allclose(x[:, 0], padded / 255 * 1.275 - 0.1, rtol=0, atol=2e-7)
    assert (x[:, 0, :2] == np.float32(-0.1)).all()


def test_batch_last_memory() -> None:
    for x in (to_input(IMAGES), next(iter(DataLoader(IMAGES, LABELS)))[0]):
        assert x.transpose(1, 2, 3, 0).flags.c_contiguous


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        (IMAGES.astype(np.float32), TypeError, "to_input: images are float32, expected an array of uint8"),
        (IMAGES.tolist(), TypeError, "to_input: images are list"),
        (IMAGES[0], ValueError, r"to_input: images have shape \(28, 28\), expected \(N, 28, 28\) or \(N, 32, 32\)"),
        (IMAGES[:, :27], ValueError, "to_input: images have shape"),
        (IMAGES[:, 2:, 2:], ValueError, "to_input: images have shape"),
    ],
)
def test_to_input_refuses(images: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        to_input(images)


# DataLoader


@given(
    N=st.integers(1, 23),
    batch_size=st.integers(1, 30),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**70),
)
def test_every_sample_once(N: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int) -> None:
    loader = DataLoader(IMAGES[:N], LABELS[:N], batch_size, shuffle, seed, drop_last=drop_last)
    for epoch in range(2):
        assert loader.epoch == epoch
        batches = epoch_of(loader)
        assert len(batches) == len(loader)
        seen = list(chain.from_iterable(batches))
        assert len(set(seen)) == len(seen) == (N // batch_size * batch_size if drop_last else N)
        if not shuffle:
            assert seen == list(range(len(seen)))


def test_images_stay_with_their_labels() -> None:
    before = IMAGES.copy()
    for x, labels in DataLoader(IMAGES, LABELS, batch_size=5):
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(x, to_input(IMAGES[labels]))
        x[...] = 0
        labels[...] = -1
    np.testing.assert_array_equal(IMAGES, before)
    np.testing.assert_array_equal(LABELS, np.arange(23))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = (DataLoader(IMAGES, LABELS, 4, seed=seed) for seed in (1, 1, 2))
    epochs = [epoch_of(first) for _ in range(3)]
    assert epochs == [epoch_of(again) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != epoch_of(other)
    np.random.seed(0)
    wide = DataLoader(IMAGES, LABELS, 7, seed=1)
    assert list(chain(*epoch_of(wide))) == list(chain(*epochs[0]))


@settings(deadline=None)
@given(stop=st.integers(0, 12), batch_size=st.integers(1, 9), drop_last=st.booleans())
def test_resume_yields_exactly_the_rest(stop: int, batch_size: int, drop_last: bool) -> None:
    def make() -> DataLoader:
        return DataLoader(IMAGES, LABELS, batch_size, seed=3, drop_last=drop_last, augment=Affine())

    def draw(loader: DataLoader, wanted: int) -> list[tuple[np.ndarray, np.ndarray]]:
        batches: list[tuple[np.ndarray, np.ndarray]] = []
        while True:
            for batch in loader:
                batches.append(batch)
                if len(batches) == wanted:
                    return batches

    straight = draw(make(), stop + 6)
    loader, state = make(), make().state_dict()
    if stop:
        draw(loader, stop)
        state = loader.state_dict()
    fresh = DataLoader(IMAGES, LABELS, batch_size, seed=99, drop_last=drop_last, augment=Affine())
    fresh.load_state_dict(state)
    for (x, labels), (y, expected) in zip(draw(fresh, 6), straight[stop:], strict=True):
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(x, y)


def test_state_after_the_last_batch_leaves_nothing_of_the_epoch() -> None:
    loader, other = DataLoader(IMAGES, LABELS, 10), DataLoader(IMAGES, LABELS, 10)
    for _ in loader:
        state = loader.state_dict()
    other.load_state_dict(state)
    assert state == {"seed": 0, "epoch": 0, "position": 23}
    assert epoch_of(other) == [] and other.epoch == 1
    assert epoch_of(other) == epoch_of(loader)


def test_leaving_a_loop_early_gives_up_the_epoch() -> None:
    loader, whole = DataLoader(IMAGES, LABELS, 10), DataLoader(IMAGES, LABELS, 10)
    next(iter(loader))
    assert len(epoch_of(loader)) == len(loader) == 3 and loader.epoch == 2
    epoch_of(whole), epoch_of(whole)
    assert epoch_of(loader) == epoch_of(whole)
    loader.load_state_dict({"seed": 0, "epoch": 5, "position": 10})
    next(iter(loader))
    assert len(epoch_of(loader)) == 3 and loader.epoch == 7  # so also after a resumed loop


def test_batch_is_a_function_of_epoch_and_position() -> None:
    loader = DataLoader(IMAGES, LABELS, 4, augment=Affine())
    epochs = [list(loader) for _ in range(2)]
    for epoch, index in [(1, 3), (0, 5), (1, 0)]:
        for part, expected in zip(loader.batch(epoch, 4 * index), epochs[epoch][index], strict=True):
            np.testing.assert_array_equal(part, expected)
    assert loader.epoch == 2
    with pytest.raises(ValueError, match=r"DataLoader.batch: position is 23, expected less than 23"):
        loader.batch(0, 23)


@pytest.mark.parametrize("device", ["strict", "strict:1"])
@pytest.mark.parametrize("how", [{}, {"transform": to_input}, {"augment": Affine()}, {"transform": lambda x: x / 255}])
def test_batches_on_a_device_are_those_on_the_host(how: dict[str, Any], device: str) -> None:
    """Shares, orders and epochs too; batches are picked there without asking for a value."""
    share = {"share": lambda n: slice(n // 3, n)}
    for more in ({}, share):
        host, there = (DataLoader(IMAGES, LABELS, 5, device=place, **how, **more) for place in ("cpu", device))
        for _ in range(2):
            with no_host_reads():
                batches = list(there)
            for (x, labels), (y, expected) in zip(batches, host, strict=True):
                assert Tensor(x).device == Tensor(labels).device == device
                np.testing.assert_array_equal(Tensor(x).numpy(), y)
                np.testing.assert_array_equal(Tensor(labels).numpy(), expected)


def test_images_go_up_once_and_the_order_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    to_strict = backend.parse_device("strict")[0]
    counting = dataclasses.replace(
        to_strict, from_numpy=lambda array, index: shapes.append(array.shape) or to_strict.from_numpy(array, index)
    )
    monkeypatch.setitem(backend._by_name, "strict", counting)
    loader = DataLoader(IMAGES, LABELS, 5, device="strict")
    for _ in range(3):
        list(loader)
    assert shapes == [(23, 28, 28), (23,), (23,), (23,), (23,)]


def test_distortion_does_not_depend_on_how_batches_are_cut() -> None:
    one = next(iter(DataLoader(IMAGES, LABELS, 23, augment=Affine())))[0]
    cut = [x for x, _ in DataLoader(IMAGES, LABELS, 5, augment=Affine())]
    np.testing.assert_array_equal(np.concatenate(cut), one)


def test_own_transform_and_augment_see_uint8_images() -> None:
    images = RNG.integers(0, 256, (6, 9, 7), dtype=np.uint8)
    calls = []

    def augment(batch: np.ndarray, epoch: int, position: int) -> np.ndarray:
        calls.append((batch.shape, epoch, position))
        return 255 - batch

    loader = DataLoader(images, LABELS[:6], 4, False, transform=lambda batch: batch / 255, augment=augment)
    x = np.concatenate([x for x, _ in loader])
    np.testing.assert_array_equal(x, (255 - images) / 255)
    assert calls == [((4, 9, 7), 0, 0), ((2, 9, 7), 0, 4)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"images": IMAGES / 255}, TypeError, "DataLoader: images are float64, expected an array of uint8"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ValueError, "DataLoader: images have shape .* at least one"),
        ({"images": IMAGES[:, :9]}, ValueError, "DataLoader: images have shape"),
        ({"labels": LABELS[:-1]}, ValueError, r"DataLoader: labels have shape \(22,\), expected \(23,\)"),
        ({"labels": LABELS[:, None]}, ValueError, "DataLoader: labels have shape"),
        ({"labels": LABELS / 2}, TypeError, "DataLoader: labels have dtype float64, expected integers"),
        ({"batch_size": 0}, ValueError, "DataLoader: batch_size is 0; expected at least 1"),
        ({"batch_size": -3}, ValueError, "DataLoader: batch_size is -3"),
        ({"batch_size": 2.5}, TypeError, "DataLoader: batch_size must be an integer, not 2.5"),
        ({"batch_size": True}, TypeError, "DataLoader: batch_size must be an integer, not True"),
        ({"batch_size": None}, TypeError, "DataLoader: batch_size must be an integer, not None"),
        ({"seed": -1}, ValueError, "DataLoader: seed is -1"),
        ({"seed": "1"}, TypeError, "DataLoader: seed must be an integer, not '1'"),
        ({"transform": 3}, TypeError, "DataLoader: transform is 3, expected a function or None"),
        ({"augment": "flip"}, TypeError, "DataLoader: augment is 'flip', expected a function or None"),
    ],
)
def test_loader_refuses(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        DataLoader(**({"images": IMAGES, "labels": LABELS} | arguments))


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"epoch": 1}, "state has .'epoch'., expected"),
        ({"seed": 0, "epoch": -1, "position": 0}, "epoch is -1"),
        ({"seed": 0, "epoch": 0, "position": 24}, "position is 24, expected at most 23"),
    ],
)
def test_bad_state_changes_nothing(state: dict[str, int], sentence: str) -> None:
    loader = DataLoader(IMAGES, LABELS)
    with pytest.raises(ValueError, match=f"DataLoader.load_state_dict: {sentence}"):
        loader.load_state_dict(state)
    assert loader.state_dict() == {"seed": 0, "epoch": 0, "position": 0}


# Affine


def warp(images: np.ndarray, **maps: float) -> np.ndarray:
    """Apply one known map to all images, instead of a random one."""
    from tinygrad_lenet.data.loader import _warp

    names = ("shift_u", "shift_v", "scale", "squeeze", "shear")
    return _warp(images, *(np.full(len(images), maps.get(name, 0.0), np.float32) for name in names))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (64, 28, 28), (17, 32, 32)])
def test_zero_ranges_return_the_images(shape: tuple[int, ...]) -> None:
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    y = Affine(**STILL)(images, epoch=4, position=9)
    np.testing.assert_array_equal(y, images)
    assert y is not images and y.dtype == np.uint8


def test_shift_moves_right_and_down() -> None:
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5) * 10
    y = warp(image, shift_u=1, shift_v=2)
    np.testing.assert_array_equal(y[0, 2:, 1:], image[0, :3, :4])
    assert not y[0, :2].any() and not y[0, :, 0].any()
    half = warp(image, shift_u=0.5)
    np.testing.assert_array_equal(half[0, :, 1:], (image[0, :, :-1] + image[0, :, 1:].astype(int)) // 2)


def test_shear_moves_rows_below_the_centre_to_the_right() -> None:
    image = np.zeros((1, 5, 5), np.uint8)
    image[0, :, 2] = 255
    np.testing.assert_array_equal(warp(image, shear=1.0)[0], np.eye(5, dtype=np.uint8) * 255)


def test_scale_and_squeeze() -> None:
    cross = np.zeros((1, 17, 17), np.uint8)
    cross[0, 8, 4:13] = cross[0, 4:13, 8] = 200

    def extent(image: np.ndarray) -> tuple[int, int]:  # width, height
        return int((image[0, 8] >= 100).sum()), int((image[0, :, 8] >= 100).sum())

    assert extent(warp(cross)) == (9, 9)
    width, height = extent(warp(cross, scale=0.5))
    assert width == height > 11
    width, height = extent(warp(cross, squeeze=0.5))
    assert width > 11 and height < 8


def test_warp_against_plain_loops() -> None:
    images = RNG.integers(0, 256, (2, 7, 6), dtype=np.uint8)
    maps = {"shift_u": 0.7, "shift_v": -1.3, "scale": 0.2, "squeeze": -0.15, "shear": 0.4}
    A = np.array([[1.2 * 0.85, 0.4 * 1.2 / 0.85], [0, 1.2 / 0.85]])  # (u, v) -> (u', v') before the shift
    expected = np.zeros(images.shape)
    for n, i, j in np.ndindex(images.shape):
        u, v = np.linalg.solve(A, [j - 2.5 - 0.7, i - 3 + 1.3])
        for a, b in np.ndindex(7, 6):
            near = max(0, 1 - abs(v + 3 - a)) * max(0, 1 - abs(u + 2.5 - b))
            expected[n, i, j] += near * images[n, a, b]
    assert np.abs(warp(images, **maps) - expected).max() < 0.51


def test_draws_stay_in_range_and_differ() -> None:
    image = np.zeros((200, 21, 21), np.uint8)
    image[:, 10, 10] = 255
    y = Affine(**(STILL | {"translation": 3.0}))(image).astype(float)
    weight = y.sum((1, 2))
    rows, columns = ((y.sum(axis) @ np.arange(21)) / weight - 10 for axis in (2, 1))
    for shift in (rows, columns):
        assert np.abs(shift).max() <= 3.01 and shift.min() < -2.7 and shift.max() > 2.7
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.3


def test_distortion_is_a_function_of_seed_epoch_and_position() -> None:
    whole = Affine(seed=5)(IMAGES, 2, 100)
    np.testing.assert_array_equal(whole, Affine(seed=5)(IMAGES, 2, 100))
    np.testing.assert_array_equal(whole[3:], Affine(seed=5)(IMAGES[3:], 2, 103))
    for other in (Affine(seed=6)(IMAGES, 2, 100), Affine(seed=5)(IMAGES, 3, 100), Affine(seed=5)(IMAGES, 2, 101)):
        assert (whole != other).any((1, 2)).all()


def test_far_shifts_leave_background() -> None:
    assert not warp(IMAGES, shift_u=1e6).any() and not warp(IMAGES, shift_v=-1e6).any()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"translation": -1.0}, ValueError, "Affine: translation is -1.0"),
        ({"scale": 1.0}, ValueError, "Affine: scale is 1.0; expected a .*number"),
        ({"squeeze": 2}, ValueError, "Affine: squeeze is 2"),
        ({"shear": float("nan")}, ValueError, "Affine: shear is nan"),
        ({"shear": float("inf")}, ValueError, "Affine: shear is inf"),
        ({"shear": "0.1"}, TypeError, "Affine: shear is '0.1'; expected a number"),
        ({"seed": 0.5}, TypeError, "Affine: seed must be an integer, not 0.5"),
    ],
)
def test_affine_refuses(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        Affine(**arguments)


def test_affine_refuses_other_images() -> None:
    with pytest.raises(TypeError, match="Affine: images are float64"):
        Affine()(IMAGES / 255)
    with pytest.raises(ValueError, match="Affine: images have shape"):
        Affine()(IMAGES[0])


def test_other_arrays_are_batched_as_they_are() -> None:
    x, targets = RNG.normal(size=(10, 3)).astype(np.float32), RNG.normal(size=(10, 2))
    loader = DataLoader(x, targets, batch_size=4, seed=3)
    rows = [(a, b) for batch, target in loader for a, b in zip(batch, target, strict=True)]
    assert len(rows) == 10
    order = [int(np.flatnonzero((x == a).all(1))[0]) for a, _ in rows]
    assert sorted(order) == list(range(10)) != order
    np.testing.assert_array_equal(np.stack([b for _, b in rows]), targets[order])
    doubled = next(iter(DataLoader(x, targets[:, 0], shuffle=False, transform=lambda batch: 2 * batch)))
    np.testing.assert_array_equal(doubled[0], 2 * x)
    tokens = next(iter(DataLoader(np.arange(6), np.arange(6), shuffle=False)))[0]
    assert tokens.tolist() == list(range(6))
    for bad in ({"labels": targets[:9]}, {"labels": np.array(["a"] * 10)}, {"augment": Affine()}):
        with pytest.raises((TypeError, ValueError), match="DataLoader"):
            DataLoader(**({"images": x, "labels": targets} | bad))  # type: ignore[arg-type]


def test_the_seed_is_that_of_manual_seed() -> None:
    def order(**options: Any) -> list[int]:
        return [int(y) for _, labels in DataLoader(IMAGES, np.arange(23), **options) for y in labels]

    first = order()
    manual_seed(7)
    assert order() == order(seed=7) != first
    assert Affine().seed == 7
    assert order(seed=0) == first
