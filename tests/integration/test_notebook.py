"""Training in the kernel of a notebook, as Jupyter drives it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import KernelManager

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

SHORT = '"experiment=quickstart", "tracking=none", "optimization.warmup_epochs=0", "morphogenetic=off"'
TIMEOUT_S = 250
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "esper.ipynb"


@dataclass
class Output:
    """What a cell showed."""

    text: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, str] = field(default_factory=dict)
    error: str = ""


class Notebook:
    """A kernel in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=os.environ | {"PYTHONPATH": str(ROOT)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=TIMEOUT_S)

    def cell(self, code: str, *, stop_when: Callable[[Output], bool] = lambda _: False) -> Output:
        """Run a cell, and press its stop button once."""
        output, is_stopped = Output(), False
        request = self.client.execute(code)
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    output.text += content["text"]
                case "display_data":
                    output.displays.append(content)
                case "update_display_data":
                    output.updates.append(content)
                case "execute_result":
                    output.result = content["data"]
                case "error":
                    output.error = f"{content['ename']}: {content['evalue']}"
                case "status" if content["execution_state"] == "idle":
                    return output
            if not is_stopped and stop_when(output):
                is_stopped = True
                self.manager.interrupt_kernel()

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("notebook"))
    yield notebook
    notebook.close()


def first_part(text: str) -> str:
    """The text before the result, without the lines that only slow epochs get where nothing is live."""
    return "\n".join(line for line in text.split("\n\n")[0].splitlines() if not line.startswith("step "))


def epochs(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^epoch +(\d+) ", text, flags=re.MULTILINE)]


def test_a_cell_shows_each_line_once_and_a_figure_that_is_updated_in_place(notebook: Notebook):
    output = notebook.cell(f"from esper import fit\noutcome = fit({SHORT}, 'optimization.max_epochs=3')\noutcome")
    assert output.error == ""
    assert epochs(output.text) == [1, 2, 3]
    assert output.text.count("finished: nothing grew.") == 1
    assert "\x1b" not in output.text
    (display,) = output.displays
    assert {update["transient"]["display_id"] for update in output.updates} == {display["transient"]["display_id"]}
    figure = output.updates[-1]["data"]["text/html"]
    assert "finished · epoch 3/3 · step 39/39" in figure
    assert "<polyline" in figure
    assert "finished" in output.result["text/html"]
    log = (next(notebook.folder.glob("outputs/quickstart/*")) / "train.log").read_text()
    assert first_part(log) == first_part(output.text)


def test_the_outcome_has_the_network_and_a_history_for_pandas(notebook: Notebook):
    code = """
import pandas
table = pandas.DataFrame(outcome.history)
print(list(table.columns), len(table), table.val_loss.iloc[-1] == outcome.result["val_loss"])
images = __import__("numpy").zeros((2, 8, 8, 1), dtype="uint8")
print(len(outcome.network.predict(images)))
"""
    output = notebook.cell(code)
    assert output.error == ""
    assert "['epoch', 'step', 'train_loss', 'val_loss', 'train_accuracy', 'val_accuracy'" in output.text
    assert output.text.splitlines()[0].endswith("3 True")


def test_the_stop_button_saves_and_the_cell_again_resumes(notebook: Notebook):
    code = f"outcome = fit({SHORT}, 'optimization.max_epochs=5000'); print('left with', outcome.exit_code)"
    first = notebook.cell(code, stop_when=lambda output: len(epochs(output.text)) >= 2)
    assert first.error == ""
    assert "interrupted (Ctrl-C) at step" in first.text
    assert "left with 130" in first.text
    again = notebook.cell(code, stop_when=lambda output: len(epochs(output.text)) >= 1)
    assert re.search(r"^resumed +at step", again.text, flags=re.MULTILINE)
    assert epochs(again.text)[0] == epochs(first.text)[-1] + 1
    assert notebook.cell("print(1 + 1)").text == "2\n"
    code = "print(outcome.history['epoch'] == list(range(1, len(outcome.history['epoch']) + 1)))"
    assert notebook.cell(code).text == "True\n"


def test_two_fits_in_threads_train_one_after_the_other(notebook: Notebook):
    code = f"""
from concurrent.futures import ThreadPoolExecutor
def train(seed):
    return fit({SHORT}, "optimization.max_epochs=1", f"rng_seed={{seed}}").exit_code
with ThreadPoolExecutor() as threads:
    print(list(threads.map(train, (11, 12))))
"""
    output = notebook.cell(code)
    assert output.error == ""
    assert "[0, 0]" in output.text
    assert epochs(output.text) == [1, 1]
    found = [
        json.loads(file.read_text())["status"] for file in notebook.folder.glob("outputs/*/*rng_seed_1*/status.json")
    ]
    assert found == ["finished", "finished"]


def test_the_example_of_the_docs_runs_as_it_is(notebook: Notebook):
    cells = [cell for cell in nbformat.read(EXAMPLE, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    outputs = [notebook.cell(cell.source) for cell in cells]
    assert [output.error for output in outputs] == [""] * len(cells)
    assert epochs(outputs[0].text) == list(range(1, 9))
    assert "<svg" in outputs[1].result["text/html"]
    assert "val_accuracy" in outputs[2].result["text/html"]
    assert outputs[3].result["text/plain"].count("'") == 2 * 8  # eight labels
