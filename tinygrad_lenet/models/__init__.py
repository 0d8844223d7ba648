"""The LeNets. Their folder is `models` at the top of the checkout; in a wheel, that folder replaces this file."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models import *  # noqa: F403
else:
    _file = Path(__file__).parents[2] / "models" / "__init__.py"
    if not _file.is_file():
        raise ModuleNotFoundError(
            f"tinygrad_lenet: {_file.parent} is missing; it belongs to a checkout, so copy that folder, too"
        )
    # This module becomes the one in that folder, found by its path, since another package may be called `models`.
    _spec = importlib.util.spec_from_file_location(__name__, _file)
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
