"""Figures for a paper: all studies draw a method alike, and long, tall or odd traces keep their pictures."""

import re
import time
from itertools import combinations, pairwise

import numpy as np
import pytest
from made_arms import first, made_arm, made_arms
from made_scene import random_traces, sample_of
from matplotlib.colors import to_hex
from matplotlib.text import Text
from paper_page import check_page

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.figures.methods import AT_PREFILL, AT_STEPS, METHODS, known_look, look
from visionpulse_analysis.figures.scales import colours
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.authors_figures.figures import activation_page
from visionpulse_analysis.studies.frontier import divergence
from visionpulse_analysis.studies.frontier import figures as frontier
from visionpulse_analysis.studies.pruner_comparison.figures import PAGE, kept_page
from visionpulse_analysis.studies.pruner_comparison.measure import RIVALS
from visionpulse_analysis.studies.quickstart import figures as quickstart
from visionpulse_analysis.studies.sweep import figures as sweep
from visionpulse_analysis.studies.trace_length import figures as lengths
from visionpulse_analysis.traces import create_trace

WORDS = "the model looks at a red circle , so it is 左边 of 中文 مرحبا 🙂 $x$ square .".split()


def estimate(value, n=36):
    return Estimate(value, value - 0.05, value + 0.05, n, n, 0.95, "made up")


def made_trace(steps=1200, rows=60, cols=8, layers=3, pruned=False, still=False, **meta):
    """A trace of an instruct model: no </think>, one answer of many lines over a tall, or wide, picture."""
    random = np.random.default_rng(0)
    attention = random.random((steps, layers, rows * cols), np.float32) ** 8
    attention *= (random.random((steps, layers, 1)) / attention.sum(-1, keepdims=True)).astype(np.float32)
    tokens = [WORDS[i] for i in random.integers(0, len(WORDS), steps)]
    kept = np.tile(random.random(rows * cols) < 0.3, (steps, 1)) if still else random.random((steps, rows * cols)) < 0.3
    return create_trace(
        attention=attention,
        mass=attention.sum(-1),
        tokens=tokens,
        token_ids=np.arange(steps),
        logprobs=np.zeros(steps, np.float32),
        grid=PatchGrid.from_grid(np.arange(rows * cols), [rows], [cols], [(rows * 8, cols * 8)]),
        layers=list(range(layers)),
        images=[random.integers(0, 256, (rows * 8, cols * 8, 3), dtype=np.uint8)],
        meta={"id": "made", "question": "What is on it? " * 30, "text": "\n\n".join(tokens), "finished": True, **meta},
        **({"kept": kept, "k": kept.sum(1), "pruner_mass": attention[:, 0].sum(-1)} if pruned else {}),
    )


def sample(trace):
    return Sample("made", trace.images[0], trace.question)


# ---- one table of methods ---------------------------------------------------------------------------------


def test_every_method_has_a_look_of_its_own():
    assert len({(one.colour, one.marker) for one in METHODS.values()}) == len(METHODS)
    assert [name for name, one in METHODS.items() if one.colour == look("VisionPulse").colour] == ["VisionPulse"]
    told = {label: rival for label, rival in RIVALS.items() if label in METHODS}
    for label, rival in told.items():
        assert METHODS[label].marker in (AT_PREFILL if rival.at_prefill else AT_STEPS), label
        assert " | " in rival.name or look(rival.name).label == label
    for (one, a), (other, b) in combinations(told.items(), 2):
        assert a.family != b.family or METHODS[one].colour != METHODS[other].colour, (one, other)


