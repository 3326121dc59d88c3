"""The README's table of findings, written from the numbers that the notebooks stored inside their figures.

``python -m visionpulse_analysis.studies.shared.readme_table`` copies the headline figures into ``figures/readme`` and
rewrites the table between its two marks in the README; a test compares the two.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.efficiency.report import times
from visionpulse_analysis.studies.mass_and_usage.report import about_need
from visionpulse_analysis.studies.quickstart.report import trace_sentence
from visionpulse_analysis.studies.shared.sentences import COMPARED, listed
from visionpulse_analysis.studies.step_dependence.fixed_set_report import conclusions

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "figures" / "readme"
BEGIN, END = "<!-- findings", "<!-- end of findings -->"
HEADLINES = {
    "00_quickstart": "What does one trace look like?",
    "01_step_dependence": "Is visual evidence step-dependent?",
    "02_attention_mass_and_usage": "Does attention mass predict how many patches are used?",
    "03_trace_length": "Does pruning shorten the trace without losing accuracy?",
    "04_visionpulse_at_work": "What does the pruner do, and what does it cost?",
    "05_layers": "Where does the model read, and which layer can prune?",
    "06_explorer": "What did it look at, step by step? The explorer, dense beside pruned",
    "07_efficiency": "What does a decode step cost, and how close is it to what memory allows?",
    "08_sweep": "What came out of a sweep over samples, pruners and seeds?",
    "09_pruner_comparison": "Which pruner keeps what it needs, at the same number of patches?",
    "10_three_stages": "Are there three stages of depth: image skipped, read, no longer needed?",
    "11_prompt_awareness": "Keep what the question names, or what covers the image?",
    "12_heads": "Which heads look at the image, when, and which would do for pruning?",
}


def share(estimate: dict[str, Any]) -> str:
    return f"{Estimate.from_json(estimate):.1%}"


def points(estimate: dict[str, Any]) -> str:
    return f"{Estimate.from_json(estimate):.1p}"


def plain(estimate: dict[str, Any]) -> str:
    return f"{Estimate.from_json(estimate):.2f}"


def nats(estimate: dict[str, Any]) -> str:
    return f"{Estimate.from_json(estimate):.2g nats}"


def found_00(n: dict[str, Any]) -> str:
    return trace_sentence(n)


def found_01(n: dict[str, Any]) -> str:
    objects = n["objects"]
    hits = sorted(objects["hit_by_kind"].items(), key=lambda item: -item[1]["estimate"])
    by_kind = ", ".join(f"{kind} {share(hit)}" for kind, hit in hits)
    return (
        f"The top {100 * n['fraction']:g} % of one step and of the next overlap by {plain(n['consecutive_overlap'])} "
        f"(Jaccard; random sets {n['null_overlap']:.3f}); prefill's holds {share(n['later_coverage'])} of a later "
        f"step's image mass, the step's own {share(n['later_own'])}. Would one set do for a whole trace? "
        f"{conclusions(n['fixed'])} The strongest patch lies on the object that a step names in "
        f"{share(objects['hit_named'])} of the steps (chance {100 * objects['chance']:.1f} %): {by_kind}."
    )


def found_02(n: dict[str, Any]) -> str:
    relation = n["r"]["above 1/n"]
    null = relation["null"]["within"]
    return (
        f"Within samples r(mass, patches above 1/n) = {plain(relation['within'])}; the same shapes dealt out at random "
        f"give {null['low']:.2f} to {null['high']:.2f}. {about_need(n)}"
    )


def found_03(n: dict[str, Any]) -> str:
    def said(way: str, name: str) -> str:
        arm = n[way][name]
        length, accuracy = (arm["judged"][outcome]["decision"] for outcome in ("length", "accuracy"))
        return (
            f"length {length} ({share(arm['length'])}), accuracy {accuracy} ({points(arm['truth']['change'])})"
            f"{cut_off(arm)}"
        )

    pulse, greedy = (n[way]["VisionPulse 5 %"] for way in ("sampled", "greedy"))
    static = [name for name in n["sampled"] if name.startswith(("at prefill 5", "hindsight 5"))]
    in_one_set = "; ".join(f"{name}: {said('sampled', name)}" for name in static)
    return (
        f"Changes against dense with {100 * pulse['retention']:.1f} % of the patches at each step; lengths are of the "
        f"pairs that ended. Sampled: {said('sampled', 'VisionPulse 5 %')}, {share(pulse['truth']['ratio'])} of dense; "
        f"detours {plain(pulse['truth']['detour_change'])} of {plain(pulse['truth']['dense_detours'])} a trace. "
        f"Greedy: {said('greedy', 'VisionPulse 5 %')} (dense greedy traces hold "
        f"{greedy['truth']['dense_detours']['estimate']:.2f} detours). As many in one set for the whole trace, "
        f"sampled, {in_one_set}. {adjusted(pulse)}"
    )


def cut_off(arm: dict[str, Any]) -> str:
    """How many traces were cut off, as the end of a phrase; empty where none was, here or densely."""
    cut = arm["cut_off"]
    counts = f", cut off {cut['n_arm']} of {arm['n_pairs']} (dense {cut['n_dense']})"
    return counts if cut["n_arm"] or cut["n_dense"] else ""


def adjusted(arm: dict[str, Any]) -> str:
    """How it was decided what falls and rises."""
    size = arm["judged"]["length"]["size"]
    return f"What falls or rises is told by exact tests, adjusted (Holm) for all {size} of the notebook."


def found_04(n: dict[str, Any]) -> str:
    judged = n["against"]
    family = next(iter(next(iter(judged.values())).values()))["family"]
    lines = []
    for arm, others in judged.items():
        by_decision: dict[str, list[str]] = {}
        for over, verdict in others.items():
            by_decision.setdefault(verdict["decision"], []).append(f"{over} ({points(verdict['effect'])})")
        if arm.startswith("VisionPulse"):
            told = [f"{COMPARED[how]} {listed(names)}" for how, names in by_decision.items()]
            lines.append(f"{arm} is {'; '.join(told)}.")
    return f"{' '.join(lines)} (Exact tests, adjusted among {family}.)"


def found_05(n: dict[str, Any]) -> str:
    suitable, undecided = (", ".join(map(str, n[group])) or "none" for group in ("suitable", "undecided"))
    return (
        f"Default anchor: layer {n['default']}; layers whose own choice of {100 * n['fraction']:g} % would do: "
        f"{suitable}; undecided: {undecided}."
    )


def found_09(n: dict[str, Any]) -> str:
    share_kept = f" {100 * n['compared']:g} %"
    short = lambda arm: arm.replace(", own setting", "").replace(share_kept, "")  # noqa: E731
    pulse = n["arms"][f"VisionPulse{share_kept}"]
    accuracy = pulse["verdicts"]["accuracy"]
    said = [f"{listed([short(arm) for arm in arms])}: {ending}" for ending, arms in n["ordering"].items()]
    of_prefill = {short(arm): n["arms"][arm]["change"] for arms in n["ordering"].values() for arm in arms}
    cut = {arm: change for arm, change in of_prefill.items() if change["cut_off"]["n_arm"]}
    lines = [
        f"With{share_kept} kept, VisionPulse changes accuracy by {points(accuracy['effect'])}. Methods that choose at "
        f"prefill, with as many kept (exact tests, Holm among the {accuracy['size']} of {accuracy['family']})"
        f": {'. '.join(line[0].upper() + line[1:] for line in said)}."
    ]
    groups: dict[str, list[str]] = {}
    for over, verdict in n["VisionPulse against"].items():
        groups.setdefault(COMPARED[verdict["decision"]], []).append(short(over))
    if groups:
        told = "; ".join(f"{how} {listed(names)}" for how, names in groups.items())
        lines.append(f"VisionPulse is {told} ({len(n['VisionPulse against'])} differences in accuracy).")
    if cut:
        counts = ", ".join(f"{arm} {change['cut_off']['n_arm']}" for arm, change in cut.items())
        lengths = "; ".join(f"{arm} {plain(change['tokens'])}" for arm, change in cut.items() if change["n_both"])
        n_pairs = next(iter(cut.values()))["n_pairs"]
        lines.append(f"Cut off at the limit of {n['limit']} tokens, of {n_pairs}: {counts}.")
        lines.append(f"Change in tokens where both traces ended: {lengths}." if lengths else "")
    return " ".join(filter(None, lines))


def found_10(n: dict[str, Any]) -> str:
    visual, prompt = n["most visual step"], n["end of the prompt"]
    deep = round(26 / 32 * n["n_layers"])
    return (
        f"Skipping the image in the first {n['n_shallow']} layers moves the most visual step of an answer by "
        f"{nats(visual['shallow'])}; withdrawing it from layer {deep} on, by {nats(visual['withdrawn'][deep])}. At the "
        f"end of the prompt, where the methods look, hiding the whole image moves {nats(prompt['effect'])}."
    )


def found_11(n: dict[str, Any]) -> str:
    known = ("r = 0", "r = 0.6", "r = 1", "random", "oracle")
    kept = f", {100 * n['compared']:g} %"
    arms = {label: n[f"{label}{kept}"] for label in known if f"{label}{kept}" in n}
    cut = {
        label: f" ({arm['cut_off']['n_arm']} cut off)" * bool(arm["cut_off"]["n_arm"]) for label, arm in arms.items()
    }
    accuracy = "; ".join(f"{label} {share(arm['accuracy'])}{cut[label]}" for label, arm in arms.items())
    judged = {(first, second): verdict["decision"] for first, second, verdict in n["judged"]}
    claims = [f"{first} minus {second} {how}" for (first, second), how in judged.items() if second != "overlap"]
    against_chance = {"rises": "above chance", "falls": "below chance", "not shown": "no difference from chance shown"}
    overlaps = "; ".join(
        f"{label} {plain(arms[label]['overlap_with_oracle'])}, {against_chance[judged[label, 'overlap']]}"
        for label in arms
        if (label, "overlap") in judged
    )
    return (
        f"Accuracy with {100 * n['compared']:g} % of the patches, chosen before the model: {accuracy}. By exact tests, "
        f"adjusted by Holm among {n['judged'][0][2]['family']}: {', '.join(claims)}. Overlap of what is kept with what "
        f"the oracle keeps: {overlaps}."
    )


def found_12(n: dict[str, Any]) -> str:
    def of_head(key: str) -> str:
        layer, head = key.split(".")
        return f"head {head} of layer {layer}"

    followed = sum(claim["decision"] == "rises" for claim in n["found"].values())
    told = []
    for head in n["chosen"]:
        own, random, mean = (n["judged"][f"{head}, {name}"] for name in ("own step", "random", "layer's mean"))
        told.append(
            f"{of_head(head)} ({points(own['effect'])}, {own['decision']}; against random {points(random['effect'])}, "
            f"{random['decision']}; against its layer's mean {points(mean['effect'])}, {mean['decision']})"
        )
    by = "; ".join(f"{criterion} {share(best['agreement'])}" for criterion, best in n["best"].items())
    size = next(iter(n["judged"].values()))["size"]
    return (
        f"{followed} of {len(n['found'])} heads hold more of the patches that their step depends on than of those of "
        f"other steps (Holm, on the half of the samples that chooses). The {len(n['chosen'])} best, judged on the "
        f"other half by that and by the steps that stay within {n['level']:g} nats with {100 * n['fraction']:g} % of "
        f"the patches: {'; '.join(told)} (exact tests, Holm among {size}). Shown to do for pruning: "
        f"{listed([of_head(head) for head in n['suitable']]) if n['suitable'] else 'none of these'}. Of the relevant "
        f"patches, the best head by each criterion holds: {by} (random sets {100 * n['chance']:.1f} %)."
    )


def found_07(n: dict[str, Any]) -> str:
    many, recorded, bound = n["many_rows"], n["recording"], n["bound_over_dense"]["gathered_5"]
    all_layers = [ratio for name, ratio in recorded.items() if name.startswith("all_layers")]
    together = [
        f"{part['speedup']:.1f} at {tokens} visual tokens (at most {part['bound']:.1f})"
        for tokens, part in sorted(n["together"].items(), key=lambda named: int(named[0]))
    ]
    return (
        f"At {n['visual_tokens']:,} visual tokens a dense step is {times(n, 'dense')} times as fast as the library's "
        f"(median and range of the rounds) and takes {n['time_over_limit']['dense']:.2f} times what memory allows; "
        f"with 5 % gathered {times(n, 'gathered_5')} times ({times(n, 'gathered_5', 'dense', 2)} times our dense step, "
        f"of {bound:.2f} that the bytes allow; {times(many, 'gathered_5', 'dense', 2)} times with {many['batch']} "
        f"rows), with the last set reused {times(n, 'reuse_5')} times. Recording all layers takes "
        f"{' and '.join(f'{ratio:.2f}' for ratio in all_layers)} times the time of plain decoding; "
        f"samples a second of {n['largest_batch']} rows together over one alone: {', '.join(together)}."
    )


def found_06(n: dict[str, Any]) -> str:
    cut = f" Cut off at the limit of tokens: {listed(n['cut_off'])}." if n.get("cut_off") else ""
    return (
        f"A page of {n['page_bytes'] / 1000:.0f} kB that works with the network off: {n['dense_steps']} steps dense "
        f"beside {n['pruned_steps']} pruned, every step, layer and patch to be pointed at.{cut}"
    )


def found_08(n: dict[str, Any]) -> str:
    cut = any(arm["n_cut_off"] for arm in n.values())

    def said(name: str, arm: dict[str, Any]) -> str:
        length = arm["length"]["estimate"]
        found = f", {arm['judged']['accuracy']['decision']}" if "accuracy" in arm["judged"] else ""
        tokens = "no trace ended" if length is None else f"{length:.1f} tokens"
        cut_here = f", {arm['n_cut_off']} cut off" if cut else ""
        return f"{name} {share(arm['accuracy'])}{found} ({tokens}{cut_here})"

    against = next((f" {adjusted(arm)}" for arm in n.values() if arm["judged"]), "")
    return (
        f"Accuracy, and mean length of the traces that ended, of {n['dense']['n']} samples per pruner: "
        f"{'; '.join(said(name, arm) for name, arm in n.items())}.{against}"
    )


FOUND = {
    "00_quickstart": found_00,
    "01_step_dependence": found_01,
    "02_attention_mass_and_usage": found_02,
    "03_trace_length": found_03,
    "04_visionpulse_at_work": found_04,
    "05_layers": found_05,
    "06_explorer": found_06,
    "07_efficiency": found_07,
    "08_sweep": found_08,
    "09_pruner_comparison": found_09,
    "10_three_stages": found_10,
    "11_prompt_awareness": found_11,
    "12_heads": found_12,
}


def findings_table(folder: Path = KEPT) -> str:
    """The table, from the figures of a folder."""
    rows = ["| notebook | asks | found |", "|---|---|---|"]
    for name, question in HEADLINES.items():
        numbers = read_provenance(folder / f"{name}.png")["numbers"]
        rows.append(f"| [`{name}`](notebooks/{name}.ipynb) | {question} | {FOUND[name](numbers)} |")
    return "\n".join(rows)


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks; raises ValueError where a mark is missing."""
    return between(readme, BEGIN, END, table)


def between(page: str, begin: str, end: str, text: str) -> str:
    """A page with another text between the line of one mark and the other mark; ValueError where one is missing."""
    first, last = page.find(begin), page.find(end)
    if first < 0 or last < first:
        raise ValueError(f"the page has lost its marks {begin!r} and {end!r}; put them back")
    first_line = page[first:].split("\n", 1)[0]
    return f"{page[:first]}{first_line}\n{text}\n{page[last:]}"


def main(figures: Path = ROOT / "figures") -> None:
    """Keep the headline figures and rewrite the README."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in HEADLINES:
        shutil.copyfile(figures / f"{name}.png", KEPT / f"{name}.png")
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), findings_table()))


if __name__ == "__main__":
    main()
