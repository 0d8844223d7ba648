"""Common claims about LeNet-5, tested, one file a claim: `python -m examples.claims --help`."""
