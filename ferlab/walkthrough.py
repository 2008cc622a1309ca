"""Runs the notebooks in order, each from a fresh kernel, and keeps what they show."""

from __future__ import annotations

import copy
import functools
import html
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ferlab.errors import FerlabError
from ferlab.runs import write_text, write_whole

CELL_SECONDS = 4 * 3600  # a training of the full profile fits; what hangs ends some day


def notebook_folder() -> Path:
    """The repository's folder of notebooks. Raises FerlabError where ferlab is installed without it."""
    for parent in (Path(__file__).parent.parent, Path.cwd()):
        if (parent / "notebooks").is_dir():
            return parent / "notebooks"
    raise FerlabError("There is no folder notebooks here: run this in a clone of ferlab's repository.")


def find_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order; of these, the ones that begin with one of ``only``, such as "01".

    Raises FerlabError for a beginning that fits none, or where there are none.
    """
    found = sorted(folder.glob("[0-9]*.ipynb"))
    if not found:
        raise FerlabError(f"There are no notebooks in {folder}.")
    for start in only:
        if not any(path.name.startswith(start) for path in found):
            raise FerlabError(f"No notebook begins with {start}: there are {', '.join(path.stem for path in found)}.")
    return [path for path in found if not only or path.name.startswith(tuple(only))]


def execute(path: Path, profile: str) -> tuple[NotebookNode, str]:
    """Run one notebook in its folder, from a fresh kernel, under a profile.

    Returns it with what it shows, and "" or, if a cell failed, that cell's source and traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False,
                            coalesce_streams=True, extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                            resources={"metadata": {"path": str(path.parent)}})
    trouble = ""
    try:
        client.execute(env=os.environ | {"FERLAB_PROFILE": profile})
    except Exception as error:
        if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient takes Ctrl+C for itself, and ends the kernel
            raise KeyboardInterrupt from error
        if isinstance(error, CellExecutionError):
            trouble = str(error)
        elif isinstance(error, CellTimeoutError):
            trouble = f"A cell took more than {CELL_SECONDS // 3600} hours. Choose a smaller profile."
        elif isinstance(error, DeadKernelError):
            trouble = ("The kernel died; it may have run out of memory. Close other programs or choose a smaller "
                       "profile.")
        else:
            raise
    return notebook, trouble


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave out what changes from run to run or machine to machine: widget state, timings, versions of the kernel."""
    notebook.metadata = NotebookNode({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


# nbconvert's page without the scripts that it would fetch
OFFLINE = "{% extends 'index.html.j2' %}" + "".join(
    "{% block html_head_js_" + script + " %}{% endblock %}" for script in ("requirejs", "mathjax", "mermaidjs"))

# formulas as large as the text beside them; one that is wider than the page is scrolled, as code is
STYLE = "<style>math { font-size: 1.2em; } math[display=block] { overflow-x: auto; padding: 0.3em 0; }</style>\n"


def write_page(notebook: NotebookNode, path: Path) -> None:
    """The notebook as an HTML page that needs nothing else: browsers draw its formulas, in MathML, without a network,
    and widgets, which would need a kernel, are left out."""
    from jinja2 import DictLoader, pass_context
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def mathml(body: str, display: Literal["block", "inline"]) -> str:
        try:
            return convert(body, display=display)
        except Exception:  # of a formula with a mistake in it, the source is shown
            return f"<code>{html.escape(body)}</code>"

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context: Any, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            return MarkdownWithMath(Renderer(escape=False, attachments=attachments)).render(source)

    page, _ = Exporter(extra_loaders=[DictLoader({"offline": OFFLINE})], template_file="offline").from_notebook_node(
        tidy(copy.deepcopy(notebook)), resources={"metadata": {"name": path.stem}})
    write_text(path, page.replace("</head>", STYLE + "</head>", 1))


def pictures(notebook: NotebookNode, name: str) -> dict[str, bytes]:
    """Every picture that it shows, as PNG, under the name of a file, NAME_CELL_OUTPUT.png."""
    from nbconvert.preprocessors import ExtractOutputPreprocessor

    extract = ExtractOutputPreprocessor(extract_output_types={"image/png"})
    _, found = extract.preprocess(copy.deepcopy(notebook), {"unique_key": name, "outputs": {}})
    return found["outputs"]


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """The notebook as .ipynb."""
    write_text(path, nbformat.writes(notebook) + "\n")


def execute_all(profile: str, only: Sequence[str] = (), output: Path | None = None, in_place: bool = False,
                say: Callable[..., Any] = print, folder: Path | None = None) -> bool:
    """Run the notebooks in order; True if all went well, False after the first that fails.

    output: where each is written as notebook and as page, and its pictures in figures/ there; by default walkthrough/
    beside the notebooks' folder.
    in_place: also update the notebooks themselves, those that went well.
    say: receives each line of progress, and the source and traceback of a cell that fails.
    """
    folder = notebook_folder() if folder is None else folder
    output = folder.parent / "walkthrough" if output is None else output
    chosen = find_notebooks(folder, only)
    say(f"Running {len(chosen)} notebook{'s' * (len(chosen) > 1)}, profile {profile} ...")
    for path in chosen:
        started = time.perf_counter()
        notebook, trouble = execute(path, profile)
        write_notebook(notebook, output / path.name)
        write_page(notebook, output / f"{path.stem}.html")
        for file, picture in pictures(notebook, path.stem).items():
            write_whole(output / "figures" / file, functools.partial(Path.write_bytes, data=picture))
        if trouble:
            say(f"  {path.stem} failed after {time.perf_counter() - started:.0f} s\n\n{trouble}\n")
            say(f"What it showed until then is in {output / path.stem}.html; it can be mended with make lab.")
            return False
        if in_place:
            write_notebook(tidy(notebook), path)
        say(f"  {path.stem}  {time.perf_counter() - started:.0f} s")
    say(f"\nOpen {output / chosen[0].stem}.html in a browser to read; make lab opens the notebooks to change and run.")
    return True
