"""What was seen of each type of the mapping on each version of transformers, and the table of it in docs/types.md.

`seen.json` keeps it; ``make type-table`` looks at all types on the oldest, the pinned and the newest transformers, and
writes it, the page, and the sentence of docs/models.md that counts them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from observing import COLUMNS, Seen

from visionpulse_analysis.studies.shared.readme_table import between

FOLDER = Path(__file__).parent
STORED, PAGE = FOLDER / "seen.json", FOLDER.parents[1] / "docs" / "types.md"
MODELS = FOLDER.parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- types", "<!-- end of types -->"
LATTICE = re.compile(r"\d+ x \d+")
NEWEST = "constraints-newest.txt"
Results = dict[str, Seen]  # by type


def has(seen: Seen, *columns: str) -> bool:
    """Whether a type has all of these columns; that of the map where it is a lattice."""
    return all(
        LATTICE.fullmatch(seen.get(column, "")) if column == "map" else seen.get(column) == "yes" for column in columns
    )


def read() -> dict[str, Results]:
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def write(version: str, results: Results) -> None:
    """Keep what was seen on one version of transformers, drop what is no longer pinned, and rewrite the pages."""
    kept = {name: value for name, value in read().items() if name in versions()} | {version: results}
    STORED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    for page, text in ((PAGE, table(kept)), (MODELS, summary(kept))):
        page.write_text(between(page.read_text(), BEGIN, END, text))


def versions() -> list[str]:
    """Those that the constraint files name, the oldest first."""
    found = [pinned(file) for file in ("constraints-floor.txt", "constraints.txt", NEWEST)]
    return sorted(found, key=_number)


def pinned(file: str) -> str:
    (line,) = [line for line in (MODELS.parents[1] / file).open() if line.startswith("transformers==")]
    return line.partition("==")[2].strip()


def summary(stored: dict[str, Results]) -> str:
    """How many types, on each version, in one sentence of docs/models.md."""
    parts = []
    for version in sorted(stored, key=_number):
        seen = stored[version].values()
        rows, maps = sum(has(one, "rows") for one in seen), sum(has(one, "rows", "map") for one in seen)
        parts.append(f"{rows} of the {len(seen)} types of transformers {version} ({maps} with a measured map)")
    return (
        f"On tiny random models `vpa.watch` records {', '.join(parts[:-1])} and {parts[-1]}. The rest is "
        "refused by name, with the reason, or not built by that version: [types.md](types.md)."
    )


def table(stored: dict[str, Results]) -> str:
    """The table, and below it what there is no map of, and what is refused, with the reasons."""
    lines = [f"| type | {' | '.join(COLUMNS)} | transformers |", "|---" * (len(COLUMNS) + 2) + "|"]
    order = sorted(stored, key=_number)
    kinds = sorted({kind for results in stored.values() for kind in results})
    reasons: dict[str, dict[str, list[str]]] = {"map": defaultdict(list), "refused": defaultdict(list)}
    for kind in kinds:
        on = [version for version in order if kind in stored[version]]
        newest = stored[on[-1]][kind]
        if "absent" in newest:
            pass
        elif "refused" in newest:
            reasons["refused"][newest["refused"]].append(kind)
        elif not has(newest, "map"):
            reasons["map"][newest["map"]].append(kind)
        cells = [_cell(column, [stored[version][kind] for version in on], on) for column in COLUMNS]
        lines.append(f"| `{kind}` | {' | '.join(cells)} | {' to '.join(dict.fromkeys((on[0], on[-1])))} |")
    for title, name in (("No map, because it was measured:", "map"), ("Refused:", "refused")):
        lines += ["", title, ""]
        lines += [f"- {', '.join(f'`{kind}`' for kind in named)}: {why}" for why, named in reasons[name].items()]
    return "\n".join(lines)


def _cell(column: str, seen: list[Seen], on: list[str]) -> str:
    """What was seen on the newest version, and since when where that differs."""
    texts = [_word(column, one) for one in seen]
    if len(set(texts)) == 1:
        return texts[0]
    other = [f"{version}: {text}" for version, text in zip(on, texts, strict=True) if text != texts[-1]]
    return f"{texts[-1]} ({'; '.join(other)})"


def _word(column: str, seen: Seen) -> str:
    if "absent" in seen:
        return "not built"
    if "refused" in seen:
        return "refused"
    if column == "map" and not has(seen, "map"):
        return "none"
    return seen[column]


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
