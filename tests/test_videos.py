"""Videos from lists, folders, animations and films: the right frames, their times, or one clear error."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis import figures
from visionpulse_analysis.cli import app
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps
from visionpulse_analysis.figures.overlays import OPACITY
from visionpulse_analysis.figures.style import HEAT_CMAP
from visionpulse_analysis.studies.quickstart.figures import draw_film_strip
from visionpulse_analysis.traces import frame_labels
from visionpulse_analysis.traces.exchange import patch_boxes, step_table, write_boxes

GREYS = (20, 60, 100, 140, 180, 220)
QUESTION = "where is the red circle ?"


def greys_of(video) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in video.read().frames]


@pytest.fixture
def film() -> list[Image.Image]:
    """Six frames of 48 x 32 pixels, each of one grey."""
    return [Image.new("RGB", (48, 32), (grey,) * 3) for grey in GREYS]


@pytest.fixture
def folder(film, tmp_path):
    """The frames as files, whose names sort wrongly as plain text."""
    for number, frame in enumerate(film):
        frame.save(tmp_path / f"shot{2 * number + 1}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_frames_from_everything_that_holds_some(film, folder):
    arrays = np.stack([np.asarray(frame) for frame in film])
    for given in (film, arrays, list(arrays), folder, str(folder), [folder / f"shot{n}.png" for n in range(1, 12, 2)]):
        assert greys_of(vpa.Video(given)) == list(GREYS)
    assert vpa.Video(film).read().fps is None and vpa.Video(film, fps=3).read().fps == 3


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_animations_with_their_mean_rate(film, tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"film.{kind}"
    film[0].save(path, save_all=True, append_images=film[1:], duration=[100, 300] * 3, **options)
    clip = vpa.Video(path).read()
    assert [int(frame[0, 0, 0]) for frame in clip.frames] == list(GREYS)
    assert clip.fps == pytest.approx(5) and vpa.Video(path, fps=2).read().fps == 2


def test_sampling_is_even_from_first_to_last():
    frames = np.zeros((30, 8, 8, 3), np.uint8)
    clip = vpa.Video(frames, fps=10, sample_fps=2).read()
    assert clip.numbers == np.linspace(0, 29, 6).round().astype(int).tolist() and clip.total == 30
    assert len(vpa.Video(frames, fps=10, sample_fps=0.1).read().frames) == 4  # as Qwen3-VL's processor does
    assert len(vpa.Video(frames, fps=10, sample_fps=99).read().frames) == 30


def test_a_film_by_pyav(film, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width, stream.height = film[0].size
        for frame in film:
            out.mux(stream.encode(av.VideoFrame.from_image(frame)))
        out.mux(stream.encode())
    clip = vpa.Video(path, sample_fps=4).read()
    assert clip.numbers == [0, 2, 3, 5] and clip.total == 6 and clip.fps == 5
    assert np.abs(np.array([frame.mean() for frame in clip.frames]) - np.array(GREYS)[clip.numbers]).max() < 6


def test_what_is_no_video_is_said(film, folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"not a film")
    film[0].save(tmp_path / "one.gif")
    film[0].save(tmp_path / "cut.gif", save_all=True, append_images=film[1:])
    whole = (tmp_path / "cut.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    cases = [
        (vpa.Video(tmp_path / "none.gif"), "no video at .*none.gif"),
        (vpa.Video(tmp_path / "empty"), "at least two frames, got 0"),
        (vpa.Video(tmp_path / "one.gif"), "at least two frames, got 1; give one picture as an image"),
        (vpa.Video(tmp_path / "cut.gif"), "cut.gif"),
        (vpa.Video([film[0], film[1].resize((8, 8))]), "frames must have one size: frame 1 is 8 x 8, not 48 x 32"),
        (vpa.Video(np.zeros((800, 2, 2, 3), np.uint8)), "shows 800 frames, and at most 768"),
        (vpa.Video(film, sample_fps=1), "sample_fps needs the rate"),
        (vpa.Video(7), "a list of frames or a path, got int"),
        (vpa.Video([film[0], "gone.png"]), "no image at gone.png"),
    ]
    for video, message in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            video.read()
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps must be above 0"):
            vpa.Video(film, fps=rate)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"film.mp4 is no animation.*pip install av.*folder of frames"):
        vpa.Video(tmp_path / "film.mp4").read()
    monkeypatch.setattr("visionpulse_analysis.media.videos.MOST_PIXELS", 1000)
    film[0].save(tmp_path / "large.gif", save_all=True, append_images=film[1:])
    with pytest.raises(ValueError, match="shows 6 frames of 48 x 32 pixels, above the limit"):
        vpa.Video(tmp_path / "large.gif").read()


def test_an_animation_given_as_a_still_is_refused_as_before(vlm, film, tmp_path):
    film[0].save(tmp_path / "film.gif", save_all=True, append_images=film[1:])
    with pytest.raises(ValueError, match=r"film.gif holds several frames; pass vpa.Video\(path\)"):
        vpa.decode(vlm, tmp_path / "film.gif", QUESTION)


@pytest.fixture(scope="module")
def traced(vlm, pictures, tmp_path_factory):
    """A picture and a video of three frames, two steps of the bundled family, in a store; and where that is."""
    path = tmp_path_factory.mktemp("video") / "store"
    frames = [np.roll(pictures[1], 16 * n, axis=1) for n in range(3)]
    media = [pictures[0], vpa.Video(frames, fps=2)]
    store = vpa.TraceStore(path, mode="a")
    trace = vpa.decode(vlm, media, QUESTION, max_new_tokens=2, store=store, ids="film")
    memory = vpa.decode(vlm, media, QUESTION, max_new_tokens=2)
    return SimpleNamespace(path=path, trace=trace, memory=memory, frames=frames, still=pictures[0])


def test_a_stored_video_trace_comes_back_whole(traced, tmp_path):
    traced.memory.save(tmp_path / "trace")
    for back in (traced.trace, vpa.TraceStore(traced.path)["film"], vpa.Trace.open(tmp_path / "trace")):
        assert back.data_hash == traced.memory.data_hash and back.grid.equals(traced.memory.grid)
        assert back.grid.pictures.tolist() == [[n, n + 1] for n in range(4)] and back.grid.n_images == 2
        assert all(np.array_equal(a, b) for a, b in zip(back.images, [traced.still, *traced.frames], strict=True))
        video = {"image": 1, "fps": 2, "total": 3, "frames": [0, 1, 2], "merged": 1}
        assert back.meta["videos"] == [video]
        assert frame_labels(back) == ["Image 1", *(f"Video 2, frame {n + 1}, {n / 2:g} s" for n in range(3))]
    assert set(traced.trace.attention.frame.values) == {0, 1, 2} and set(traced.trace.attention.image.values) == {0, 1}
    other = traced.memory.dataset.assign_attrs(pictures=[[0, 1], [1, 2], [2, 3], [2, 4]])
    assert vpa.Trace(other).data_hash != traced.memory.data_hash


def test_tables_and_boxes_keep_the_frames(traced, tmp_path):
    table = step_table(traced.trace)
    assert {"peak_image", "peak_frame"} <= set(table.columns)
    boxes = patch_boxes(traced.trace, 5)
    assert [image["id"] for image in boxes["images"]] == [1, 2, 3, 4]
    place = {(note["image_id"], note["frame"]) for note in boxes["annotations"]}
    assert place == {(1, 0), (2, 0), (3, 1), (4, 2)}
    files = write_boxes(traced.trace, tmp_path / "boxes.json", 5)
    assert np.array_equal(np.asarray(Image.open(files[4])), traced.frames[2])


def test_replay_reads_the_video_of_the_trace(vlm, traced):
    replay = SingleSteps.of(vlm, traced.trace)
    assert np.array_equal(replay.layout.places[0].numpy(), traced.trace.grid.position)


def test_the_film_strip_shows_every_frame_with_its_own_map(traced):
    fig = draw_film_strip(traced.trace, 1, 5)
    panels = [ax for ax in fig.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [label.replace(", ", "\n") for label in frame_labels(traced.trace)]
    grid, row = traced.trace.grid, traced.trace.at(1, 5)
    shown = [traced.still, *traced.frames]
    for ax, picture, (image, frame) in zip(panels, shown, grid.frames[:, :2].tolist(), strict=True):
        assert np.array_equal(ax.images[0].get_array(), picture)
        wanted = figures.scales.colours(grid.to_map(row, image, frame), 0, row.max(), OPACITY, HEAT_CMAP)
        assert np.allclose(ax.images[1].get_array(), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="images"):
        figures.overlay_strip(None, shown[:2], [grid.to_map(row, 0)] * 3, ["a"] * 3)


def test_the_command_line_takes_videos_and_several_images(traced, folder, scenes_folder, tmp_path):
    picture = tmp_path / "still" / "picture.png"
    picture.parent.mkdir()
    Image.fromarray(traced.still).save(picture)
    words = ["--model", str(scenes_folder), "--max-new-tokens", "1", "--json", "--layers", "5"]
    run = CliRunner().invoke(
        app, ["decode", str(picture), QUESTION, "--video", str(folder), "--fps", "4", "--sample-fps", "2",
              "--explore", str(tmp_path / "page.html"), *words],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["meta"]["videos"][0]["frames"] == [0, 2, 3, 5]
    run = CliRunner().invoke(app, ["decode", str(picture), str(picture), QUESTION, *words])
    assert json.loads(run.stdout)["patches"] == 2 * 64
    run = CliRunner().invoke(app, ["decode", QUESTION, *words])
    assert run.exit_code == 2 and "no image given with the question" in run.output
