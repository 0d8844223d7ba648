"""The server behind the page: it takes the ink on the pad, and answers what both networks make of it.

`application` is the whole of it. It serves the three files in `page/`, what the networks look like (`/networks`), and
what they make of a drawing (`/look`), to nobody but a page of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.mnist_form import to_mnist
from models import LeNet5, LeNet5_1998
from models.lenet5_1998 import CODES
from tinygrad_lenet import Tensor, data, grad, nn
from tinygrad_lenet import functional as F

SIDE = 280  # pixels of the pad, which sends one byte for each: 0 is paper, 255 is ink
KIND = "application/octet-stream"
LAYERS = ("c1", "s2", "c3", "s4", "c5", "f6")
ON_EVERY_ANSWER = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Watched:
    """A network, and what each of its layers made of the last digit."""

    def __init__(self, model: LeNet5 | LeNet5_1998) -> None:
        self.model = model.eval()
        self.outputs: dict[str, np.ndarray] = {}
        self.layer = ""
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(self.listener(name))

    def listener(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def listen(module: nn.Module, inputs: Any, y: Tensor) -> None:
            if name in LAYERS:
                self.layer = name
            if name != "output":  # activations and normalisation count with the layer before them
                self.outputs[self.layer] = y.numpy()

        return listen

    def look(self, digit: np.ndarray) -> dict[str, Any]:
        """What the network makes of a digit, uint8 [28 28]: its answer, the ten values, the gradient, the layers.

        The values are probabilities or, from the network of 1998, penalties. The gradient is that of the answer's logit
        or negative penalty: where it is positive, more ink speaks for the answer.
        """
        of_1998 = isinstance(self.model, LeNet5_1998)
        image = data.to_input(digit[None], -0.1, 1.175) if of_1998 else data.to_input(digit[None])
        x = Tensor(image, requires_grad=True)
        y = self.model(x)
        scores = -y if of_1998 else y
        answer = int(scores.numpy().argmax())
        (gradient,) = grad(scores[0, answer], [x])
        values = y if of_1998 else F.softmax(y.detach())
        return {
            "answer": answer,
            "values": values.numpy()[0].tolist(),
            "gradient": as_bytes(gradient.numpy()),
            "layers": {name: as_bytes(self.outputs[name]) for name in LAYERS},
        }

    def kernels(self) -> list[dict[int, list[int]]]:
        """For each map of C3, its kernel for each map of S2 that it sees."""
        c3 = self.model.c3
        connections = c3.connections or [range(c3.weight.shape[1])] * len(c3.weight)
        weights = iter(c3.weight.numpy().reshape(-1, *c3.kernel_size))
        return [{i: as_bytes(next(weights)) for i in maps} for maps in connections]


def as_bytes(values: np.ndarray) -> list[int]:
    """Integers from -127 to 127, in the order of rows: the largest magnitude becomes 127."""
    limit = float(np.abs(values).max()) or 1.0
    return np.rint(127 / limit * values).astype(int).ravel().tolist()


def application(today: LeNet5, of_1998: LeNet5_1998, port: int) -> ASGIApp:
    """The ASGI application, for a browser that reaches it on this port of this machine."""
    networks = [Watched(today), Watched(of_1998)]

    async def describe(request: Request) -> Response:
        return JSONResponse({"kernels": [each.kernels() for each in networks], "codes": CODES.reshape(10, 84).tolist()})

    async def look(request: Request) -> Response:
        ink = await drawing(request)
        if ink.max() < 0.5:
            raise HTTPException(422, "Nothing is drawn; expected a digit.")
        digit = to_mnist(ink)
        return JSONResponse(
            {"digit": np.pad(digit, 2).ravel().tolist(), "networks": [each.look(digit) for each in networks]}
        )

    page = StaticFiles(directory=Path(__file__).with_name("page"), html=True)
    routes = [Route("/networks", describe), Route("/look", look, methods=["POST"]), Mount("/", page)]
    return guarded(Starlette(routes=routes), port)


async def drawing(request: Request) -> np.ndarray:
    """The ink[H W] on the pad, from 0 to 1; HTTPException, before the body is read, if that is none."""
    kind = request.headers.get("content-type", "nothing")
    if kind != KIND:
        raise HTTPException(415, f"The content type is {kind}; expected {KIND}.")
    length = request.headers.get("content-length", "not given")
    if length != str(SIDE * SIDE):
        raise HTTPException(413, f"The body's length is {length}; expected {SIDE * SIDE}, a byte for each pixel.")
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "The body is incomplete.") from None
    return np.frombuffer(body, np.uint8).reshape(SIDE, SIDE) / 255


def guarded(app: ASGIApp, port: int) -> ASGIApp:
    """The application, for requests that name this machine and come from no other site's page.

    Another site's name can be made to point here (DNS rebinding), so that its pages count as ours; but a browser then
    sends that name.
    """
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
    names += ["127.0.0.1", "localhost"] if port == 80 else []  # which browsers leave out

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ON_EVERY_ANSWER)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in names:
            answer: ASGIApp = PlainTextResponse(f"This is no server for {host!r}; expected {names[0]}.", 421)
        elif origin is not None and origin.lower() not in [f"http://{name}" for name in names]:
            answer = PlainTextResponse(f"The request comes from {origin}; expected this server's own page.", 403)
        else:
            answer = app
        await answer(scope, receive, send_safely)

    return serve
