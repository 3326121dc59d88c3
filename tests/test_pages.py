"""The pages for readers: their code runs, their links lead somewhere, what the notebooks found is what figures say."""

import ast
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import ProcessorMixin, Qwen3VLProcessor
from typer.main import get_command
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.studies.shared import readme_table
from visionpulse_analysis.studies.shared.readme_table import BEGIN, END, between

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))  # how the site is built
import build  # noqa: E402  # pyright: ignore[reportMissingImports]

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
# What each page's blocks of Python, then its commands, have made; prompts.md and the pruner have tests of their own.
RUN = {
    "README.md": lambda made: made["w"].traces[0].answer == "r5 c5",
    "docs/python.md": lambda made: (
        made["dense"].answer == "r5 c5"
        and made["sampled"].meta["sample"]["top_p"] == 0.95
        and made["store"].ids == ["first"]
        and abs(made["blind"].logprobs - made["head"].logprobs).max() > 0
    ),
    "docs/own-model.md": lambda made: (
        made["trace"].answer == "r5 c5"
        and made["w"].traces[0].kept.mean() < 0.2
        and made["dense"].answer == made["trace"].answer
    ),
    "docs/read-a-trace.md": lambda made: (
        made["same"].data_hash == made["trace"].data_hash
        and (made["picture"].ravel() == made["trace"].attention.sel(layer=4)[12]).all()
        and {"tokens", "layers", "meta"} <= set(made["about"])
    ),
    "docs/from-the-authors.md": lambda made: made["five"].budget_max == 0.05,
    "docs/benchmark.md": lambda made: list(vpa.Sweep("runs/own").table["right"]) == [True] * 4,
    "docs/commands.md": lambda made: all(Path(name).exists() for name in ("page.html", "steps.csv", "boxes.json")),
}
COMMANDS = re.compile(r"data/example\.png|runs/mine|runs/own|pruners$|^sweep sweep.yaml$")


@pytest.fixture
def beside_the_data(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_ones_own() -> dict[str, Any]:
    """The objects of transformers that a reader begins with: a model, its processor, a picture and a prompt."""
    vlm, image = vpa.load("scenes"), Image.open("data/example.png")
    with pytest.MonkeyPatch.context() as patch:  # its video half needs torchvision and is left out
        patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *given: None)
        processor = Qwen3VLProcessor(
            vlm.image_processor, vlm.tokenizer, None, chat_template=vlm.tokenizer.chat_template
        )
    content = [{"type": "image"}, {"type": "text", "text": "where is the red triangle ?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return {"model": vlm.model, "processor": processor, "image": image, "text": text}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    """What `visionpulse` is asked for in the consoles of a page, where nothing else is needed."""
    lines = [line[len("$ visionpulse ") :].partition(" #")[0].strip() for line in page.read_text().splitlines()
             if line.startswith("$ visionpulse ")]  # fmt: skip
    needs = ("figures", "lmms") if Path("sweep.yaml").exists() else ("figures", "lmms", "sweep")
    return [line for line in lines if re.search(COMMANDS, line) and not line.startswith(needs)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_runs_as_it_stands(name, beside_the_data):
    made = of_ones_own() if name in ("README.md", "docs/own-model.md") else {}
    for block in blocks(ROOT / name, "python"):
        exec(block, made)
    for line in commands(ROOT / name):
        done = CliRunner().invoke(app, [*shlex.split(line), *(["--workers", "0"] if line.startswith("sweep") else [])])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert RUN[name](made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists_with_its_options(page):
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^\$ (visionpulse .*)$", text, re.M) + re.findall(r"`(visionpulse [^`]+)`", text):
        words, command = (
            re.sub(r"\$\(.*\)", "", line).partition(" -- ")[0].partition(" #")[0].split()[1:],
            get_command(app),
        )
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        unknown = hasattr(command, "commands") and words and words[0] not in ("COMMAND", "...", "--traceback")
        assert not unknown, f"{line}: no such command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            assert not re.match(r"--?[a-z]", word) or word in known, f"{line}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_that_no_test_runs_is_python(page):
    for block in blocks(page, "py") + blocks(page, "python"):
        ast.parse(textwrap.dedent(block))


def headings(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text):
        if link.startswith("http"):
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not heading or heading in headings(target), f"{page.name} links to {link}"


def test_readme_and_findings_are_those_of_the_figures():
    for page, text in readme_table.rewritten().items():
        assert page.read_text() == text, "run `python -m visionpulse_analysis.studies.shared.readme_table`"


def test_lost_marks_are_an_error():
    with pytest.raises(ValueError, match="lost its marks"):
        between("no marks", BEGIN, END, "table")
    assert between(f"a\n{BEGIN} x -->\nold\n{END}\nb", BEGIN, END, "new") == f"a\n{BEGIN} x -->\nnew\n{END}\nb"


# The site


def test_every_public_name_and_every_pruner_has_its_place_in_the_reference():
    pages = build.api()
    for name in set(vpa.__all__) - {"__version__"}:
        assert f"visionpulse_analysis.{name}\n" in pages[name] and f"   {name}\n" in pages["index"]
    for kind in vpa.list_pruners().values():
        assert f"{kind.__module__}.{kind.__name__}\n" in pages["methods"]


def test_every_page_and_every_notebook_is_in_the_table_of_contents(tmp_path):
    for page in (*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")):
        (tmp_path / page.parent.name).mkdir(exist_ok=True)
        (tmp_path / page.parent.name / page.name).touch()
    (tmp_path / "docs" / "of_tomorrow.md").touch()
    listed = [line for line in build.contents(tmp_path).split() if "/" in line]
    assert not {f"docs/{page.stem}" for page in (tmp_path / "docs").glob("*.md")} - set(listed)
    assert not {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")} - set(listed)
    assert len(listed) == len(set(listed))


def test_a_figure_of_the_gallery_is_told_by_the_text_above_its_drawing():
    told = dict(build.captions(ROOT / "notebooks/06_explorer.ipynb"))
    assert told["06_explorer"].startswith("**Keep it**\n\nOne file that opens from disk")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        told = dict(build.captions(notebook))
        assert notebook.stem in told or "figures.save(" not in notebook.read_text()
        assert all(text.strip() for text in told.values())


def test_a_copy_with_other_code_is_run_again(tmp_path):
    import nbformat

    source, copy = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    given = nbformat.v4.new_code_cell("n = 3", metadata={"tags": ["injected-parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# Why?"), nbformat.v4.new_code_cell("n = 2")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    assert not build.is_executed(copy, source)
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, given]), copy)
    assert build.is_executed(copy, source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cells[0], given]), copy)
    assert not build.is_executed(copy, source)
