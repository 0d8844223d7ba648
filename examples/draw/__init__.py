"""A page to draw a digit on and watch both LeNets read it: `python -m examples.draw`."""
