"""The notebooks: `python -m tests.notebooks` runs them and says what they say differently; --write keeps that."""

import argparse
import base64
import io
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("examples/notebooks")
VARIES = "varies"  # the tag of a cell whose numbers differ from machine to machine: only its words are compared
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def paths() -> list[Path]:
    return sorted((ROOT / FOLDER).glob("*.ipynb"))


def links(name: str, urls: dict[str, str]) -> str:
    """The first line of a notebook: how to run it, elsewhere if [project.urls] says where the project lives."""
    home = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", urls.get("Repository", ""))
    if home is None:
        return (
            '*To run this, open a checkout of the project: `pip install -e ".[notebooks]"`, then '
            "`jupyter lab examples/notebooks`.*"
        )
    colab = f"https://colab.research.google.com/github/{home[1]}/blob/main/{FOLDER.as_posix()}/{name}"
    binder = f"https://mybinder.org/v2/gh/{home[1]}/main?labpath={FOLDER.as_posix()}/{name}"
    return f"*To run this without installing anything, open it in [Colab]({colab}) or on [Binder]({binder}).*"


def project_urls() -> dict[str, str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def execute(path: Path) -> Any:
    """The notebook with the outputs that it has now, run in an empty folder by a kernel of this Python."""
    notebook = read(path)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            allow_errors=True,  # an error is an output, too
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    return tidy(notebook)


def tidy(notebook: Any) -> Any:
    """Leave out what differs from run to run and nobody reads, so that a change shows in few lines."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = small(output.data["image/png"])
    return notebook


def small(picture: str) -> str:
    """The PNG, in base64, with 256 colours."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def said(cell: Any) -> list[tuple[str, str]]:
    """What a cell put out: the kind of each output, and the text of those that are text."""
    found = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            found.append((output.name, output.text))
        elif output.output_type == "error":
            found.append(("error", f"{output.ename}: {output.evalue}"))
        else:
            kinds = sorted(kind for kind in output.data if kind != "text/plain")
            found.append((", ".join(kinds), "" if kinds else output.data["text/plain"]))
    return found


def alike(a: str, b: str, numbers: bool) -> bool:
    """Whether two texts have the same words and, on request, the same numbers, but for their last digits."""
    if NUMBER.sub("#", a).split() != NUMBER.sub("#", b).split():
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    values = [(float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs]
    return not numbers or all(abs(x - y) <= 1e-3 * max(abs(x), abs(y)) + 1e-9 for x, y in values)


def differences(kept: Any, found: Any) -> list[str]:
    """For each cell whose outputs differ, what was kept and what was found."""
    result = []
    for i, (old, new) in enumerate(zip(kept.cells, found.cells, strict=True)):
        numbers = VARIES not in old.metadata.get("tags", ())
        a, b = said(old), said(new)
        same = len(a) == len(b) and all(x[0] == y[0] and alike(x[1], y[1], numbers) for x, y in zip(a, b, strict=True))
        if not same:
            result.append(f"cell {i}:\nkept  {a}\nfound {b}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the links and outputs of now")
    args = parser.parse_args()
    for path in paths():
        found = execute(path)
        print(f"{path.name}: {len(found.cells)} cells")
        for difference in differences(read(path), found):
            print(difference)
        if args.write and not any(kind == "error" for cell in found.cells for kind, _ in said(cell)):
            first = found.cells[0]
            first.source = "\n".join([links(path.name, project_urls()), *first.source.splitlines()[1:]])
            nbformat.write(found, path)


if __name__ == "__main__":
    main()
