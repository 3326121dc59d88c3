"""One notebook through papermill: the running Python's kernel, errors that name the cell, a signed copy."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat.sign import NotebookNotary
from papermill.exceptions import PapermillExecutionError
from traitlets import default

from visionpulse_analysis._util.progress import SWITCH
from visionpulse_analysis.cli.notebooks import NotebookError
from visionpulse_analysis.cli.notebooks.parameters import parameters_cell


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[int], object] = lambda done: None,
) -> None:
    """Run ``source`` with ``parameters`` and keep the executed copy as ``target``.

    ``environment`` : variables that the kernel has beside those of this process. ``tell`` is told after each cell how
    many are done, markdown included. Raises NotebookError: a cell failed or the kernel died. The copy up to there is
    ``target`` with the ending ``.failed.ipynb``.
    """
    # The good name appears only once the last cell is done, however the run ends.
    partial = target.with_suffix(".failed.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _only_our_own_name_check(), _with_environment({SWITCH: "0", **(environment or {})}):
            papermill.execute_notebook(
                _as_template(source),
                _as_template(partial),
                parameters=dict(parameters),
                cwd=cwd,
                kernel_name="python3",
                language="python",
                kernel_manager_class=_RunningPython,
                progress_bar=False,
                extra_arguments=["--IPKernelApp.log_level=50"],  # what an interrupted kernel logs is nobody's concern
                on_cell_complete=lambda cell_index, **_: tell(cell_index + 1),
                start_timeout=300,  # a busy machine starts a kernel slowly
            )
    except PapermillExecutionError as error:
        first_line = error.source.strip().partition("\n")[0]
        raise NotebookError(
            f"{source.name} failed in cell {_cell_number(source, bool(parameters), error)}, `{first_line}`: "
            f"{error.ename}: {error.evalue}\nThe cells up to there, with the traceback: {partial}"
        ) from error
    except DeadKernelError as error:
        raise NotebookError(
            f"the kernel of {source.name} died, most often because memory ran out: try smaller "
            f"parameters.\nThe cells up to there: {partial}"
        ) from error
    partial.replace(target)
    trust(target)


def trust(path: Path) -> None:
    """Sign an executed notebook as ``jupyter trust`` does, so that JupyterLab shows its widgets without a click.

    Where this user's Jupyter folder cannot be written there is no signature, and the reader is asked as ever.

    Parameters
    ----------
    path : Path
    """
    with contextlib.suppress(OSError):
        notary = NotebookNotary()
        notary.sign(nbformat.read(path, as_version=4))
        notary.store.close()


class _RunningPython(AsyncKernelManager):
    """Starts the kernel with this very Python, whatever ``python3`` kernels are installed elsewhere."""

    @default("transport_encryption")
    def _transport_encryption_default(self) -> str:
        return "auto"  # where kernel and pyzmq can; ipykernel warns of plain text otherwise

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self, kernel_dirs=[])


@contextlib.contextmanager
def _only_our_own_name_check() -> Iterator[None]:
    """Silence papermill's warning of unknown names: ours are checked, and it overlooks annotated ones."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _with_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the kernels that start meanwhile."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _as_template(path: Path) -> str:
    """Escape a path for papermill, which fills parameters into ``{name}``."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _cell_number(source: Path, given: bool, error: PapermillExecutionError) -> int:
    """Number (from 1, markdown cells included) of the failed cell in the notebook as committed."""
    notebook = nbformat.read(source, as_version=4)
    tagged = notebook.cells.index(parameters_cell(notebook))
    injected_before = given and error.cell_index > tagged
    return error.cell_index + 1 - injected_before
