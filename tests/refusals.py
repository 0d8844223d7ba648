"""What a refusal is: an error of the right type, in one line, that names what was wrong; its wording is free."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...], names: str = "") -> Iterator[None]:
    """Within, an ``error`` is raised whose message has one line and holds each of the words in ``names``."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    missing = [name for name in names.split() if name not in message]
    assert not missing, f"{message!r} does not name {missing}"
