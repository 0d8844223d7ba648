"""Reading, adding and writing elements at an index, and labels as one-hot rows."""

from typing import Any

from ..curvature import Movement
from ..graph import Onto, indexing_op
from ..index import AT, index_ranges, indexed_shape
from ..op import CONSTANT, REAL, Domain, Op
from ..shapes import ShapeError, broadcast_shape, integer

_INDEX = Domain(low=-2, high=2, kind="index")
_PATTERNS = (
    (1,),
    (slice(None, None, -2), None, 1),
    (..., slice(1, 4)),
    (slice(1, 1),),
    (AT, AT),
    (AT,),
    (slice(None), AT),
    (AT, slice(None), AT),
    (True, 1),
    (False,),
)


class GetItem(Movement):
    """y = x[index], ``pattern`` with the arrays of ``index``, as in NumPy; gradients add up where x was read."""

    pattern: tuple[Any, ...]

    signature = "getitem(x[...], *index[...]) -> y[...]"
    domains = {"x": REAL, "index": _INDEX}
    parameters = {"pattern": _PATTERNS}
    sizes = {"...": ((4, 5), (3, 2, 4), (3,), (2,))}
    integers = "kept"

    def output_shape(self, x, *index):
        return indexed_shape("getitem", x, self.pattern, index)

    def index_ranges(self, x, *index):
        return index_ranges(x, self.pattern)

    def forward(self, xp, x, *index):
        return x[_with(self.pattern, index)]

    def backward(self, gy, y, x, *index):
        def onto(known):
            if known is None:
                return indexing_op("add_at", self.pattern, x.shape)(gy, *index)
            return indexing_op("add_to", self.pattern)(known, gy, *index)

        return Onto(onto), *[None for _ in index]


class AddAt(Movement):
    """y = zeros of ``shape`` plus x at the index, added once per mention of an element; gx is gy at the index."""

    pattern: tuple[Any, ...]
    shape: tuple[int, ...]

    signature = "add_at(x[...], *index[...]) -> y[...]"
    domains = {"x": REAL, "index": _INDEX}
    parameters = {"pattern": _PATTERNS, "shape": ((4, 5), (3, 2, 4), (3,))}
    sizes = {"...": ((5,), (2, 1), (2,), (4, 2), (0, 5), (3,), (3, 3), (3, 2), (2, 2, 4), (0, 2, 4), (1,), (0, 3), ())}

    def output_shape(self, x, *index):
        places = indexed_shape("add_at", self.shape, self.pattern, index)
        if x != places:
            raise ShapeError(f"add_at: x has shape {x}; the index names elements of shape {places}")
        return self.shape

    def index_ranges(self, x, *index):
        return index_ranges(self.shape, self.pattern)

    def forward(self, xp, x, *index):
        y = xp.zeros(self.shape, x.dtype)
        if index:
            xp.add.at(y, _with(self.pattern, index), x)
        else:
            y[self.pattern] = x  # slices name each element at most once
        return y

    def backward(self, gy, y, x, *index):
        return lambda: indexing_op("getitem", self.pattern)(gy, *index), *[None for _ in index]


class AddTo(Movement):
    """y = base plus x at the index, added once per mention of an element; gx is gy at the index, dy/dbase = 1."""

    pattern: tuple[Any, ...]

    signature = "add_to(base[...], x[...], *index[...]) -> y[...]"
    domains = {"base": REAL, "x": REAL, "index": _INDEX}
    parameters = {"pattern": ((1,), (..., slice(1, 4)), (AT, AT), (AT,), (slice(None), AT))}
    sizes = {"...": ((4, 5), (3, 2, 4), (3,), (5,), (2, 4), (2,), (4, 3), (2, 5), (2, 2), ())}

    def output_shape(self, base, x, *index):
        return AddAt(self.pattern, base).output_shape(x, *index)

    def index_ranges(self, base, x, *index):
        return index_ranges(base, self.pattern)

    def forward(self, xp, base, x, *index):
        y = xp.array(base)
        if index:
            xp.add.at(y, _with(self.pattern, index), x)
        else:
            y[self.pattern] = y[self.pattern] + x  # slices name each element at most once
        return y

    def backward(self, gy, y, base, x, *index):
        return gy, lambda: indexing_op("getitem", self.pattern)(gy, *index), *[None for _ in index]


class Assign(Op):
    """x[index] = value in x's own memory, and y is x; no gradient. `Tensor` refuses it where one is recorded.

    If an element is written several times, which NumPy and CuPy do in any order, one of the values remains.
    """

    pattern: tuple[Any, ...]

    signature = "assign(x[...], value[...], *index[...]) -> y[...]"
    domains = {"x": CONSTANT, "value": CONSTANT, "index": _INDEX}
    parameters = {"pattern": tuple(pattern for pattern in _PATTERNS if AT not in pattern)}
    sizes = {"...": ((4, 5), (3, 2, 4), (3,), (2,), ())}
    integers = "native"
    writes = True

    def output_shape(self, x, value, *index):
        places = indexed_shape("assign", x, self.pattern, index)
        if broadcast_shape("assign", [places, value]) != places:
            raise ShapeError(f"assign: the value has shape {value}; the index names elements of shape {places}")
        return x

    def index_ranges(self, x, value, *index):
        return index_ranges(x, self.pattern)

    def forward(self, xp, x, value, *index):
        x[_with(self.pattern, index)] = value
        return x


class ArgWhere(Op):
    """y[r] = the index of the r-th True of x in row-major order, one number per axis of x."""

    signature = "argwhere(x[...]) -> y[R D]"
    domains = {"x": Domain(kind="boolean")}

    def output_shape(self, x):
        return None

    def forward(self, xp, x):
        return xp.argwhere(x)


class OneHot(Op):
    """y[n k] = 1 where labels[n] is k, else 0, in ``dtype``."""

    classes: int
    dtype: str

    signature = "one_hot(labels[N]) -> y[N K]"
    domains = {"labels": Domain(low=0, high=3, kind="index")}
    rules = {"classes": (integer, 1)}
    parameters = {"classes": (3, 4), "dtype": ("float64", "bool")}

    def output_shape(self, labels):
        self.bind((labels,))
        return (*labels, self.classes)

    def index_ranges(self, labels):
        return [range(self.classes)]

    def forward(self, xp, labels):
        return (labels[:, None] == xp.arange(self.classes)).astype(self.dtype)


def _with(pattern, arrays):
    """The index made of pattern and arrays, in the form that NumPy and CuPy take."""
    rest = iter(arrays)
    return tuple([next(rest) if part == AT else part for part in pattern])
