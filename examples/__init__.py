"""Programs to run and to read: `python -m examples.train_lenet5`."""
