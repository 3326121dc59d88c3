"""A wheel holds ``data`` and ``notebooks``, which in the sources lie beside the package, inside it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDataAndNotebooks(build_py):
    def run(self) -> None:
        package = Path(self.build_lib, "visionpulse_analysis")
        if not self.editable_mode:
            shutil.rmtree(package, ignore_errors=True)  # else modules that an earlier build left would go along
        super().run()
        if not self.editable_mode:
            for folder in ("data", "notebooks"):
                left_out = shutil.ignore_patterns(".*", "figures", "executed")
                shutil.copytree(folder, package / "bundled" / folder, ignore=left_out)


setup(cmdclass={"build_py": BuildWithDataAndNotebooks})
