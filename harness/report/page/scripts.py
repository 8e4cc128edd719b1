"""JavaScript libraries and data that a page holds, so that it needs nothing from elsewhere, and static drawings of charts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VEGA_LITE = "6.4"  # the version whose rules `charts` follows
STATIC_WIDTH = 560  # pixels: a drawing then has letters of the page's size on a desk, and can be read on a phone
# Pixels around a drawing: names at the left are a fifth wider where a reader has none of the fonts below.
STATIC_PADDING = {"left": 35, "right": 8, "top": 6, "bottom": 6}
# Fonts that a page and a drawing outside of it have in common.
CONFIG = {
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "view": {"stroke": None},
    # labels that are longer, in pixels, are cut with an ellipsis when they are drawn
    "axisY": {"labelLimit": 220},
    "axisX": {"labelFlush": False, "labelSeparation": 4},
    "header": {"labelLimit": 220, "labelFontSize": 12},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e4e4e4"},
    "title": {"fontSize": 13, "fontWeight": "normal"},
    "legend": {
        "orient": "bottom",
        "columns": 3,
        "labelFontSize": 12,
        "symbolLimit": 0,
        "symbolOpacity": 1,
        "labelLimit": 200,
    },
}


@cache
def library_scripts() -> dict[str, str]:
    """Return the libraries' scripts: `vega` (Vega, Vega-Lite and Vega-Embed) and `tables` (DataTables with jQuery).

    Each is one function call, so that its names stay apart from those of other scripts; `tables` sets `window.jQuery`.
    """
    import vl_convert

    vega = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    tables = _tables_file("dt_bundle.js").read_text("utf-8")
    exports = re.search(r"export\s*\{([^}]*)\}\s*;?", tables)
    jquery = re.search(r"([\w$]+) as jQuery", exports[1]) if exports else None
    if exports is None or jquery is None:
        raise RuntimeError("the package itables has changed: its DataTables bundle exports no jQuery")
    tables = f"{tables[: exports.start()]}window.jQuery={jquery[1]};{tables[exports.end() :]}"
    return {name: f"(function(){{{text}\n}})();" for name, text in (("vega", vega), ("tables", tables))}


def table_styles() -> str:
    """Return the style sheet of DataTables."""
    return _tables_file("dt_bundle.css").read_text("utf-8")


def _tables_file(name: str) -> Path:
    """Return a file that the package itables carries; importing it would import pandas."""
    spec = find_spec("itables")
    assert spec is not None and spec.submodule_search_locations is not None  # pyproject.toml installs it
    return Path(spec.submodule_search_locations[0], "html", name)


def packed(text: str) -> str:
    """Return a text as gzip in base64, which a page unpacks in the browser."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def content_hash(script: str) -> str:
    """Return the source expression by which a content security policy allows one script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def draw_static(spec: dict[str, Any]) -> str:
    """Return the SVG of a chart, for readers without scripts, pictures and trackers."""
    import vl_convert

    whole = {**spec, "config": CONFIG, "padding": STATIC_PADDING}
    if spec.get("width") == "container":
        whole["width"] = STATIC_WIDTH
    svg = vl_convert.vegalite_to_svg(whole, vl_version=VEGA_LITE)
    # a drawing shrinks with the page and never grows
    width = re.search(r'<svg[^>]*? width="([\d.]+)" height="[\d.]+"', svg)
    if width:
        svg = re.sub(r'(<svg[^>]*?) width="[\d.]+" height="[\d.]+"', rf'\1 style="width: {width[1]}px"', svg, count=1)
    return svg


def picture(svg: str) -> bytes:
    """Return an SVG as a PNG of twice its size."""
    import vl_convert

    return vl_convert.svg_to_png(svg, scale=2)