def test_colours_of_methods_are_told_apart_by_the_colour_blind():
    """Seen without red or green receptors (Machado et al. 2009, severity 1), any two colours differ in CIE Lab."""
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    shades = sorted({one.colour for one in METHODS.values()})
    rgb = np.array([[int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)] for shade in shades])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    for seen in (np.eye(3), np.array(protan), np.array(deutan)):
        xyz = np.clip(linear @ seen.T, 0, 1) @ to_xyz.T / [0.9505, 1, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 10


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("last_step_only 5 %", "last step only 5 %"),
        ("visionpulse(budget=0.1)", "VisionPulse(budget=0.1)"),
        ("VisionPulse 10 %, sampled", "VisionPulse 10 %, sampled"),
        ("divprune(budget=0.1) | visionpulse(budget=0.05)", "DivPrune | VisionPulse"),
        ("prefill_once", "at prefill"),
        ("keep_all", "dense"),
    ],
)
def test_a_method_keeps_its_look_whatever_its_setting(name, label):
    found = known_look(name)
    assert found and found.label == label
    base = next(key for key in sorted(METHODS, key=len, reverse=True) if label.startswith(key))
    assert (found.colour, found.marker) == (METHODS[base].colour, METHODS[base].marker)


def test_a_method_of_ones_own_is_drawn_alike_too():
    assert known_look("my_pruner") is None and look("my_pruner") == look("my_pruner")
    assert look("my_pruner").marker not in AT_STEPS + AT_PREFILL


def arms():
    """Dense, and every method that several studies draw, at two budgets."""
    named = ("VisionPulse", "last step only", "random", "hindsight", "static random", "at prefill")
    made = {"dense": made_arm(first(36), 40, kept=1.0)}
    for place, name in enumerate(named):
        for budget in (5, 10):
            right, length = first(36 - 5 * place - (budget == 5)), 40 + np.arange(36) % (place + 2)
            made[f"{name} {budget} %"] = made_arm(right, length, kept=budget / 100)
    made["preset 5 %"] = made_arm(first(35), 41, kept=0.05)
    return made_arms(made)


def pages():
    measured = arms()
    groups = {}
    for arm in measured.pruned:
        groups.setdefault(re.sub(r" \d+ %", "", arm), {})[arm] = None
    groups["paper's settings"] = groups.pop("preset")
    by_layer = {name: {2: (f"{name} 5 %", None), 4: (f"{name} 10 %", None)} for name in ("VisionPulse", "random")}
    yield "frontier", frontier.frontier_page(measured, groups)
    yield "anchors", frontier.anchor_figure(measured, by_layer, 4)
    yield "knobs", frontier.knob_figure(measured, "VisionPulse 5 %", {"preset 5 %": None})
    changes = {name: one for name, one in measured.pruned.items() if "preset" not in name}
    yield "lengths", lengths.headline({"greedy": changes, "sampled": changes})
    yield "spread", lengths.spread(measured, ["VisionPulse 5 %", "at prefill 5 %"], None)
    yield "reasons", lengths.reasons({name: changes[name] for name in ("VisionPulse 5 %", "at prefill 5 %")})
    curves = {
        name: (np.arange(60), [estimate(0.3 + 0.01 * (t % 7)) for t in range(60)])
        for name in ("dense", "visionpulse 5 %", "random 5 %", "my_pruner 5 %")
    }
    yield "steps", sweep.steps_page({"mass": curves, "patches": curves})


@pytest.fixture(scope="module")
def drawn():
    return dict(pages())


@pytest.mark.parametrize("name", ["frontier", "anchors", "knobs", "lengths", "spread", "reasons", "steps"])
def test_pages_of_studies_can_be_printed_and_draw_methods_alike(drawn, name):
    check_page(drawn[name])


def test_visionpulse_is_drawn_in_every_one_of_them(drawn):
    for name, page in drawn.items():
        seen = {line.get_color() for ax in page.axes for line in ax.lines}
        seen |= {to_hex(patch.get_edgecolor()).upper() for ax in page.axes for patch in ax.patches}
        seen |= {to_hex(shade).upper() for ax in page.axes for one in ax.collections for shade in one.get_edgecolor()}
        assert look("VisionPulse").colour in seen, name


