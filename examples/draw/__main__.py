"""Draw a digit and watch both LeNets read it: `python -m examples.draw` opens the page in a browser.

Everything stays on this machine: the server listens on 127.0.0.1 alone. Stop it with Ctrl-C.
"""

import os

from examples import programs

if __name__ == "__main__":
    programs.begin()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy reads it: the matrices are too small to share

import argparse
import errno
import socket
import sys
import threading
import webbrowser
from pathlib import Path

try:
    import uvicorn

    from examples.draw.server import application
except ModuleNotFoundError as error:
    sys.exit(f'draw: the package {error.name} is missing; run pip install -e ".[draw]"')

from examples.classes import DIGITS
from models import LeNet5, LeNet5_1998


def listen(port: int) -> socket.socket:
    """A socket that listens on this port of 127.0.0.1; ValueError if it cannot."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; expected a number from 0 (any free port) to 65535")
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        found = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
        raise ValueError(f"port {port} {found}; choose another with --port, or any free one with --port 0") from None


def open_browser(url: str) -> None:
    """Open the page in a window, or say that somebody has to."""
    graphical = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    try:  # without a display, only browsers that work in the terminal, or fail, would be found
        opened = graphical and webbrowser.open(url)
    except webbrowser.Error:
        opened = False
    if not opened:
        print(f"no browser could be opened; open {url} in one yourself", flush=True)


def load(folder: Path | None) -> LeNet5:
    """The weights that come with the package, or what the training example saved; ValueError if unusable."""
    if folder is None:
        return LeNet5.pretrained()
    from examples import predict  # only now: it takes a while, and needs the training example's packages

    model, names = predict.load(folder)
    if not isinstance(model, LeNet5) or names != DIGITS:
        raise ValueError(f"--model: {folder} holds a network for {', '.join(names)}; expected one for digits")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.draw",
        description="Open a page on which you draw a digit and watch, layer by layer, how two LeNets read it.",
    )
    parser.add_argument("--port", type=int, default=8000, help="where on 127.0.0.1 (default: 8000; 0: any free one)")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="what examples.train_lenet5 wrote with --out (default: the weights that come with the package)",
    )
    parser.add_argument("--no-browser", action="store_true", help="open no browser; the page's address is printed")
    args = parser.parse_args()
    today, of_1998 = load(args.model), LeNet5_1998.pretrained()
    with listen(args.port) as server:
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        print(f"draw a digit on {url} (stop with Ctrl-C)", flush=True)
        if not args.no_browser:
            threading.Thread(target=open_browser, args=[url], daemon=True).start()
        config = uvicorn.Config(
            application(today, of_1998, port), lifespan="off", ws="none", log_level="error", server_header=False
        )
        uvicorn.Server(config).run([server])


if __name__ == "__main__":
    programs.run(main)
