"""The ES modules of ``script/`` joined into one, which a page on disk and a notebook widget can load.

Browsers load modules neither from ``file:`` addresses nor from inside a widget, and a build tool would be one more
thing to install. So the joining is done here, by text. ``main.js`` stands last, as it is. Before it every other
module stands once, after those it imports, inside a function that gives it its own scope::

    import { median } from "./numbers.js";          const numbers_js = (() => { ... return { median }; })();
    export class Data { ... }               ->      const data_js = (() => {
                                                      const { median } = numbers_js;
                                                      class Data { ... }
                                                      return { Data };
                                                    })();
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

IMPORT = re.compile(r'^import (\{[^}]+\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?(?:class|const|function) (\w+))", re.MULTILINE)


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
