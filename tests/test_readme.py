"""The commands that README, launchers and docstrings show are commands that work."""

import importlib.util
import re
import shlex
import subprocess

import pytest
from conftest import ROOT, run_python

SCRIPT = re.compile(r"(?:^|\s)(?:\.venv/bin/)?python ((?:train_\w+|validate_\w+|scripts/\w+)\.py)(.*)$")


def shown_commands():
    """(where, script, arguments) of every Python command in README and in the scripts' docstrings."""
    places = [ROOT / "README.md", *sorted(ROOT.glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
    for place in places:
        for line in place.read_text().splitlines():
            match = SCRIPT.search(line.split("   #")[0].strip("` |"))
            if match and not line.lstrip().startswith(("from", "import")) and "`" not in match[2]:
                yield place.name, match[1], match[2]


COMMANDS = sorted(set(shown_commands()))


def load(script):
    spec = importlib.util.spec_from_file_location("shown_script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_commands():
    assert {script for _, script, _ in COMMANDS} >= {"train_softmax.py", "validate_on_lfw.py"}


@pytest.mark.parametrize("where,script,arguments", COMMANDS)
def test_shown_commands_have_options_that_exist(where, script, arguments):
    module = load(script)
    if not hasattr(module, "make_parser"):
        pytest.skip("its own test runs it")
    module.make_parser().parse_args(shlex.split(arguments))


def test_shown_shell_commands_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    scripts = set(re.findall(r"bash ([\w./]+\.sh|\.ci/run)", text))
    assert "softmax_train.sh" in scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script
        subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_files_that_readme_links_to_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link


def test_options_of_the_launchers_exist():
    for launcher in [*sorted(ROOT.glob("*.sh")), *sorted((ROOT / "scripts").glob("train_*.sh"))]:
        text = launcher.read_text()
        recipe = re.search(r"recipe=\((.*?)\)", text, re.DOTALL)
        script = re.search(r"launch\.sh\" (\w+\.py)", text)
        if recipe and script:
            load(script[1]).make_parser().parse_args(shlex.split(recipe[1], comments=True))


def test_version_is_said():
    assert re.fullmatch(r"towers \d+\.\d+\.\d+", run_python("train_softmax.py", "--version").stdout.strip())
