"""Commands that measure; nothing here is a test. See `tests.benchmarks.lenet5` and `tests.benchmarks.ops`."""
