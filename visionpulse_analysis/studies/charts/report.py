"""Tables and sentences about the charts; every word of a verdict is chosen by what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.studies.charts.figures import told
from visionpulse_analysis.studies.charts.measure import ASKED, NOT, OPEN, REPRODUCED, Charts, holds
from visionpulse_analysis.studies.shared.sentences import Finding, listed

SAID = {True: "holds", False: "does not hold", None: "not decidable"}


def property_table(study: Charts) -> pd.DataFrame:
    """What a fair world has, what this one has, and what that shows."""
    rows = {
        name: {"asked": told(name), "here": shown(name, claim.estimate), "shown": SAID[holds(name, claim)]}
        for name, claim in study.properties.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def shown(name: str, estimate: Any) -> str:
    """An estimate of a property: a share in per cent, a ratio as a number."""
    return f"{estimate:.1%}" if ASKED[name][0] <= 1 else f"{estimate:.1f}"


def needed_table(study: Charts) -> pd.DataFrame:
    """Patches needed by kind of word: quartiles in every order, over the steps that need the image."""
    needed = study.numbers()["needed"]
    kinds = list(dict.fromkeys(kind for of_order in needed.values() for kind in of_order))
    rows = {
        kind: {
            "steps": max(of_order[kind]["n"] for of_order in needed.values() if kind in of_order),
            **{
                order: "{q25:.3g} / {median:.3g} / {q75:.3g}".format(**of_order[kind]) if kind in of_order else ""
                for order, of_order in needed.items()
            },
        }
        for kind in kinds
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def paper_table(study: Charts) -> pd.DataFrame:
    """The paper's claims and what was found, a column of verdicts for every world."""
    paper = study.numbers()["paper"]
    names = list(dict.fromkeys(name for claims in paper.values() for name in claims))
    rows = {
        name: {
            "paper": next(claims[name]["paper"] for claims in paper.values() if name in claims),
            **{
                world: f"{claims[name]['verdict']}: {claims[name]['here']}" if name in claims else ""
                for world, claims in paper.items()
            },
        }
        for name in names
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def verdict(numbers: dict[str, Any]) -> str:
    """Which properties hold, and how many of the paper's claims are reproduced, from the numbers of a `Charts`."""
    n = from_json(numbers)
    by_state = {state: [name for name, one in numbers["properties"].items() if one["holds"] is state] for state in SAID}
    parts = []
    for state, names in by_state.items():
        one = [f"{name} ({shown(name, n['properties'][name]['claim'].estimate)}, asked {told(name)})" for name in names]
        parts += [f"{SAID[state].capitalize()}: {'; '.join(one)}."] if one else []
    for world, claims in numbers["paper"].items():
        parts.append(f"Of the paper's {len(claims)} claims, {world}: {_counted(claims)}.")
    return " ".join(parts)


def _counted(claims: dict[str, dict[str, Any]]) -> str:
    found: Sequence[tuple[str, list[str]]] = [
        (state, [name for name, one in claims.items() if one["verdict"] == state]) for state in (REPRODUCED, NOT, OPEN)
    ]
    return "; ".join(f"{len(names)} {state} ({listed(names)})" for state, names in found if names)


def finding(numbers: dict[str, Any]) -> Finding:
    """What the notebook found, from the numbers inside its headline figure."""
    world, claims = next(iter(numbers["paper"].items()))
    accuracy = from_json(numbers["arms"])[world]["dense"]["accuracy"]
    counts = ", ".join(
        f"{sum(one['verdict'] == state for one in claims.values())} {state}" for state in (REPRODUCED, NOT, OPEN)
    )
    held = sum(one["holds"] is True for one in numbers["properties"].values())
    short = (
        f"Dense accuracy {accuracy:.1%}; {held} of {len(numbers['properties'])} properties of a fair world are shown "
        f"to hold, and of the paper's {len(claims)} claims are {counts}."
    )
    return Finding(short, f"{short} {verdict(numbers)}")
