"""Hypothesis profiles: "default" for every day, and `pytest --hypothesis-profile=thorough` to dig deeper; Ctrl-C."""

import os
import signal

from hypothesis import HealthCheck, settings

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
