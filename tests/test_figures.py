"""Figures: known arrays give known pixels; nothing overlaps, is cut off or changes what it was given."""

from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from figure_gallery import GALLERY, HEAT, IMAGE, TOKENS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE, SINGLE, new_figure, save
from visionpulse_analysis.figures.overlays import OPACITY
from visionpulse_analysis.figures.scales import colours
from visionpulse_analysis.figures.style import HEAT_CMAP, TOKEN_CMAP, VALUE_CMAP


def render(draw, *args, **kwargs) -> np.ndarray:
    """Draw so that one image pixel is one screen pixel; return uint8 [row_px, col_px, 3]."""
    fig = Figure(figsize=(1.0, 0.3), dpi=100)
    ax = fig.add_axes((0, 0, 1, 1))
    assert draw(ax, *args, **kwargs) is ax
    ax.axis("off")
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def patches(pixels: np.ndarray) -> np.ndarray:
    """[row_px, col_px, 3] -> [row, col, pixel, 3] for the 3 x 5 grid."""
    return pixels.reshape(3, 10, 5, 20, 3).transpose(0, 2, 1, 3, 4).reshape(3, 5, 200, 3)


# ---- pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 3), (2, 4)])
def test_a_hot_patch_colours_exactly_its_pixels(row, col):
    heat = np.zeros((3, 5))
    heat[row, col] = 1
    pixels = render(figures.draw_overlay, IMAGE, heat, vmin=0, vmax=1)
    expected = np.zeros((30, 100), bool)
    expected[row * 10 : row * 10 + 10, col * 20 : col * 20 + 20] = True
    cold = pixels[15, 10] if (row, col) != (1, 0) else pixels[0, 0]
    np.testing.assert_array_equal((pixels != cold).any(axis=2), expected)
    assert len(np.unique(pixels[expected], axis=0)) == 1  # one flat colour, no smoothing


def test_overlay_colour_is_the_blend_of_map_and_image():
    pixels = render(figures.draw_overlay, IMAGE, HEAT, vmin=0, vmax=0.1, alpha=(0.2, 0.9))
    share = np.clip(HEAT / 0.1, 0, 1)
    alpha = (0.2 + 0.7 * share)[..., None]
    blend = 255 * matplotlib.colormaps[HEAT_CMAP](share)[..., :3] * alpha + 200 * (1 - alpha)
    np.testing.assert_allclose(patches(pixels), blend[:, :, None] + np.zeros((200, 1)), atol=2)  # 8-bit blending


def test_a_place_without_a_patch_shows_the_bare_image():
    heat = HEAT.copy()
    heat[1, 2] = np.nan
    shown = patches(render(figures.draw_overlay, IMAGE, heat, vmin=0, vmax=0.1))
    bare = (shown == 200).all(axis=(2, 3))
    np.testing.assert_array_equal(bare, np.isnan(heat))


