"""How Sphinx builds the site: `python -m sphinx -W docs runs/site`. No page needs a network, no formula a script."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tinygrad_lenet

project = html_title = "tinygrad_lenet"
version = release = tinygrad_lenet.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sourcelink = False
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # what a docstring has in backquotes becomes a link, if it is a public name
add_module_names = False
autodoc_default_options = {  # what is inherited, too, but not from these
    "members": True,
    "inherited-members": "Module, Op, Optimizer, BaseException, tuple",
}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

# Pages that lie elsewhere in the checkout, which a page here includes: links to the one become links to the other.
INCLUDED = {
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "examples/results/README.md": "results-1998",
    "examples/results/claims/README.md": "claims",
}
TENSOR_LIKE = "~tinygrad_lenet.tensor.Tensor | ~typing.Any | int | float"


def link_to_included(app: Any, page: str, source: list[str]) -> None:
    for path, included in INCLUDED.items():
        source[0] = re.sub(rf"\]\((\.\./)+{re.escape(path)}", f"](/background/{included}.md", source[0])


def name_the_alias(app: Any, what: str, name: str, value: Any, options: Any, arguments: str, result: str) -> Any:
    return arguments and arguments.replace(TENSOR_LIKE, "TensorLike"), result


def look_further(app: Any, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """A link to `optim.Adam` or `no_grad` from anywhere: names that are not those of the file itself."""
    if node.get("refdomain") != "py":
        return None
    name, objects = f"tinygrad_lenet.{node['reftarget']}", env.domains.python_domain.objects
    if name not in objects:
        return None
    return make_refnode(app.builder, node["refdoc"], objects[name].docname, objects[name].node_id, content, name)


def visit_formula(translator: Any, node: nodes.Element) -> None:
    """TeX to MathML, which browsers set by themselves."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.connect("source-read", link_to_included)
    app.connect("autodoc-process-signature", name_the_alias)
    app.connect("missing-reference", look_further)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula, None))
