"""The page to draw a digit on: what its server answers and refuses, and what a real browser shows."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the page's packages are not installed")
pytest.importorskip("uvicorn", reason="the page's packages are not installed")
pytest.importorskip("PIL", reason="the page's packages are not installed")
pytest.importorskip("scipy", reason="the page's packages are not installed")

from examples.draw import __main__ as program
from examples.draw.server import KIND, LAYERS, SIDE, Watched
from examples.mnist_form import to_mnist
from models import LeNet5, LeNet5_1998
from models.lenet5_1998 import TABLE_I
from tinygrad_lenet import Tensor, data
from tinygrad_lenet import functional as F

pytest.importorskip("websockets", reason="websockets, which drives the browser, is not installed")
from tests import chromium, drawn

needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")
ROOT = Path(__file__).parents[1]
DRAWN = json.loads(drawn.KEPT.read_text())
DIGIT = data.digits("test")[0][2]


# The server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with drawn.serving() as (url, server):
        yield url
        server.terminate()
        assert server.communicate()[1] == ""  # no warning, no traceback, whatever was asked


def ask(url: str, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of an answer to a well-behaved request, but for these headers; None leaves one out."""
    host = url.removeprefix("http://")
    sent = {"host": host} | ({"content-type": KIND, "content-length": str(len(body))} if body is not None else {})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