@pytest.mark.parametrize("percentile", [30, 50, 90, 99.9, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_blackout_blacks_exactly_the_patches_at_or_below_the_percentile(percentile, ties):
    heat = HEAT.round(2) if ties else HEAT
    shown = patches(render(figures.draw_blackout, IMAGE, heat, percentile))
    black = (shown == 0).all(axis=(2, 3))
    bare = (shown == 200).all(axis=(2, 3))
    below = heat <= np.percentile(heat, percentile)
    np.testing.assert_array_equal(black, below)
    np.testing.assert_array_equal(bare, ~below)


def black_of(heat, percentile):
    return (patches(render(figures.draw_blackout, IMAGE, heat, percentile)) == 0).all(axis=(2, 3))


def test_blackout_of_equal_values_shows_none_and_of_percentile_0_shows_all_patches():
    heat = np.full((3, 5), 0.1)
    assert black_of(heat, 50).all() and black_of(heat, 1).all() and not black_of(heat, 0).any()
    heat[0, 1] = np.nan
    np.testing.assert_array_equal(black_of(heat, 0), np.isnan(heat))
    heat[2, 2] = 0.2  # one stands out, at any percentile below its own; a place without a patch counts for nothing
    np.testing.assert_array_equal(black_of(heat, 50), heat != 0.2)
    np.testing.assert_array_equal(black_of(heat, 90), heat != 0.2)


def test_blackout_counts_as_the_authors_do():
    """9 values of which the middle one is the median: 4 are shown, 5 black; and 4.5 steps of 10 lie at 50 %."""
    for n, shown in ((15, 7), (14, 7)):
        heat = np.full(15, np.nan)
        heat[:n] = np.random.default_rng(n).permutation(n)
        assert (~black_of(heat.reshape(3, 5), 50)).sum() == shown


def test_kept_patches_are_untouched_inside_and_dropped_ones_dimmed():
    kept = HEAT > 0.08
    shown = render(figures.draw_kept, IMAGE, kept).reshape(3, 10, 5, 20, 3)
    inside = shown[:, 3:-3, :, 3:-3].transpose(0, 2, 1, 3, 4).reshape(3, 5, -1)  # without the outline
    np.testing.assert_array_equal((inside == 200).all(axis=2), kept)
    assert inside[~kept].max() < 100
    as_map = figures.draw_kept, IMAGE, np.where(kept, 1.0, 0.0)  # what PatchGrid.to_map makes of a bool
    np.testing.assert_array_equal(render(*as_map).reshape(shown.shape), shown)


def test_boxes_are_drawn_at_image_pixels():
    def draw(ax):
        figures.draw_overlay(ax, IMAGE, HEAT * 0, vmin=0, vmax=1)
        return figures.draw_boxes(ax, np.array([[20, 10, 60, 25]]))

    rows, cols = np.nonzero((render(draw) > 230).all(axis=2))
    assert abs(rows.min() - 10) <= 1 and abs(rows.max() - 24) <= 1
    assert abs(cols.min() - 20) <= 1 and abs(cols.max() - 59) <= 1


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB [n, 3] with values from 0 to 1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


@pytest.mark.parametrize("cmap", [HEAT_CMAP, VALUE_CMAP, TOKEN_CMAP])
def test_colour_maps_are_monotone_in_lightness(cmap):
    change = np.diff(lightness(matplotlib.colormaps[cmap](np.linspace(0, 1, 64))[:, :3]))
    assert (change > 0).all() or (change < 0).all()


@pytest.mark.parametrize("ground", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_more_attention_is_brighter_on_any_ground(ground):
    rgba = colours(np.linspace(0, 1, 64), 0, 1, OPACITY, HEAT_CMAP)
    seen = rgba[:, :3] * rgba[:, 3:] + ground * (1 - rgba[:, 3:])
    assert (np.diff(lightness(seen)) > 0).all()


# ---- nothing overlaps, is cut off or changed --------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(GALLERY))
def test_everything_is_inside_the_page(kind):
    fig = GALLERY[kind]()
    fig.draw_without_rendering()
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01, box


@pytest.mark.parametrize(("count", "all_named"), [(20, True), (40, True), (80, True), (120, True), (1000, False)])
def test_tokens_under_the_mass_curve_do_not_overlap(count, all_named):
    tokens, marked = (TOKENS * 60)[:count], [2, 6, count - 1]
    fig, ax = new_figure(DOUBLE, 2.3)
    figures.draw_mass_curve(ax, np.linspace(0, 1, count), tokens, marked_steps=marked)
    fig.draw_without_rendering()
    labels = [text for minor in (False, True) for text in ax.get_xticklabels(minor=minor)]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    named = {int(tick) for minor in (False, True) for tick in ax.get_xticks(minor=minor)}
    assert named >= set(marked) and (len(named) == count) == all_named and len(named) > 15
    at = dict(zip([*ax.get_xticks(), *ax.get_xticks(minor=True)], labels, strict=True))
    assert all(at[step].get_text() == tokens[step] for step in named)
    assert min(label.get_fontsize() for label in labels) >= 6


def test_tokens_of_a_strip_stay_apart_and_in_order():
    tokens = TOKENS * 4
    fig, ax = new_figure(SINGLE, figures.token_strip_height(tokens, SINGLE))
    figures.draw_token_strip(ax, tokens, np.linspace(0, 1, len(tokens)), vmin=0, vmax=1)
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == tokens
    for left, right in pairwise(boxes):
        assert right.x0 > left.x1 or right.y1 < left.y1 - 5


def test_marked_steps_carry_their_number_and_visual_steps_their_tint():
    _, ax = new_figure(DOUBLE, 2.3)
    figures.draw_mass_curve(ax, [0.9, 0.2, 0.8], ["a", "b", "c"], marked_steps=[2], kinds=["visual", "text", "visual"])
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("2", (2, 0.8))]
    assert [(span.get_x(), span.get_width()) for span in ax.patches] == [(-0.5, 1), (1.5, 1)]
    assert ax.get_legend_handles_labels()[1] == ["visual step"]
    assert ax.get_yticks()[[0, -1]].tolist() == [0, 1]


def test_no_line_runs_through_the_number_of_a_marked_step():
    mass = np.array([1, 1, 0, 0, 0.4, 1, 0.3, *[1] * 8, 0])
    fig, ax = new_figure(DOUBLE, 2.3)
    figures.draw_mass_curve(ax, mass, ["a"] * len(mass), marked_steps=[1, 2, 3, 4, 5, 15])
    fig.draw_without_rendering()
    steps = np.linspace(0, len(mass) - 1, 2000)
    line = ax.transData.transform(np.stack([steps, np.interp(steps, np.arange(len(mass)), mass)], axis=1))
    for text in ax.texts:
        box = Text.get_window_extent(text)  # without its line
        inside = (line > box.min).all(axis=1) & (line < box.max).all(axis=1)
        assert not inside.any(), text.get_text()


def test_odd_tokens_are_shown_and_never_read_as_mathematics():
    assert [figures.token_label(t) for t in (" the", "\n", "  ", "", "中", "x" * 20)] == [
        "the", "⏎", "␣", "", "□", "x" * 13 + "…",
    ]  # fmt: skip
    fig, ax = new_figure(DOUBLE, 2.3)
    figures.draw_mass_curve(ax, [0.1, 0.2], ["$\\frac$", "中"])
    fig.draw_without_rendering()
    strip = new_figure(DOUBLE, 2)[0]
    strip.clear()
    figures.overlay_strip(strip, IMAGE, [HEAT], [figures.step_title(3, "$\\frac$")])
    strip.draw_without_rendering()


def test_strip_shares_the_scale_only_when_asked_to():
    maps = [HEAT, HEAT / 10]
    assert figures.scale_limits(maps, "absolute") == [(0, 0.14), (0, 0.14)]
    assert figures.scale_limits(maps, "per_step") == [(0, 0.14), (0, pytest.approx(0.014))]
    assert figures.scale_limits([HEAT * 0], "absolute") == [(0, 1)]
    assert figures.scale_limits(maps, 0.5) == [(0, 0.5), (0, 0.5)]  # as in another strip
    shared, own = (
        [np.asarray(ax.images[1].get_array()) for ax in figures.overlay_strip(None, IMAGE, maps, ["", ""], scale=name)]
        for name in ("absolute", "per_step")
    )
    np.testing.assert_allclose(own[0], own[1], atol=1e-9)
    assert (shared[0] != shared[1]).any()


def test_inputs_and_global_settings_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    image, heat, kept = IMAGE.copy(), HEAT.copy(), HEAT > 0.05
    boxes, mass = np.array([[0.0, 0, 5, 5]]), np.linspace(0, 1, 18)
    given = [image, heat, kept, boxes, mass]
    copies = [array.copy() for array in given]
    for array in given:
        array.setflags(write=False)
    _, ax = new_figure()
    figures.draw_overlay(ax, image, heat, vmin=0.05, vmax=0.1)
    figures.draw_blackout(ax, image, heat, 50)
    figures.draw_kept(ax, image, kept)
    figures.draw_boxes(ax, boxes)
    figures.overlay_strip(None, image, [heat], ["a"])
    _, ax = new_figure()
    figures.draw_mass_curve(ax, mass, TOKENS)
    figures.draw_interval(ax, TOKENS, mass, mass, mass)
    figures.draw_frontier(ax, {"a": (mass[1:], mass[1:], mass[1:], mass[1:])})
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert dict(matplotlib.rcParams) == before


def test_a_user_s_own_settings_do_not_change_a_figure(tmp_path):
    plain = save(GALLERY["mass"](), "a", folder=tmp_path / "plain")[0].read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert save(GALLERY["mass"](), "a", folder=tmp_path / "own")[0].read_bytes() == plain


def test_each_small_map_has_its_own_scale_and_its_place(rng):
    maps = rng.random((2, 3, 4, 5)) * np.array([[1, 10, 0.01], [5, 1e-6, 0]])[..., None, None]
    _, ax = figures.new_figure()
    shown = np.asarray(figures.draw_map_grid(ax, maps, [2, 7], [0, 1, 5]).images[0].get_array(), float)
    assert shown.shape == (2 * 5 - 1, 3 * 6 - 1)
    for layer, head in np.ndindex(2, 3):
        part = shown[5 * layer : 5 * layer + 4, 6 * head : 6 * head + 5]
        most = maps[layer, head].max()
        assert np.allclose(part, maps[layer, head] / most if most else 0)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["2", "7"]
    for wrong in (maps[0], maps - 1, np.full((2, 3, 4, 5), np.inf)):
        with pytest.raises(ValueError, match="maps"):
            figures.draw_map_grid(ax, wrong, [2, 7], [0, 1, 5])
    with pytest.raises(ValueError, match="heads"):
        figures.draw_map_grid(ax, maps, [2, 7], [0, 1])
