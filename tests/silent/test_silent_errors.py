"""Each silent error, inserted into a copy of the source, makes its test fail."""

import ast
import multiprocessing
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import settings

from silent.errors import DOCS, ROOT, Fault, document, faults

# Loaded once, in a process from which each run of a test is split off: to load them takes longer than most of
# the tests.
PRELOADED = [
    "torch",
    "peft",
    "hypothesis",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
]
SOURCE = ROOT / "src" / "loratune"
names = [f"{fault.test.partition('::')[2]} {number}" for number, fault in enumerate(faults())]


@pytest.mark.parametrize("fault", faults(), ids=names)
def test_each_fault_applies_to_the_source(fault):
    _, place = fault.find(SOURCE)
    assert fault.new != fault.old
    ast.parse(fault.changed(place))
    file, _, test = fault.test.partition("::")
    functions = {
        node.name
        for node in ast.parse((ROOT / "tests" / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert test.partition("[")[0] in functions


def test_document_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == document(), "run python tests/silent/errors.py"


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of our source; removed afterwards, for there are many."""
    shutil.copytree(SOURCE.parent, tmp_path / "src")
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_all_named_tests_pass_without_a_fault(processes, copied):
    assert run_tests(processes, sorted({fault.test for fault in faults()}), copied) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults(), ids=names)
def test_fault_makes_its_test_fail(fault, processes, copied):
    insert_fault(fault, copied / "src" / "loratune")
    code, failures = run_tests(processes, [fault.test], copied)
    assert code == 1 and failures
    # Not by a crash: the program runs on, and its result is wrong.
    assert all(
        message.startswith(("AssertionError", "assert ", "Failed: DID NOT RAISE")) for message in failures
    )


def insert_fault(fault: Fault, source: Path) -> None:
    path, place = fault.find(source)
    path.write_text(fault.changed(place), encoding="utf-8")


def run_tests(processes, tests: list[str], folder: Path) -> tuple[int, list[str]]:
    """The exit code of pytest on the source in `folder`, and the first line of what each failed test says."""
    process = processes.Process(target=run, args=(tests, folder))
    process.start()
    process.join()
    failures = ElementTree.parse(folder / "results.xml").iter("failure")
    return process.exitcode, [failure.get("message").splitlines()[0] for failure in failures]


def run(tests: list[str], folder: Path) -> None:
    """In a process of its own: pytest with the source in `folder` before all others."""
    assert "loratune" not in sys.modules
    os.chdir(ROOT)
    sys.path.insert(0, str(folder / "src"))
    os.environ["PYTHONPATH"] = str(folder / "src")
    # Several distinct failures would be reported as one group, which hides whether they are assertions.
    settings.register_profile("one failure", settings.default, report_multiple_bugs=False)
    settings.load_profile("one failure")
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"--junitxml={folder / 'results.xml'}",
        f"--basetemp={folder / 'temp'}",
    ]
    sys.exit(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