def ink(row: int = 60, column: int = 120) -> bytes:
    """A one, drawn with its upper left corner there."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[row : row + 150, column : column + 18] = 255
    return pixels.tobytes()


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/draw.css", "text/css"), ("/draw.js", "javascript"), ("/networks", "json")]
)
def test_serves_the_page(path: str, kind: str, url: str) -> None:
    status, headers, text = ask(url, "GET", path)
    assert (status, kind in headers["content-type"], len(text) > 1000) == (200, True, True)
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    if path == "/":
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/server.py",
        "/../server.py",
        "/%2e%2e/server.py",
        "/..%2fserver.py",
        "//etc/passwd",
        "/page",
        "/docs",
        "/look/x",
    ],
)
def test_serves_nothing_else(path: str, url: str) -> None:
    assert ask(url, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/"), ("PUT", "/look"), ("DELETE", "/draw.js"), ("POST", "/networks")]
)
def test_refuses_other_methods(method: str, path: str, url: str) -> None:
    assert ask(url, method, path)[0] == 405


@pytest.mark.parametrize(
    "host", ["evil.example:{port}", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:{port}", "", None]
)
@pytest.mark.parametrize("path", ["/", "/networks", "/look"])
def test_refuses_other_hosts_names(host: str | None, path: str, url: str) -> None:
    """Also for the page itself: else a site whose name was made to point here could read it."""
    named = host and host.format(port=url.rpartition(":")[2])
    method, body = ("POST", ink()) if path == "/look" else ("GET", None)
    status, _, text = ask(url, method, path, body, host=named)
    assert status in ((421,) if host is not None else (400, 421))
    assert "kernels" not in text and "layers" not in text


def test_takes_both_its_names(url: str) -> None:
    port = url.rpartition(":")[2]
    assert [ask(url, "GET", "/", host=f"{name}:{port}")[0] for name in ("127.0.0.1", "localhost", "LocalHost")] == [
        200
    ] * 3


def test_refuses_pages_of_other_sites(url: str) -> None:
    assert ask(url, "POST", "/look", ink(), origin="http://evil.example")[0] == 403
    assert ask(url, "POST", "/look", ink(), origin="null")[0] == 403
    assert ask(url, "POST", "/look", ink(), origin=url)[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (ink(), {"content_type": "text/plain"}, 415),
        (ink(), {"content_type": None}, 415),
        (ink(), {"content_type": "multipart/form-data"}, 415),
        (b"", {}, 413),
        (ink()[:-1], {}, 413),
        (ink() + b"\0", {}, 413),
        (b"", {"content_length": str(10**12)}, 413),  # refused before any of it is awaited
        (b"5\r\nabcde\r\n0\r\n\r\n", {"content_length": None, "transfer_encoding": "chunked"}, 413),
        (bytes(SIDE * SIDE), {}, 422),
        (bytes([127]) * SIDE * SIDE, {}, 422),
    ],
)
def test_refuses_bodies_that_are_no_drawing(body: bytes, headers: dict[str, Any], status: int, url: str) -> None:
    found, _, text = ask(url, "POST", "/look", body, **headers)
    assert (found, text.count("."), text.endswith(".")) == (status, 1, True)


def test_survives_a_browser_that_hangs_up(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"Host: {host}:{port}\r\nContent-Type: {KIND}\r\nContent-Length: {SIDE * SIDE}\r\n"
        connection.sendall(f"POST /look HTTP/1.1\r\n{head}\r\nhalf".encode())
    assert ask(url, "GET", "/")[0] == 200


@pytest.mark.parametrize("kind", ["noise", "a dot", "a line", "a frame", "all"])
def test_answers_whatever_is_drawn(kind: str, url: str) -> None:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    if kind == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    pixels[{"a dot": (279, 0), "a line": 5, "a frame": ([0, -1], slice(None)), "all": ...}.get(kind, (0, 0))] = 255
    status, _, text = ask(url, "POST", "/look", pixels.tobytes())
    answer = json.loads(text)
    assert (status, max(answer["digit"])) == (200, 255)
    assert len(answer["digit"]) == 32 * 32


def test_where_it_is_drawn_does_not_matter(url: str) -> None:
    answers = [json.loads(ask(url, "POST", "/look", ink(*place))[2]) for place in ((60, 120), (0, 0), (130, 262))]
    assert [each["digit"] == answers[0]["digit"] for each in answers] == [True] * 3
    assert [each["networks"][n]["answer"] for each in answers for n in (0, 1)] == [1] * 6


# What is shown


def test_shows_what_the_networks_make_of_it() -> None:
    """Layer by layer, next to the models' own operators written out; the answers next to the models."""
    image = to_mnist(DIGIT / 255)
    today = LeNet5.pretrained().eval()
    seen = Watched(today).look(image)
    x = Tensor(data.to_input(image[None]))
    c1 = today.c1(x).tanh()
    s2 = F.avg_pool2d(c1, 2)
    c3 = today.c3(s2).tanh()
    s4 = F.avg_pool2d(c3, 2)
    c5 = today.c5(s4).tanh()
    f6 = today.f6(c5.reshape(1, 120)).tanh()
    for name, expected in zip(LAYERS, (c1, s2, c3, s4, c5, f6), strict=True):
        values = expected.numpy().ravel()
        np.testing.assert_allclose(np.array(seen["layers"][name]) / 127 * np.abs(values).max(), values, atol=0.01)
    np.testing.assert_allclose(seen["values"], F.softmax(today(x)).numpy()[0], rtol=1e-5)
    assert seen["answer"] == today(x).numpy().argmax()

    of_1998 = LeNet5_1998.pretrained().eval()
    seen = Watched(of_1998).look(image)
    x = Tensor(data.to_input(image[None], -0.1, 1.175))
    np.testing.assert_allclose(seen["values"], of_1998(x).numpy()[0], rtol=1e-5)
    assert seen["answer"] == of_1998.predict(x).numpy()[0]
    f6 = np.array(seen["layers"]["f6"])  # which draws the code: its signs are those of the nearest one
    code = of_1998.output.centers.numpy()[seen["answer"]]
    assert np.mean(np.sign(f6) == code) > 0.9
    assert [len(seen["layers"][name]) for name in LAYERS] == [4704, 1176, 1600, 400, 120, 84]


@pytest.mark.parametrize("model", [LeNet5, LeNet5_1998])
def test_why_is_the_slope_of_the_answer(model: type[LeNet5] | type[LeNet5_1998]) -> None:
    """More ink where the gradient is largest raises the logit, or lowers the penalty, and the other way round."""
    network = model.pretrained().eval()
    image = to_mnist(DIGIT / 255)
    seen = Watched(network).look(image)
    slope = np.array(seen["gradient"]).reshape(32, 32)
    options = (-0.1, 1.175) if model is LeNet5_1998 else ()
    sign = -1 if model is LeNet5_1998 else 1
    scores = {}
    for step in (-0.01, 0.01):
        x = data.to_input(image[None], *options) + np.float32(step) * (slope / 127).astype(np.float32)
        scores[step] = sign * network(Tensor(x)).numpy()[0, seen["answer"]]
    rise = (scores[0.01] - scores[-0.01]) / 0.02
    exact = np.sum((slope / 127) ** 2)  # times the largest slope
    assert rise > 0 and exact > 1
    x = Tensor(data.to_input(image[None], *options), requires_grad=True)
    y = sign * network(x)[0, seen["answer"]]
    y.backward()
    assert x.grad is not None
    largest = np.abs(x.grad.numpy()).max()
    assert rise == pytest.approx(exact * largest, rel=0.05)


