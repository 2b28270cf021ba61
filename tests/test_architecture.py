"""The design's rules that can be read from the source: who imports whom, one tape, one place for distribution."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "towers"
ROOT_SCRIPTS = sorted(ROOT.glob("*.py"))
CODE = [
    *sorted(PACKAGE.rglob("*.py")),
    *ROOT_SCRIPTS,
    *sorted((ROOT / "scripts").rglob("*.py")),
]

# What each part of the package may import besides its siblings. Parts not listed may import any that forms no circle.
MAY_IMPORT = {
    "errors": set(),
    "host_memory": set(),
    "cluster": {"errors"},
    "processes": {"errors"},
    "distribution": {"errors", "processes"},
    "hashing": set(),
    "losses": {"errors", "hashing"},
    "networks": {"errors", "distribution"},
    "evaluation": {"errors"},
    "datasets": {"errors", "hashing"},
    "classcenters": {"errors", "host_memory"},
    "checkpoints": {"errors"},
    "summaries": {"errors"},
    "plots": {"errors", "evaluation"},
    "heads": {"losses", "distribution", "classcenters", "errors", "hashing"},
    "training": {"losses", "heads", "distribution", "processes", "summaries", "errors"},
}


def part_of(path):
    """`losses` for src/towers/losses/x.py, `errors` for src/towers/errors.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(source, path):
    """Absolute dotted names that a file of the package imports, wherever in it the import stands."""
    package = ["towers", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_parts(source, path):
    """Parts of the package that a file imports, its own left out."""
    dotted = (name.split(".") for name in imported_names(source, path))
    return {name[1] for name in dotted if name[0] == "towers" and len(name) > 1} - {part_of(path), "__version__"}


@functools.cache
def dotted_names(source):
    """Dotted names that stand as expressions, such as `tf.distribute.MirroredStrategy`, or are imported."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Attribute, ast.Name)):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module or ''}.{alias.name}" for alias in node.names)
    return names


def uses(source, pattern):
    return any(re.search(pattern, name) for name in dotted_names(source))


DISTRIBUTE = r"^(tf|tensorflow)(\.\w+)*\.distribute\b"
TAPE = r"(^|\.)GradientTape$"


def tree_paths(readme):
    """Paths of README's file tree: the fenced block that has a line src/towers/..., one `path  comment` a line."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    trees = [block for block in blocks if re.search(r"^src/towers/", block, flags=re.MULTILINE)]
    return [line.split()[0] for tree in trees for line in tree.splitlines() if line.strip()]


def circle(edges):
    """Parts that import each other in a circle, as a list, or an empty one."""
    left = {part: set(imports) for part, imports in edges.items()}
    while True:
        free = {part for part in left if not left[part] & left.keys()}
        if not free:
            return sorted(left)
        left = {part: imports for part, imports in left.items() if part not in free}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..heads import sharded", {"heads"}),
        ("from .. import distribution", {"distribution"}),
        ("from . import center\nfrom .center import center_loss", set()),
        ("def f():\n    import towers.training.step", {"training"}),
        ("from towers.errors import BadData", {"errors"}),
        ("import tensorflow as tf", set()),
    ],
)
def test_imported_parts_reads_every_form(source, expected):
    assert imported_parts(source, PACKAGE / "losses" / "margin.py") == expected


@pytest.mark.parametrize(
    "source",
    [
        "s = tf.distribute.MirroredStrategy()",
        "from tensorflow import distribute",
        "import tensorflow.distribute",
        "x = tf.compat.v1.distribute.get_strategy()",
    ],
)
def test_distribution_is_recognised(source):
    assert uses(source, DISTRIBUTE)
    assert not uses("from . import distribution\ndistribution.towers()", DISTRIBUTE)


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


def test_tree_is_read():
    readme = "```\npip install\n```\n\n```text\nREADME.md  this\n\nsrc/towers/losses/  losses\n```\n"
    assert tree_paths(readme) == ["README.md", "src/towers/losses/"]


def imports_by_part():
    edges = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if part_of(path) != "__init__":
            edges.setdefault(part_of(path), set()).update(imported_parts(path.read_text(), path))
    return edges


def test_imports_point_one_way():
    strays = {
        part: sorted(imports - MAY_IMPORT[part])
        for part, imports in imports_by_part().items()
        if part in MAY_IMPORT and imports - MAY_IMPORT[part]
    }
    assert strays == {}


def test_parts_import_each_other_in_no_circle():
    assert circle(imports_by_part()) == []


def test_the_package_does_not_know_the_scripts():
    outside = {path.stem for path in ROOT_SCRIPTS} | {"scripts", "data", "benchmarks", "tests"}
    strays = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in imported_names(path.read_text(), path)
        if name.split(".")[0] in outside
    ]
    assert strays == []


@pytest.mark.parametrize(
    ("pattern", "home"), [(DISTRIBUTE, "src/towers/distribution.py"), (TAPE, "src/towers/training/step.py")]
)
def test_one_file_only(pattern, home):
    users = {str(path.relative_to(ROOT)) for path in CODE if uses(path.read_text(), pattern)}
    assert users <= {home}


RUNS_CODE = r"^(eval|exec)$|^c?[pP]ickle\.loads?$|\.(Lambda|load_model|unsafe_load|enable_unsafe_deserialization)$"


@pytest.mark.parametrize(
    "source", ["eval(x)", "pickle.load(f)", "keras.layers.Lambda(f)", "keras.models.load_model(p)"]
)
def test_code_runners_are_recognised(source):
    assert uses(source, RUNS_CODE)
    assert not uses("class Closed(pickle.Unpickler): pass\nevaluate(x)\nnp.load(p)", RUNS_CODE)


def test_nothing_loaded_can_run_code():
    users = [str(path.relative_to(ROOT)) for path in CODE if uses(path.read_text(), RUNS_CODE)]
    assert users == []
    pickled = [
        str(path.relative_to(ROOT))
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
    ]
    assert pickled == []


def test_no_drawers():
    drawers = re.compile(r"^(utils?|commons?|misc|helpers?)(\.py)?$")
    folders = [ROOT / name for name in ("src", "scripts", "benchmarks", "data")]
    assert [str(path) for folder in folders for path in folder.rglob("*") if drawers.match(path.name)] == []


def test_readme_tree_is_the_disk():
    listed = tree_paths((ROOT / "README.md").read_text())
    assert listed, "README.md has no fenced tree with a line that starts with src/towers/"
    assert [path for path in listed if not (ROOT / path).exists()] == []
    commands = [path.name for path in sorted(ROOT.glob("*.sh")) + ROOT_SCRIPTS]
    assert [name for name in commands if name not in listed] == []


@pytest.mark.parametrize("path", ROOT_SCRIPTS, ids=lambda path: path.name)
def test_root_scripts_are_thin_and_tell_their_command(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 150
    assert f"python {path.name}" in (ast.get_docstring(ast.parse(source)) or "")
