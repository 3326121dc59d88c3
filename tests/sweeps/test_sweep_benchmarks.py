"""Benchmark tables of VLMEvalKit as samples: rows, pictures, prompts, judges, and what is wrong with a row."""

import base64
import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from visionpulse_analysis.experiments.sweeps import benchmarks as tsv
from visionpulse_analysis.experiments.sweeps.benchmarks import read_benchmark
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.samples import plan, read_samples


def picture(seed, size=(64, 48), kind="PNG"):
    """Noise, and its file in base64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return pixels, base64.b64encode(buffer.getvalue()).decode()


PIXELS, PNG = picture(0)
OTHER, PNG_2 = picture(1)


def write(path, rows, **options):
    """As VLMEvalKit writes its tables."""
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, **options)
    return path


def asked(folder, path="ChartQA_TEST.tsv", **options):
    """The samples of a sweep over a table."""
    given = {"out": "out", "samples": {"benchmark": {"path": path, **options}}}
    return read_samples(SweepConfig.from_plain(given, folder=folder))


def charts(**changes):
    """Three rows of ChartQA; a change replaces the cells of a column."""
    rows = {"index": [7, 8, 9], "image": [PNG, "7", PNG_2], "question": ["how\tmany ?", 'say "b"', "line\none"]}
    rows |= {"answer": ["3", "['b', 'c']", "[Yes, No]"], "split": ["human", "augmented", "human"]}
    return rows | changes


def test_rows_are_asked_and_judged_as_stated(tmp_path):
    write(tmp_path / "ChartQA_TEST.tsv", charts())
    one, two, three = asked(tmp_path)
    assert [one.name, two.name, three.name] == ["chartqa-7", "chartqa-8", "chartqa-9"]
    assert one.question == "how\tmany ?\nAnswer the question using a single word or phrase."
    assert [s.expected for s in (one, two, three)] == ["3", '["b", "c"]', "[Yes, No]"]
    assert [s.reference.judge for s in (one, two, three)] == ["relaxed"] * 3
    assert two.reference.score("C") == 1 and one.reference.score("3.1") == 1 and one.reference.score("3.2") == 0
    for sample, pixels in ((one, PIXELS), (two, PIXELS), (three, OTHER)):
        np.testing.assert_array_equal(sample.images[0].read(), pixels)


def test_some_rows(tmp_path):
    write(tmp_path / "ChartQA_TEST.tsv", charts(category=["x", "y", "z"]))
    assert [s.name for s in asked(tmp_path, n=2)] == ["chartqa-7", "chartqa-8"]
    assert [s.name for s in asked(tmp_path, split="human", n=2)] == ["chartqa-7", "chartqa-9"]
    assert [(s.name, s.task) for s in asked(tmp_path, category=["y", "z"])] == [("chartqa-8", "y"), ("chartqa-9", "z")]
    with pytest.raises(ValueError, match=r"ChartQA_TEST.tsv holds no rows of split 'val' and category 'x'"):
        asked(tmp_path, split="val", category="x")
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        asked(tmp_path, n=0)


def test_a_picture_may_lie_in_a_later_row(tmp_path):
    write(tmp_path / "ChartQA_TEST.tsv", charts(image=["9", "9", PNG_2]))
    for sample in asked(tmp_path, n=1) + asked(tmp_path):
        np.testing.assert_array_equal(sample.images[0].read(), OTHER)


def test_several_pictures_of_one_question(tmp_path):
    write(tmp_path / "ChartQA_TEST.tsv", charts(image=[str([PNG_2, PNG]), "7", f"data:image/png;base64,{PNG}"]))
    one, two, three = asked(tmp_path)
    for sample, pixels in ((one, [OTHER, PIXELS]), (two, [OTHER, PIXELS]), (three, [PIXELS])):
        for found, wanted in zip(sample.images, pixels, strict=True):
            np.testing.assert_array_equal(found.read(), wanted)


def test_pictures_in_files(tmp_path):
    (tmp_path / "images").mkdir()
    for name, pixels in (("a.png", PIXELS), ("b.png", OTHER)):
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    rows = charts(image_path=["images/a.png", "['images/a.png', 'images/b.png']", "images/b.png"])
    del rows["image"]
    write(tmp_path / "ChartQA_TEST_local.tsv", rows)
    paths = [
        [str(tmp_path / "images" / name) for name in names] for names in (["a.png"], ["a.png", "b.png"], ["b.png"])
    ]
    assert [list(s.images) for s in asked(tmp_path, "ChartQA_TEST_local.tsv")] == paths
    write(tmp_path / "ChartQA_TEST_local.tsv", {**rows, "image_path": ["images/a.png", "no.png", "images/b.png"]})
    with pytest.raises(ValueError, match=r"row 2, column 'image_path': no picture at .*no\.png"):
        asked(tmp_path, "ChartQA_TEST_local.tsv")


def choices(**changes):
    rows = {"index": [1, 2], "image": [PNG, PNG_2], "question": ["which ?", "how many ?"], "hint": ["look", None]}
    rows |= {"A": ["red", "1"], "B": ["None", "2"], "C": [None, "3"], "answer": ["B", "C"]}
    return rows | changes


def test_options_and_hint_are_asked(tmp_path):
    write(tmp_path / "MMStar.tsv", choices())
    one, two = asked(tmp_path, "MMStar.tsv")
    tail = "Please select the correct answer from the options above."
    assert one.question == f"Hint: look\nQuestion: which ?\nOptions:\nA. red\nB. None\n{tail}"
    assert two.question == f"Question: how many ?\nOptions:\nA. 1\nB. 2\nC. 3\n{tail}"
    assert one.reference.options == {"A": "red", "B": "None"} and one.reference.score("(B)") == 1
    assert [s.reference.judge for s in (one, two)] == ["choice", "choice"]


def test_a_row_without_options_is_judged_by_its_text(tmp_path):
    write(tmp_path / "RealWorldQA.tsv", choices(A=["red", None], B=["blue", None], C=[None, None], answer=["A", "No"]))
    one, two = asked(tmp_path, "RealWorldQA.tsv")
    assert (one.reference.judge, two.reference.judge) == ("choice", "exact")
    assert two.question == "Question: how many ?" and two.reference.score(" no ") == 1
    with pytest.raises(ValueError, match="row 2, column 'answer': the right option is 'No', but the options are none"):
        asked(tmp_path, "RealWorldQA.tsv", judge="choice")


def test_what_a_language_model_judges_needs_no_answer(tmp_path):
    rows = charts(grading_query=["rate {PREDICTION}", "", "x"])
    del rows["answer"]
    write(tmp_path / "CharXiv_reasoning_val.tsv", rows)
    found = asked(tmp_path, "CharXiv_reasoning_val.tsv")
    assert [s.question for s in found] == charts()["question"]
    assert [(s.expected, s.reference.judge, s.grading) for s in found][:2] == [
        (None, "language model", "rate {PREDICTION}"),
        (None, "language model", None),
    ]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ChartQA_TEST", "chartqa"),
        ("InfoVQA_VAL", "infovqa"),
        ("CharXiv_reasoning_val", "charxiv_reasoning"),
        ("CharXiv_descriptive_val", "charxiv_descriptive"),
        ("RealWorldQA", "realworldqa"),
        ("MMStar", "mmstar"),
    ],
)
def test_a_file_name_tells_its_benchmark(file, name):
    given = {"out": "x", "samples": {"benchmark": {"path": f"{file}.tsv"}}}
    assert SweepConfig.from_plain(given, folder=Path()).samples.benchmark.name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "CharXiv_val.tsv"}, "'CharXiv_val' names none of chartqa, .*say which with name:"),
        ({"path": "ChartQAPro.tsv"}, "'ChartQAPro' names none of"),
        ({"path": "MMStar_ChartQA.tsv"}, "'MMStar_ChartQA' could be chartqa or mmstar"),
        ({"path": "x.tsv", "name": "MMBench"}, "nothing is stated of a benchmark 'MMBench'; known: chartqa"),
        ({"path": "MMStar.tsv", "prompt": "{questio}"}, r"prompt takes one of question, short answer, options, or"),
        ({"path": "MMStar.tsv", "prompt": "{question"}, "is no template"),
        ({"path": "MMStar.tsv", "judge": "gpt"}, "no judge 'gpt'; known: words, exact"),
        ({"path": "MMStar.tsv", "split": 3}, "split: expected text or a list of text or nothing, got 3"),
    ],
)
def test_mistakes_in_the_file_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig.from_plain({"out": "x", "samples": {"benchmark": options}}, folder=Path())


def test_prompt_and_judge_of_ones_own(tmp_path):
    write(tmp_path / "own.tsv", choices())
    own = {"prompt": "{hint}\n{question} {options} {{x}}", "judge": "exact"}
    one, two = asked(tmp_path, "own.tsv", **own)
    assert one.question == "look\nwhich ? A. red\nB. None {x}" and two.question.startswith("how many ? A. 1")
    assert one.name == "own-1" and one.reference.judge == "exact"
    assert asked(tmp_path, "own.tsv", name="mmstar", prompt="question")[0].question == "which ?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": [7, 8, 7]}, r"ChartQA_TEST.tsv, row 3, column 'index': '7' stands in row 1 already"),
        ({"index": [7, None, 9]}, "row 2, column 'index': empty; expected a name of its own"),
        ({"question": ["a ?", None, "c ?"]}, "row 2, column 'question': empty; expected what to ask"),
        ({"answer": ["1", "2", None]}, "row 3, column 'answer': empty; expected what is right"),
        ({"image": [PNG, None, PNG]}, "row 2, column 'image': empty; expected a picture in base64"),
        (
            {"image": [PNG, "5", PNG]},
            "row 2, column 'image': '5' is neither a picture in base64 nor the index of a row",
        ),
        ({"image": [PNG, "9", "7"]}, "row 2, column 'image': the row of index '9' has no picture of its own"),
        ({"image": [PNG, "8", PNG]}, "row 2, column 'image': the row of index '8' has no picture of its own"),
        ({"image": [PNG, PNG[:-9] + "*" + PNG[-8:], PNG]}, "row 2, column 'image': 'iVBOR.*is no picture in base64"),
        ({"image": [PNG, PNG[:-1], PNG]}, "row 2, column 'image': .*is no picture in base64"),
        ({"image": [PNG, base64.b64encode(b"x" * 99).decode(), PNG]}, "row 2, column 'image': .*not a readable image"),
        ({"image": [PNG, str([PNG, "x"]), PNG]}, "row 2, column 'image': .*is no picture in base64"),
        ({"image": [PNG, "é" * 90, PNG]}, "row 2, column 'image': .*is no picture in base64"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, message):
    write(tmp_path / "ChartQA_TEST.tsv", charts(**changes))
    with pytest.raises(ValueError, match=message):
        asked(tmp_path)


def test_a_picture_too_large_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    write(tmp_path / "ChartQA_TEST.tsv", charts())
    with pytest.raises(ValueError, match=r"row 1, column 'image': picture 0 has 64 x 48 pixels, above the limit"):
        asked(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"index\tquestion\timage\tanswer\n", "holds no rows"),
        (b"index\tquestion\tanswer\n1\ta\tb\n", "no column 'image' .* or 'image_path'; it has 'index'"),
        (b"index\timage\tanswer\n1\ta\tb\n", "no column 'question'; it has"),
        (b"index\tquestion\timage\n1\ta\tb\n", "no column 'answer'; it has"),
        (b"index\tindex\n", "the column 'index' stands twice"),
        (b"index\tquestion\timage\tanswer\n1\ta\tb\n", "row 1: 3 cells; expected 4"),
        (b'index\tquestion\timage\tanswer\n1\t"a\tb\tc\n', "row 1: a quote is never closed"),
        (b'index\tquestion\timage\tanswer\n1\t"a"b\tc\td\n', "row 1: text follows a closing quote"),
        (b"index\tquestion\timage\tanswer\n1\t\xff\tb\tc\n", "row 1, column 'question': not in UTF-8"),
        (b"\xff\n", "header: not in UTF-8"),
    ],
)
def test_a_bad_table_is_named(tmp_path, content, message):
    (tmp_path / "ChartQA_TEST.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=f"ChartQA_TEST.tsv.*{message}"):
        asked(tmp_path)
    (tmp_path / "ChartQA_TEST.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="no table of a benchmark at"):
        asked(tmp_path)
    write(tmp_path / "MMStar.xlsx", charts())
    with pytest.raises(ValueError, match=r"MMStar.xlsx is no \.tsv"):
        asked(tmp_path, "MMStar.xlsx")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_are_those_of_the_csv_module(tmp_path, end):
    rng = np.random.default_rng(3)
    wanted = [["".join(rng.choice(list('a"\t\n东 '), rng.integers(0, 9))) + "x" for _ in range(3)] for _ in range(200)]
    path = tmp_path / "t.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator=end).writerows(wanted)
    found = list(tsv.read_rows(path))
    assert [[cell.decode() for cell in row.cells] for row in found] == wanted
    assert all(tsv.read_row(path, row.start, row.size) == row.cells for row in found)
    assert sum(row.size for row in found) == path.stat().st_size


def test_a_quote_inside_a_cell_is_text(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b'12" screen\ta"b"\n\n""\t"x"')
    assert [row.cells for row in tsv.read_rows(tmp_path / "t.tsv")] == [[b'12" screen', b'a"b"'], [b"", b"x"]]


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "ChartQA_TEST.tsv", charts())
    path.write_bytes(path.read_bytes() + b"broken\n" * 5)
    config = SweepConfig.from_plain(
        {"out": "o", "samples": {"benchmark": {"path": path.name, "n": 2}}}, folder=tmp_path
    )
    taken, read = [], tsv.read_rows
    monkeypatch.setattr(
        "visionpulse_analysis.experiments.sweeps.benchmarks.read_rows",
        lambda path: (taken.append(row) or row for row in read(path)),
    )
    assert len(read_benchmark(path, config.samples.benchmark)) == 2
    assert len(taken) == 3, "the header and two rows"


def test_a_table_that_has_changed_gives_no_picture(tmp_path):
    path = write(tmp_path / "ChartQA_TEST.tsv", charts())
    [one, *_] = asked(tmp_path)
    write(path, charts(image=[PNG_2, "7", PNG]))
    with pytest.raises(ValueError, match=r"picture 0 of the row at byte .* the table has changed; run the sweep again"):
        one.images[0].read()
    path.write_text("short")
    with pytest.raises(ValueError, match="is not there any more: the table has changed"):
        one.images[0].read()


def test_a_changed_picture_or_prompt_is_another_job(tmp_path):
    def ids(**options):
        samples = {"benchmark": {"path": "ChartQA_TEST.tsv", **options}}
        return [job.id for job in plan(SweepConfig.from_plain({"out": "o", "samples": samples}, folder=tmp_path))]

    write(tmp_path / "ChartQA_TEST.tsv", charts())
    before = ids()
    assert ids() == before and ids(judge="exact") == before, "how an answer is judged does not change its trace"
    assert not set(ids(prompt="question")) & set(before)
    write(tmp_path / "ChartQA_TEST.tsv", charts(image=[PNG, "7", PNG]))
    assert [a == b for a, b in zip(ids(), before, strict=True)] == [True, True, False]


def test_a_sweep_over_a_benchmark(scenes_folder, tmp_path, sweep, one_thread):
    write(tmp_path / "ChartQA_TEST.tsv", charts(split=["human"] * 3, category=["x", "y", "z"]))
    given = {
        "out": "out",
        "samples": {"benchmark": {"path": "ChartQA_TEST.tsv", "n": 2, "prompt": "question"}},
        "models": [{"name": str(scenes_folder), "label": "tiny"}],
        "decode": {"max_new_tokens": 4, "layers": [2]},
    }
    assert sweep(given).finished == 2
    table = Sweep(tmp_path / "out").finished
    assert table["judge"].tolist() == ["relaxed"] * 2 and table["score"].tolist() == [0.0, 0.0]
    assert table["right"].tolist() == [False, False] and table["task"].tolist() == ["x", "y"]
    assert table["expected"].tolist() == ["3", '["b", "c"]']
