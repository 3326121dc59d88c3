"""`visionpulse decode` imports what its model needs, and nothing for a store or a figure that nobody asked for."""

import subprocess
import sys
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "data" / "example.png"
UNUSED = ("zarr", "numcodecs", "matplotlib", "seaborn", "IPython", "distributed", "papermill", "ipywidgets")
LOOK = """
import sys
from typer.testing import CliRunner
from visionpulse_analysis.cli import app
done = CliRunner().invoke(app, sys.argv[2:])
print(done.exit_code, sorted(set(sys.argv[1].split()) & set(sys.modules)))
"""


def test_decode_imports_nothing_that_it_does_not_use(scenes_folder, tmp_path):
    words = ["decode", PICTURE, "where ?", "--model", scenes_folder, "--max-new-tokens", "2"]
    told = [sys.executable, "-c", LOOK, " ".join(UNUSED), *map(str, words)]
    done = subprocess.run(told, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []"
