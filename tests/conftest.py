"""What all tests share: Hypothesis profiles, and a registry that forgets the ops that a test defines.

The profiles are "default" for every day, and `pytest --hypothesis-profile=thorough` to dig deeper.
"""

import os
import signal
from collections.abc import Iterator

# Before NumPy is imported: matrices here are too small to share, and `pytest -n` keeps every core busy already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tinygrad_lenet import seeds
from tinygrad_lenet.op import REGISTRY

# In CI a run must not fail for reasons that the commit did not bring, so examples are always the same there.
settings.register_profile(
    "default",
    max_examples=25,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],  # cores are shared
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000, derandomize=False)
settings.load_profile("default")

# Where Ctrl-C is ignored, as behind a script's &, programs that are started keep it so; tests send it to them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    """A seed that one test gave is none for the next."""
    seeds._seed = None


@pytest.fixture
def scratch_ops() -> Iterator[None]:
    """Ops defined in a test leave the registry afterwards: other tests walk it."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
