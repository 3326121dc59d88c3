"""What decoding costs, in sentences; every number computed, with its range over the rounds."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.studies.efficiency.measure import SHARES, Measurements
from visionpulse_analysis.studies.shared.sentences import Finding


def times(n: dict[str, Any], variant: str, over: str = "stock", digits: int = 1) -> str:
    """How many times as fast a variant is, the median and the range over the rounds: "5.4 [5.1 to 5.6]".

    n : of one context and batch size, as in `Measurements.numbers`. over : "stock" or "dense".
    """
    middle, *ends = (n[f"{name}_over_{over}"][variant] for name in ("speedup", "least", "most"))
    return f"{middle:.{digits}f} [{' to '.join(f'{end:.{digits}f}' for end in ends)}]"


def sentences(found: Measurements) -> str:
    """What was measured, as Markdown; every number computed, with its range over the rounds."""
    numbers, machine = found.numbers(), found.decode["machine"]
    over, bound, many = numbers["time_over_limit"], numbers["bound_over_dense"], numbers["many_rows"]
    lines = [
        f"Measured on {machine['date']}: {machine['processor']}, {machine['threads']} threads, {machine['device']}; "
        f"reading memory at {numbers['bandwidth_gb_s']:.1f} GB/s. In brackets: least and most of the rounds.",
        f"- At {numbers['visual_tokens']:,} visual tokens a dense step is {times(numbers, 'dense')} times as fast as "
        f"the library's (whose cache is copied at every step) and takes {over['dense']:.2f} times what reading "
        "weights, keys and values once takes.",
        f"- Gathering 5 % of the patches: {times(numbers, 'gathered_5')} times the library, "
        f"{times(numbers, 'gathered_5', 'dense', 2)} times our own dense step; the layers below the anchor read "
        f"everything, so by the bytes it could be at most {bound['gathered_5']:.2f}. With the set of the step before "
        f"in those layers: {times(numbers, 'reuse_5')} and {times(numbers, 'reuse_5', 'dense', 2)} times, at most "
        f"{bound['reuse_5']:.2f}. Hiding the same patches by a mask: {times(numbers, 'masked_5')} and "
        f"{times(numbers, 'masked_5', 'dense', 2)} times. Choosing takes "
        f"{numbers['selection_share']['gathered_5']:.1%} of the gathered step.",
        _by_share(found),
        f"- {many['batch']} rows together: dense {times(many, 'dense')}, gathered {times(many, 'gathered_5')}, reused "
        f"{times(many, 'reuse_5')} times the library; gathered {times(many, 'gathered_5', 'dense', 2)} times our own "
        f"dense step, which takes {many['time_over_limit']['dense']:.2f} times the limit.",
        f"- Recording, all layers: {_recorded(found, 'all_layers')} the time of plain decoding; eager "
        f"`output_attentions`: {_recorded(found, 'eager')}.",
        *(_together(numbers["largest_batch"], tokens, gain) for tokens, gain in numbers["together"].items()),
    ]  # fmt: skip
    return "\n".join(lines)


def _by_share(found: Measurements) -> str:
    """At which shares of the patches picking them out is faster than reading all, in every round."""
    rows = sorted(
        (row["kept"], row["speedup_over_dense"]) for row in found.retention["rows"] if row["variant"] in SHARES
    )
    groups = {
        "faster than reading everything": [kept for kept, speed in rows if speed["min"] > 1],
        "slower": [kept for kept, speed in rows if speed["max"] < 1],
        "sometimes faster and sometimes slower": [kept for kept, speed in rows if speed["min"] <= 1 <= speed["max"]],
    }
    said = [f"{how} at {', '.join(f'{kept:.0%}' for kept in shares)}" for how, shares in groups.items() if shares]
    return f"- By share of the patches, over the rounds: gathering is {'; '.join(said)}."


def _together(rows: int, tokens: str, gain: dict[str, Any]) -> str:
    ms = gain["ms"]
    alike = ms["prompt"] + ms["trace"] + ms["rest"]
    return (
        f"- {rows} rows together decode {gain['speedup']:.1f} times ({gain['recorded']:.1f} recorded) as many "
        f"samples of {tokens} visual tokens a second as one row at a time. Of the {sum(ms.values()):.1f} ms of a "
        f"sample (not recorded) {ms['prefill']:.1f} are prefill and {alike:.1f} prompt, trace and the rest, which no "
        f"batch shares: if a step of {rows} rows took no longer than a step of one, it would be {gain['bound']:.1f}."
    )


def _recorded(found: Measurements, variant: str) -> str:
    rows = found.rows("recording").query("variant == @variant")
    return ", ".join(f"{row['ratio_to_plain.median']:.2f} ({row.visual_tokens:,} tokens)" for _, row in rows.iterrows())


def finding(n: dict[str, Any]) -> Finding:
    many, recorded, bound = n["many_rows"], n["recording"], n["bound_over_dense"]["gathered_5"]
    all_layers = [ratio for name, ratio in recorded.items() if name.startswith("all_layers")]
    together = [
        f"{part['speedup']:.1f} at {tokens} visual tokens (at most {part['bound']:.1f})"
        for tokens, part in sorted(n["together"].items(), key=lambda named: int(named[0]))
    ]
    return Finding(
        f"At {n['visual_tokens']:,} visual tokens a step that gathers 5 % of them is {times(n, 'gathered_5')} times as "
        f"fast as the library's and {times(n, 'gathered_5', 'dense', 2)} times as fast as our own dense step (median "
        "and range of the rounds).",
        f"At {n['visual_tokens']:,} visual tokens a dense step is {times(n, 'dense')} times as fast as the library's "
        f"(median and range of the rounds) and takes {n['time_over_limit']['dense']:.2f} times what memory allows; "
        f"with 5 % gathered {times(n, 'gathered_5')} times ({times(n, 'gathered_5', 'dense', 2)} times our dense step, "
        f"of {bound:.2f} that the bytes allow; {times(many, 'gathered_5', 'dense', 2)} times with {many['batch']} "
        f"rows), with the last set reused {times(n, 'reuse_5')} times. Recording all layers takes "
        f"{' and '.join(f'{ratio:.2f}' for ratio in all_layers)} times the time of plain decoding; "
        f"samples a second of {n['largest_batch']} rows together over one alone: {', '.join(together)}.",
    )
