"""The start of TensorFlow says what matters and nothing else."""

import pytest
from conftest import run_python


def test_tensorflow_starts_without_a_word_and_with_onednn():
    code = "import towers, tensorflow, os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    result = run_python("-c", code)
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_a_users_choice_of_onednn_is_kept():
    code = "import towers, os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert run_python("-c", code, TF_ENABLE_ONEDNN_OPTS="0").stdout == "0\n"


def test_threads_of_numpy_sleep_between_two_products():
    code = """
import towers, numpy, time
square = numpy.ones((600, 600))
square @ square
before = time.process_time()
time.sleep(0.1)
print(time.process_time() - before)
"""
    # Awake they take that time on every core but one.
    assert float(run_python("-c", code).stdout) < 0.05


def test_the_trainer_has_numpy_read_what_towers_sets():
    result = run_python("-X", "importtime", "train_multi_gpu.py", "--help")
    imported = [line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert imported.index("towers") < imported.index("numpy")


@pytest.mark.parametrize("end", ["", "raise ImportError('broken')"])
def test_other_words_of_the_start_are_shown(tmp_path, end):
    package = tmp_path / "tensorflow"
    package.mkdir()
    notes = r"I0000 port.cc:153] oneDNN custom operations are on. You may see\nE0000 no driver\n"
    (package / "__init__.py").write_text(f"import os\nos.write(2, b'{notes}')\n{end}\n")
    code = f"import sys, towers; sys.path.insert(0, {str(tmp_path)!r}); import tensorflow; print(tensorflow.__file__)"
    result = run_python("-c", code, check=False)
    assert "oneDNN" not in result.stderr
    assert "E0000 no driver\n" in result.stderr
    assert ("ImportError: broken" in result.stderr) == bool(end)
    assert result.stdout == ("" if end else f"{package}/__init__.py\n")


def test_closed_error_stream():
    result = run_python("-c", "import sys; sys.stderr = None; import towers, tensorflow; print('started')")
    assert result.stdout == "started\n"