def test_points_of_arms_at_one_share_lie_side_by_side(drawn):
    for ax in drawn["frontier"].axes:
        points = [tuple(p) for line in ax.lines if line.get_gid() for p in ax.transData.transform(line.get_xydata())]
        for a, b in combinations(points, 2):
            assert abs(a[0] - b[0]) + abs(a[1] - b[1]) > 1, ax.get_ylabel()


def test_markers_of_curves_over_steps_lie_at_different_steps(drawn):
    ax = drawn["steps"].axes[0]
    starts = [line.get_markevery() for line in ax.lines]
    assert len({start % every for start, every in starts}) == len(starts) and len({every for _, every in starts}) == 1


# ---- few values, many steps, odd pictures -----------------------------------------------------------------


def test_three_samples_are_three_dots():
    found = divergence.Divergences(estimate(0.9), np.array([3, 3, 17]), {}, {})
    page = divergence.divergence_figure(found)
    [ax] = page.axes
    dots = np.concatenate([one.get_offsets() for one in ax.collections])
    assert dots.tolist() == [[3, 1], [3, 2], [17, 1]] and not ax.patches
    check_page(page)


def test_numbers_of_marked_steps_stay_apart():
    mass = np.random.default_rng(0).random(200)
    for width in (figures.SINGLE, figures.DOUBLE):
        fig, ax = figures.new_figure(width, 2.3)
        figures.draw_mass_curve(ax, mass, ["a"] * 200, marked_steps=[0, 11, 14, 145, 156, 157, 199])
        fig.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in ax.texts]
        assert [text.get_text() for text in ax.texts] == ["0", "11", "14", "145", "156", "157", "199"]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_crowded_curve_is_its_running_mean_with_a_rug():
    mass = np.random.default_rng(0).random(1200)
    _, ax = figures.new_figure(figures.DOUBLE, 2.3)
    figures.draw_mass_curve(ax, mass, ["a"] * 1200, kinds=np.where(mass < 0.5, "text", "visual").tolist())
    each, mean = ax.lines[:2]
    span = int(re.findall(r"\d+", mean.get_label())[0])
    for step in (0, 1, 600, 1199):
        near = mass[max(0, step - span // 2) : step + span // 2 + 1]
        assert mean.get_ydata()[step] == pytest.approx(near.mean())
    assert each.get_linewidth() * each.get_alpha() < 0.2 * mean.get_linewidth()
    rug = np.asarray(ax.images[0].get_array())[0]
    assert len(rug) == 1200 and len(np.unique(rug, axis=0)) == 2
    assert ((rug == rug[np.argmax(mass)]).all(axis=1) == (mass >= 0.5)).all()


@pytest.mark.parametrize("shape", [(60, 8), (8, 60)], ids=["tall", "wide"])
def test_a_thousand_steps_on_a_tall_or_wide_picture(shape):
    trace = made_trace(rows=shape[0], cols=shape[1])
    start = time.process_time()
    page = quickstart.quickstart_page(trace, sample(trace), 1)
    page.draw_without_rendering()
    assert time.process_time() - start < 30  # seconds; three on an idle core
    check_page(page, letters=4)
    assert page.get_size_inches()[1] < 11
    for ax in page.axes:
        if ax.images and ax.get_label() != "<colorbar>" and ax.get_aspect() == 1:
            box = ax.get_window_extent()
            assert min(box.width, box.height) > 0.1 * page.dpi  # a picture, no hair
    title = page.axes[0].get_title()
    assert title.count("\n") <= 6 and "…" in title
    words = next(ax for ax in page.axes if "shaded" in ax.get_title("left"))
    assert any("tokens …" in text.get_text() for text in words.texts) and len(words.texts) < 500


def test_other_pages_of_such_traces():
    trace = made_trace(steps=300)
    step, pulse = quickstart.step_page(trace, sample(trace), 1, 7), activation_page(trace, 1)
    pair = quickstart.questions_page([trace, trace], [sample(trace)] * 2, 1)
    pruned = made_trace(steps=300, pruned=True)
    comparison = divergence.compare_tokens(trace.tokens, [*trace.tokens[:20], *pruned.tokens[::-1]])
    work = frontier.step_page(pruned, comparison, [1, 7, 100])
    for page in (step, pulse, pair, work):
        check_page(page)
        assert page.get_size_inches()[1] < 12


def test_kept_sets_of_all_pruners_fit_a_page():
    moving, still = (
        made_trace(steps=9, rows=8, cols=8, pruned=True, still=one, pruner={"name": "x"}) for one in (0, 1)
    )
    traces = {name: still if rival.at_prefill else moving for name, rival in RIVALS.items()}
    page = kept_page(traces, [1, 3, 5, 7])
    assert page.get_size_inches()[1] < 9 and {ax.get_ylabel() for ax in page.axes} >= {"step 7", "all steps"}
    check_page(page, letters=2)
    assert kept_page(dict.fromkeys(RIVALS, moving), [1, 3, 5, 7]).get_size_inches()[1] < PAGE + 0.7


def test_text_is_broken_to_its_width_and_cut():
    text = "answer: " + "word " * 500 + "\n\n" + "中" * 900
    for most in (1, 3, 20):
        lines = figures.fit_text(text, 150, most_lines=most).split("\n")
        assert len(lines) == most and lines[-1].endswith("…")
        assert all(figures.tokens.label_width(line) <= 151 for line in lines)
    assert figures.fit_text("two words", 500) == "two words"


def test_the_bar_shows_what_lies_on_a_coloured_picture():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 8:] = (250, 120, 30)
    [ax] = figures.overlay_strip(None, image, [np.array([[0.0, 0.1], [0.2, 0.3]])], ["a"])
    [bar] = [one for one in ax.figure.axes if one.get_label() == "<colorbar>"]
    shown = np.asarray(bar.images[0].get_array())
    veil = colours(np.array([0.3]), 0, 0.3, figures.overlays.OPACITY, "inferno")[0]
    for part, ground in ((0, (0, 0, 0)), (-1, (250, 120, 30))):
        wanted = veil[:3] * veil[3] + (1 - veil[3]) * np.array(ground) / 255
        assert np.allclose(shown[part, -1], wanted, atol=0.01)


def test_fonts_are_inside_the_pdf(tmp_path):
    fig, ax = figures.new_figure(figures.DOUBLE, 2.3)
    figures.draw_mass_curve(ax, [0.1, 0.2, 0.3], ["中", "مرحبا", "$x$"])
    figures.draw_caption(fig, "n = 1 trace.")
    _, pdf, svg = figures.save(fig, "a", folder=tmp_path)
    content = pdf.read_bytes()
    assert content.count(b"/Type /FontDescriptor") == content.count(b"/FontFile2") > 0 and b"/Type3" not in content
    assert b"<text" not in svg.read_bytes()  # outlines


def test_pages_name_what_their_intervals_resample():
    fig, ax = figures.new_figure()
    figures.draw_estimates(ax, {"a": estimate(0.1, 12), "b": estimate(0.2, 30)})
    figures.draw_caption(fig, "More.")
    told = " ".join(fig.get_supxlabel().split())
    assert told == "n = 12 to 30 samples; bars: 95 % intervals, which resample samples. More."
    alone, ax = figures.new_figure()
    figures.draw_estimates(ax, {"a": Estimate(1, np.nan, np.nan, 1, 1, 0.95, "none", refused="one sample")})
    figures.draw_caption(alone)
    assert "n = 1 sample; no intervals: one sample." in " ".join(alone.get_supxlabel().split())


def test_pages_of_step_dependence_by_check(rng):
    traces = random_traces(rng, 3)
    check_page(quickstart.quickstart_page(traces[0], sample_of(), 2), letters=4)
    check_page(quickstart.step_page(traces[0], sample_of(), 2, 3), letters=3)
