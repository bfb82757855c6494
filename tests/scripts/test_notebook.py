"""The notebook runs from a clone, as Jupyter would run it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_steps.ipynb"


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own processes
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert f"{2 * 192 * 288} Gaussians" in said and (tmp_path / "office.ply").is_file()
    psnr = float(said.split("PSNR ")[1].split()[0])
    assert psnr > 15
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
