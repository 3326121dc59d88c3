"""The explorer as HTML: one file that opens from disk with the network off, or an output of a notebook.

Browsers load ES modules neither from ``file:`` addresses nor from inside a widget, and a build tool would be one more
thing to install. So the modules of ``script/`` are joined here, by text. ``main.js`` stands last, as it is. Before it
every other module stands once, after those it imports, inside a function that gives it its own scope::

    import { median } from "./numbers.js";          const numbers_js = (() => { ... return { median }; })();
    export class Data { ... }               ->      const data_js = (() => {
                                                      const { median } = numbers_js;
                                                      class Data { ... }
                                                      return { Data };
                                                    })();
"""

from __future__ import annotations

import json
import re
import secrets
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path

from visionpulse_analysis._util.files import written_whole
from visionpulse_analysis.explorer.view import regenerate

IMPORT = re.compile(r'^import (\{[^}]+\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?(?:class|const|function) (\w+))", re.MULTILINE)

# The policy makes "offline" a rule the browser enforces: no request leaves the page.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
html {{ background: #fff; }} html[data-theme="dark"] {{ background: #18191d; }} body {{ margin: 0; }}
{css}
</style>
</head>
<body>
<main id="explorer"></main>
<script type="application/json" id="payload">{payload}</script>
<script type="module">
{script}
mountPage(
  document.getElementById("explorer"),
  JSON.parse(document.getElementById("payload").textContent),
  {view},
);
</script>
</body>
</html>
"""

# The same inside a notebook, whose page it shares. Where scripts are not run, the sentence stays.
OUTPUT = """<div id="{name}" class="mathjax_ignore">
The explorer is shown once this notebook is trusted (File, Trust Notebook).
</div>
<style>
{css}
</style>
<script type="module">
{script}
const place = document.getElementById("{name}");
place.textContent = "";
mount(place.appendChild(document.createElement("div")), {payload}, {{ link: {view} }});
</script>
"""


def asset(name: str) -> str:
    """Text of a file of ``script/``."""
    return resources.files(__name__.rpartition(".")[0]).joinpath("script", name).read_text(encoding="utf-8")


@cache
def script() -> str:
    """Return all modules as one."""
    joined: dict[str, str] = {}

    def add(name: str) -> str:
        """Join what a module imports, and return its own text with those names looked up."""
        source = asset(f"{name}.js")
        for _, needed in IMPORT.findall(source):
            if needed not in joined:
                text = add(needed)
                joined[needed] = _scoped(needed, text)
        return IMPORT.sub(r"const \1 = \2_js;", source)

    main = add("main")
    return "\n".join([*joined.values(), main])


def _scoped(name: str, text: str) -> str:
    exported = ", ".join(found for _, found in EXPORT.findall(text))
    body = EXPORT.sub(r"\1", text)
    return f"const {name}_js = (() => {{\n{body}return {{ {exported} }};\n}})();\n"


def safe_json(value: object) -> str:
    """JSON that can stand inside a ``<script>``: no character of it can end the element or start markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(payload: dict, view: str = "") -> str:
    """Return the whole page as text.

    Parameters
    ----------
    payload : dict
        From `visionpulse_analysis.explorer.payload.pack`.
    view : str
        What is shown first, as in the page's own links: ``"step=12&layer=3"``.
    """
    title = escape(f"{payload['question']} · VisionPulse explorer", quote=False)
    return PAGE.format(
        title=title,
        css=asset("explorer.css"),
        script=script(),
        payload=safe_json(payload),
        view=safe_json(view),
    )


def output(payload: dict, view: str = "") -> str:
    """Return the same as a notebook output, which needs neither a kernel nor Jupyter's widget manager."""
    return OUTPUT.format(
        name=f"vp-{secrets.token_hex(8)}",
        css=asset("explorer.css"),
        script=script(),
        payload=safe_json(payload),
        view=safe_json(view),
    )


def write(path: str | Path, payload: dict, view: str = "") -> Path:
    """Write the page and return its path.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    check_folder(path)
    path = Path(path)
    payload = payload | regenerate(payload["traces"], payload["store"], path)
    with written_whole(path) as draft:
        draft.write_text(page(payload, view), encoding="utf-8")
    return path


def check_folder(path: str | Path) -> None:
    """Raise FileNotFoundError unless a page can be written there: known before a long decode, not after it."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {folder}. Create it first.")
