"""The committed notebooks are as a clean run left them, and they run."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from PIL import Image

from ferlab import walkthrough
from ferlab.errors import FerlabError

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
NO_NOTEBOOKS = pytest.param(None, marks=pytest.mark.skip(reason="there are no notebooks yet"))
every_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS or [NO_NOTEBOOKS], ids=lambda path: path.stem if path else "none")


@every_notebook
def test_notebook_is_committed_as_a_clean_run_left_it(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.source.strip() for cell in notebook.cells), "empty cells"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "warnings or bars"
    assert "widgets" not in notebook.metadata
    assert notebook == walkthrough.tidy(copy.deepcopy(notebook))
    assert path.stat().st_size <= 500_000


@every_notebook
def test_notebook_names_no_place_on_anyones_machine(path: Path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(/(home|root|Users|tmp|work)/|site-packages|[A-Z]:\\\\)", text)


@every_notebook
def test_page_shows_its_formulas_without_a_network(path: Path, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}  # as executed
    walkthrough.write_page(notebook, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", page)
    formulas = re.findall(r"<math .*?</math>", page)
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(formulas) == len(re.findall(r"\$\$.+?\$\$|\$.+?\$", text, re.S)) > 0
    assert not [formula for formula in formulas if "\\" in formula], "a command that is not known"


def test_a_formula_with_a_mistake_is_shown_as_it_is_written(tmp_path: Path):
    cell = nbformat.v4.new_markdown_cell(r"Here $a^b^c$ and there $\frac{1}{2}$.")
    walkthrough.write_page(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<code>a^b^c</code>" in page and "<mfrac>" in page


def test_page_shows_a_picture_that_is_kept_in_a_cell(tmp_path: Path):
    cell = nbformat.v4.new_markdown_cell("![a dot](attachment:dot.png)")
    cell.attachments = {"dot.png": {"image/png": "iVBORw0KGgo="}}
    walkthrough.write_page(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.html")
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks in a folder of their own, so that what they write stays out of the repository."""
    folder = tmp_path_factory.mktemp("repository") / "notebooks"
    shutil.copytree(REPOSITORY / "notebooks", folder)
    return folder


@every_notebook
def test_notebook_runs(path: Path, copies: Path):
    """In order: a later notebook may need what an earlier one wrote."""
    _, trouble = walkthrough.execute(copies / path.name, "smoke")
    assert not trouble, trouble


# ------------------------------------------------------------------------------------------------------ the executor

def write_notebook(folder: Path, name: str, *sources: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def test_walk_stops_at_the_first_cell_that_fails_and_shows_it(tmp_path: Path):
    folder = tmp_path / "notebooks"
    write_notebook(folder, "01_good", "import os\nprint(os.environ['FERLAB_PROFILE'], os.getcwd())", "6 * 7")
    write_notebook(folder, "02_bad", "faces = 3", "faces / 0  # here")
    write_notebook(folder, "03_never", "print('never')")
    write_notebook(folder, "notes", "1 / 0")  # not numbered, so not of the walk
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said: list[str] = []
    assert not walkthrough.execute_all("smoke", say=said.append, folder=folder)
    text = "\n".join(said)
    assert "01_good" in text and "02_bad failed" in text and "03_never" not in text
    assert "faces / 0  # here" in text and "ZeroDivisionError" in text
    output = tmp_path / "walkthrough"
    assert {path.name for path in output.iterdir()} == {"01_good.ipynb", "01_good.html", "02_bad.ipynb", "02_bad.html"}
    assert f"smoke {folder}" in (output / "01_good.html").read_text(encoding="utf-8")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_in_place_leaves_nothing_that_changes_from_run_to_run(tmp_path: Path):
    slider = "import ipywidgets\nipywidgets.IntSlider()"
    path = write_notebook(tmp_path / "notebooks", "01_slider", slider, "print('hello')")
    for _ in range(2):
        assert walkthrough.execute_all("smoke", in_place=True, say=lambda _: None, folder=path.parent)
        notebook = nbformat.read(path, as_version=4)
        assert "widgets" not in notebook.metadata
        assert [cell.execution_count for cell in notebook.cells] == [1, 2]
        assert notebook.cells[1].outputs[0].text == "hello\n"
        assert all(not cell.metadata for cell in notebook.cells)


def test_the_pictures_are_left_as_files(tmp_path: Path):
    picture = "from PIL import Image\nImage.new('RGB', (8, 8), 'red')"
    path = write_notebook(tmp_path / "notebooks", "01_red", "print('nothing to see')", picture)
    assert walkthrough.execute_all("smoke", say=lambda _: None, folder=path.parent)
    (figure,) = (tmp_path / "walkthrough" / "figures").iterdir()
    assert figure.name == "01_red_1_0.png" and Image.open(figure).getpixel((4, 4)) == (255, 0, 0)


def test_only_chooses_by_number(tmp_path: Path):
    paths = [write_notebook(tmp_path, name, "1") for name in ("01_a", "02_b", "10_c")]
    assert walkthrough.find_notebooks(tmp_path) == paths
    assert walkthrough.find_notebooks(tmp_path, ["10", "01"]) == [paths[0], paths[2]]
    with pytest.raises(FerlabError, match="03"):
        walkthrough.find_notebooks(tmp_path, ["03"])
    with pytest.raises(FerlabError, match="no notebooks"):
        walkthrough.find_notebooks(tmp_path / "empty")
