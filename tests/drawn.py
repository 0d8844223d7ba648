"""Digits of a test set as strokes of a pen, to try `examples.draw` with, drawn with the mouse in a real browser.

`python -m tests.drawn --data-dir data` draws the first 1,000 of MNIST's test images, without exception, with pens of
three widths, and counts what is read right: 98.3% with the thin pen, 98.1% with the medium and 98.0% with the thick one
by today's network, 97.8%, 98.0% and 98.0% by that of 1998. `--write` keeps the strokes of the first five of each digit
for the test suite.

A digit's strokes are the centre lines of its ink: it is enlarged, thinned to lines of one pixel (Zhang and Suen, 1984),
and the lines are followed from their ends, straight on where they cross.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy import ndimage

from tests.chromium import Chromium, browsing
from tinygrad_lenet import data

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_name("mnist_strokes.json")
PENS = ("thin", "medium", "thick")
ZOOM = 4
AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # clockwise from above
Point = tuple[int, int]
Strokes = list[list[list[int]]]  # each a list of x, y on a pad of 280 x 280


# From ink to strokes


def thinned(ink: np.ndarray) -> np.ndarray:
    """The centre lines of ink[H W], booleans: pixels of the rim are taken away where that parts nothing."""
    on = np.pad(ink, 1)
    while True:
        before = on
        for corner in (0, 1):  # lower right, then upper left
            p = [np.roll(on, (-v, -u), axis=(0, 1)) for v, u in AROUND]
            count = np.sum(p, axis=0)
            turns = np.sum([~a & b for a, b in zip(p, p[1:] + p[:1], strict=True)], axis=0)
            above, right, below, left = p[::2]
            inner = (right & below & (above | left)) if corner == 0 else (above & left & (right | below))
            on = on & ~((count >= 2) & (count <= 6) & (turns == 1) & ~inner)
        if (on == before).all():
            return on[1:-1, 1:-1]


def paths(line: np.ndarray) -> list[list[Point]]:
    """Paths that together go once through each pixel of a line."""
    pixels = {(int(v), int(u)) for v, u in np.argwhere(line)}
    left = set(pixels)
    found: list[list[Point]] = []

    def beside(p: Point, among: set[Point]) -> list[Point]:
        near = [(p[0] + v, p[1] + u) for v, u in sorted(AROUND, key=lambda step: abs(step[0]) + abs(step[1]))]
        return [q for q in near if q in among]

    while left:
        start = min(left, key=lambda p: (len(beside(p, left)), p))
        path = [*beside(start, pixels - left)[:1], start]  # from where it leaves what is drawn already
        left.discard(start)
        while near := beside(path[-1], left):
            ahead = np.subtract(path[-1], path[max(0, len(path) - 4)])
            steps = [np.subtract(q, path[-1]) for q in near]
            on = near[int(np.argmax([ahead @ step / np.hypot(*step) for step in steps]))]
            path.append(on)
            left.discard(on)
        path += [q for q in beside(path[-1], pixels) if q not in path[-3:]][:1]
        found.append(path)
    return found


def strokes(image: np.ndarray) -> Strokes:
    """The strokes of a digit, uint8 [28 28]."""
    made: Strokes = []
    for path in paths(thinned(ndimage.zoom(image.astype(float), ZOOM, order=1) > 128)):
        if len(path) >= 4 or not made:  # shorter ones are burrs
            points = ndimage.uniform_filter1d((np.array(path, float) + 0.5) / ZOOM, 5, axis=0, mode="nearest")
            thin = np.concatenate([points[:-1:4], points[-1:]])
            made.append(np.rint(10 * thin[:, ::-1]).astype(int).tolist())
    return made


# From strokes to answers


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`python -m examples.draw` on a free port, and its address."""
    command = [sys.executable, "-W", "error", "-m", "examples.draw", "--port", "0", "--no-browser", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            if not found:
                raise AssertionError(server.stderr.read())
            yield found[0], server
        finally:
            server.terminate()


def open_page(browser: Chromium, url: str) -> None:
    browser("Page.navigate", url=url)
    browser.wait("document.readyState === 'complete' && document.querySelectorAll('.bars li').length === 20")
    browser.wait("document.getElementById('answer').textContent !== ''")


def draw(browser: Chromium, strokes: Strokes) -> tuple[str, str]:
    """Draw these strokes on an empty pad with the mouse; the two answers, of today's network and that of 1998."""
    browser.run("document.getElementById('clear').click()")
    left, top, side = browser.run(
        "(() => { pad.scrollIntoView({block: 'nearest'}); const b = pad.getBoundingClientRect();"
        " return [b.left, b.top, b.width]; })()"
    )
    for stroke in strokes:
        browser.stroke([(left + x * side / 280, top + y * side / 280) for x, y in stroke])
    return answers(browser)


def answers(browser: Chromium) -> tuple[str, str]:
    browser.wait("pad.getAttribute('aria-busy') === 'false'")
    today, of_1998 = browser.run("['answer', 'answer-1998'].map((id) => document.getElementById(id).textContent)")
    return today, of_1998


def read(browser: Chromium, pen: str, digits: Sequence[Strokes]) -> np.ndarray:
    """What both networks take the digits for, drawn with a pen of this width: integers[N 2]; -1 is no digit."""
    browser.size(400, 420)  # just the pad, which is faster
    browser.run(f"document.querySelectorAll('[name=width]')[{PENS.index(pen)}].click()")
    first = [[answer[:1] for answer in draw(browser, each)] for each in digits]
    return np.array([[int(digit) if digit.isdigit() else -1 for digit in each] for each in first])


def screenshot() -> bytes:
    """The page on a desk, a two on its pad, with why it is a two and what a unit of C3 sees, as PNG."""
    two = next(each["strokes"] for each in json.loads(KEPT.read_text()) if each["digit"] == 2)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as place, serving() as (url, _), browsing(Path(place)) as browser:
        browser.size(1280, 1000)
        browser.media(prefers_color_scheme="light")
        open_page(browser, url)
        draw(browser, two)
        browser.click("#why")
        x, y = browser.run(
            "(() => { const b = document.querySelectorAll('.old [data-name=c3] .map')[3].getBoundingClientRect();"
            " return [b.left + 0.45 * b.width, b.top + 0.25 * b.height]; })()"
        )
        browser.result(browser.mouse("Moved", x, y))
        browser.wait("document.querySelector('.looking') !== null")
        return browser.screenshot()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drawn", description="Draw MNIST's test digits on the page.")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files (default: the cache)")
    parser.add_argument("--count", type=int, default=1000, help="how many, from the first one on")
    parser.add_argument("--write", action="store_true", help=f"write {KEPT.name} instead")
    parser.add_argument("--picture", type=Path, help="write a screenshot of the page there instead")
    args = parser.parse_args()
    if args.picture:
        args.picture.write_bytes(screenshot())
        return
    images, labels = data.mnist(args.data_dir, "test")
    if args.write:
        first = np.concatenate([np.flatnonzero(labels == digit)[:5] for digit in range(10)])
        kept = [{"digit": int(labels[n]), "strokes": strokes(images[n])} for n in first]
        lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in kept)
        KEPT.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        return
    digits = [strokes(image) for image in images[: args.count]]
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as place, serving() as (url, _), browsing(Path(place)) as browser:
        open_page(browser, url)
        for pen in PENS:
            right = read(browser, pen, digits) == labels[: args.count, None]
            today, of_1998 = right.mean(axis=0)
            print(f"{pen}: {today:.1%} right today, {of_1998:.1%} in 1998", flush=True)


if __name__ == "__main__":
    main()
