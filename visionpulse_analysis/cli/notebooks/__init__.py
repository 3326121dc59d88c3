"""Notebooks run with checked parameters: `run` plans and reports, `execution` has papermill execute one."""


class NotebookError(RuntimeError):
    """A cell of a notebook raised, or its kernel died; the message names the cell and the partial copy."""