def test_kernels_of_c3() -> None:
    """Those of 1998 only for the connections of Table I, in its order."""
    today, of_1998 = LeNet5.pretrained(), LeNet5_1998.pretrained()
    shown = Watched(today).kernels()
    assert [list(each) for each in shown] == [list(range(6))] * 16
    weight = today.c3.weight.numpy()[7, 2].ravel()
    np.testing.assert_allclose(np.array(shown[7][2]) / 127 * np.abs(weight).max(), weight, atol=0.01)

    shown = Watched(of_1998).kernels()
    assert [tuple(each) for each in shown] == [tuple(maps) for maps in TABLE_I]
    place = sum(map(len, TABLE_I[:9])) + TABLE_I[9].index(4)  # of the kernel from map 4 to map 9 among the 60
    weight = of_1998.c3.weight.numpy()[place].ravel()
    np.testing.assert_allclose(np.array(shown[9][4]) / 127 * np.abs(weight).max(), weight, atol=0.01)


def test_watches_every_variant_of_today() -> None:
    """Normalisation counts with the layer before it, and nothing is dropped."""
    image = to_mnist(DIGIT / 255)
    model = LeNet5("relu", "max", dropout=0.5, batch_norm=True, rng=0)
    first, second = Watched(model).look(image), Watched(model).look(image)
    assert first == second
    assert min(first["layers"]["c1"]) == 0  # after ReLU


# The program


def start(*options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """How the program ends that does not get to serve."""
    command = [sys.executable, "-W", "error", "-m", "examples.draw", "--no-browser", *options]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_one_sentence_if_it_cannot_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = start(f"--port={port}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"draw: port {port} is in use; choose another")
    for number in (-1, 65536):
        with pytest.raises(ValueError, match=f"--port is {number}; expected"):
            program.listen(number)


@pytest.mark.parametrize("file", ["lenet5.safetensors", "lenet5_1998.safetensors"])
def test_one_sentence_without_weights(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / file
    monkeypatch.setattr(Path, "with_name", lambda self, name: tmp_path if name == "weights" else self.parent / name)
    other = ({"lenet5.safetensors", "lenet5_1998.safetensors"} - {file}).pop()
    (tmp_path / other).write_bytes((ROOT / "models" / "weights" / other).read_bytes())
    monkeypatch.setattr(sys, "argv", ["draw", "--no-browser"])
    with pytest.raises(ValueError, match=f"{missing.name} cannot be read"):
        program.main()


def test_one_sentence_for_a_model_that_is_no_lenet(tmp_path: Path) -> None:
    pytest.importorskip("tqdm", reason="the example's packages are not installed")
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read"):
        program.load(tmp_path)
    for settings in ({"model": "transformer", "dataset": "mnist"}, {"model": "lenet5", "dataset": "fashion-mnist"}):
        (tmp_path / "metrics.json").write_text(json.dumps({"arguments": settings}))
        (tmp_path / "model.safetensors").write_bytes((ROOT / "models" / "weights" / "lenet5.safetensors").read_bytes())
        with pytest.raises(ValueError, match=r"^--model: .*expected one"):
            program.load(tmp_path)


def test_takes_a_model_that_was_trained_here(tmp_path: Path) -> None:
    pytest.importorskip("tqdm", reason="the example's packages are not installed")
    (tmp_path / "metrics.json").write_text(json.dumps({"arguments": {"model": "lenet5", "dataset": "mnist"}}))
    weights = ROOT / "models" / "weights" / "lenet5_1998.safetensors"
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match="does not fit lenet5"):
        program.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights.with_name("lenet5.safetensors").read_bytes())
    loaded, own = program.load(tmp_path), program.load(None)
    x = Tensor(data.to_input(DIGIT[None]))
    np.testing.assert_array_equal(loaded(x).numpy(), own(x).numpy())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a window")
def test_one_sentence_without_a_browser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(program.webbrowser, "open", lambda url: pytest.fail("a browser was started"))
    program.open_browser("http://127.0.0.1:1")
    assert "open http://127.0.0.1:1 in one yourself" in capsys.readouterr().out
    for opened in (False, True):
        monkeypatch.setenv("BROWSER", "some")
        monkeypatch.setattr(program.webbrowser, "open", lambda url, opened=opened: opened)
        program.open_browser("http://127.0.0.1:1")
        assert bool(capsys.readouterr().out) is not opened


# The page, in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium.browsing(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page, opened afresh, in a window on a desk."""
    browser.size(1280, 900)
    browser.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    drawn.open_page(browser, url)
    yield browser
    assert browser.errors == []


@needs_chromium
@pytest.mark.parametrize("pen", drawn.PENS)
def test_reads_what_is_drawn(pen: str, page: Any) -> None:
    """The first five of each digit among MNIST's test images, stroke by stroke with the mouse."""
    right = drawn.read(page, pen, [each["strokes"] for each in DRAWN]) == [[each["digit"]] for each in DRAWN]
    assert right.mean(axis=0).min() >= 0.97


def picture(page: Any, selector: str) -> list[Any]:
    """The pixels of all canvases there are."""
    code = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    return page.run(f"[...document.querySelectorAll({selector + ' canvas'!r})].map((c) => {code})")


SHOWN = [f"[data-name={name}] > .maps" for name in ("input", *LAYERS)]


@needs_chromium
def test_every_layer_changes_with_every_stroke(page: Any) -> None:
    strokes = [[[90, 60], [90, 140], [190, 140]], [[170, 60], [170, 230]]]
    seen = [[picture(page, selector) for selector in SHOWN]]
    for count in (1, 2):
        drawn.draw(page, strokes[:count])
        seen.append([picture(page, selector) for selector in SHOWN])
    for before, after in ((0, 1), (1, 2), (0, 2)):
        assert [SHOWN[i] for i in range(len(SHOWN)) if seen[before][i] == seen[after][i]] == []
    assert [len(maps) for maps in seen[0]] == [2, 12, 12, 32, 32, 2, 3]  # both networks; F6 of 1998 and its code
    today, of_1998 = drawn.answers(page)
    assert (today[0], of_1998[0]) == ("4", "4") and "sure" in today and "penalty" in of_1998
    page.click("#clear")
    assert drawn.answers(page) == ("Nothing is drawn yet.",) * 2
    assert [picture(page, selector) for selector in SHOWN] == seen[0]


@needs_chromium
def test_answers_while_the_pen_is_down(page: Any) -> None:
    left, top = page.run("(() => { const b = pad.getBoundingClientRect(); return [b.left, b.top]; })()")
    page.mouse("Pressed", left + 140, top + 50, down=True)
    for y in range(50, 240, 10):
        page.result(page.mouse("Moved", left + 140, top + y, down=True))
    assert drawn.answers(page)[0][0] == "1"
    page.result(page.mouse("Released", left + 140, top + 240))


@needs_chromium
def test_what_a_unit_of_c3_sees(page: Any) -> None:
    """By the mouse and by the arrow keys: Table I's maps, and the window that convolution and pooling make."""
    lit = "[...document.querySelectorAll('.old [data-name=%s] > .maps .map')].map((m) => m.matches('.lit'))"
    x, y = page.run(
        "(() => { const map = document.querySelectorAll('.old [data-name=c3] > .maps .map')[9];"
        " map.scrollIntoView({block: 'center'}); const b = map.getBoundingClientRect();"
        " return [b.left + 0.35 * b.width, b.top + 0.75 * b.height]; })()"
    )
    page.result(page.mouse("Moved", x, y))
    page.wait("document.querySelector('.old.looking') !== null")
    for layer in ("s2", "c1"):
        assert page.run(lit % layer) == [i in TABLE_I[9] for i in range(6)]
    assert page.run(lit % "c3") == [i == 9 for i in range(16)]
    style = "document.querySelector('.old [data-name=%s] .lit').style"
    share = f"['--x', '--y', '--size'].map((name) => Number({style}.getPropertyValue(name)))"
    # Unit (7, 3) sees rows 7 to 11 of S2, so rows 14 to 23 of C1, and so rows 14 to 27 of the picture.
    for layer, expected in (("s2", (3, 7, 5, 14)), ("c1", (6, 14, 10, 28)), ("input", (6, 14, 14, 32))):
        column, row, size, whole = expected
        assert page.run(share % layer) == pytest.approx([column / whole, row / whole, size / whole])
    shown = "[...document.querySelectorAll('.old .sees .map')].map((m) => m.checkVisibility())"
    assert page.run(shown) == [i in TABLE_I[9] for i in range(6)]
    page.result(page.mouse("Moved", 5, 5))
    assert page.run("document.querySelector('.looking')") is None

    page.run("document.querySelector('.old [data-name=c3] > .maps').focus({focusVisible: true})")
    page.key("ArrowUp", *["ArrowRight"] * 7)  # from row 7, column 3 of map 10 to row 6, column 0 of map 11
    assert page.run(lit % "s2") == [i in TABLE_I[10] for i in range(6)]
    assert page.run("document.querySelector('.old .sees p').textContent").startswith("Row 7, column 1 of map 11:")


@needs_chromium
def test_draws_with_a_finger(page: Any) -> None:
    """The page does not scroll meanwhile, and a second finger is ignored."""
    page.size(390, 844, phone=True)
    left, top = page.run("(() => { const b = pad.getBoundingClientRect(); return [b.left, b.top]; })()")
    for kind, y in (("Start", 60), *(("Move", y) for y in range(70, 280, 10)), ("End", 0)):
        fingers = [{"x": left + 170, "y": top + y, "id": 0}, {"x": left + 20, "y": top + 20, "id": 1}]
        page("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=[] if kind == "End" else fingers)
    assert [answer[0] for answer in drawn.answers(page)] == ["1", "1"]
    assert page.run("scrollY") == 0


@needs_chromium
def test_why(page: Any) -> None:
    drawn.draw(page, DRAWN[0]["strokes"])
    assert not page.run("document.querySelector('.today .why').checkVisibility()")
    page.click("#why")
    assert page.run("document.querySelector('.today .why').checkVisibility()")
    assert page.run("document.querySelector('#why').getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelector('.today .why').textContent").strip().startswith(f"Why {DRAWN[0]['digit']}?")
    today, old = picture(page, ".layer .why")
    assert len(set(map(tuple, np.reshape(today, (-1, 4)).tolist()))) > 30 and today != old


@needs_chromium
def test_draws_by_keys(page: Any) -> None:
    page.run("pad.focus({focusVisible: true})")
    page.key(" ", *["ArrowDown"] * 16, " ")
    assert drawn.answers(page)[0][0] == "1"
    assert page.run("document.querySelector('#said').textContent").startswith("LeNet-5 today: 1")
    page.key("Delete")
    assert drawn.answers(page)[0] == "Nothing is drawn yet."


@needs_chromium
def test_draws_examples_that_are_read(page: Any) -> None:
    """All ten digits, by both networks; what is drawn then by hand adds to the last one."""
    found = []
    for _ in range(10):
        page.click("#example")
        found.append([answer[0] for answer in drawn.answers(page)])
    assert sorted(found) == [[str(digit)] * 2 for digit in range(10)]


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "phone"), [(320, True), (390, True), (820, False), (1280, False)])
def test_fits_the_window(width: int, phone: bool, scheme: str, page: Any) -> None:
    """No part lies beside the window, and text stands out from what is behind it (WCAG 2.2: 4.5 to 1)."""
    page.size(width, 844, phone=phone)
    page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    page.click("#why")
    page.click("#example")
    drawn.answers(page)
    assert page.run("document.documentElement.scrollWidth") <= width
    beside = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.run(f"{beside}.map((e) => e.outerHTML)") == []
    names = ["--text", "--faint", "--mark", "--card", "--page"]
    style = "getComputedStyle(document.documentElement)"
    colours = page.run(f"{names}.map((name) => {style}.getPropertyValue(name).trim())")
    text, faint, mark, card, paper = map(luminance, colours)
    for front in (text, faint, mark):
        for back in (card, paper):
            assert (max(front, back) + 0.05) / (min(front, back) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * each for each in digits) if len(digits) == 3 else digits
    channels = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@needs_chromium
def test_every_control_has_a_name(page: Any) -> None:
    """As a screen reader would say it."""
    nodes = page("Accessibility.getFullAXTree")["nodes"]
    asked = {"button", "radio", "application", "image", "img"}
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    named = [name for role, name in found if role in asked]
    assert len(named) > 20 and all(named)
    assert {"Drawing pad", "Why?", "medium"} <= set(named)


@needs_chromium
def test_says_when_the_program_has_ended(browser: Any) -> None:
    with drawn.serving() as (url, server):
        drawn.open_page(browser, url)
        server.terminate()
        server.wait()
        today, _ = drawn.draw(browser, DRAWN[0]["strokes"])
    assert "start it again" in today
    browser.errors.clear()
