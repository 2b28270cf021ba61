"""The shell launchers, with a Python that writes down how it was called, and the lock files they install from."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = [*sorted(ROOT.glob("*.sh")), *sorted((ROOT / "scripts").rglob("*.sh")), ROOT / ".ci" / "run"]
LOCKS = ["cpu", "dev", "gpu"]

# Stands for .venv/bin/python: keeps its process id and arguments, and answers questions of `-c` as the real one does.
RECORDER = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec "{python}" "$@"; fi
printf '%s\\0' "$$" "$@" >> "{calls}"
printf '\\n' >> "{calls}"
"""


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """A copy of the project's launchers with a recorder in a finished .venv; paths with a space, as users have them."""
    project = tmp_path / "my towers"
    for source in [*LAUNCHERS, *(ROOT / "requirements" / f"{kind}.lock" for kind in LOCKS)]:
        target = project / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    write_program(
        project / ".venv" / "bin" / "python", RECORDER.format(python=sys.executable, calls=tmp_path / "calls")
    )
    finish(project, "cpu")
    return project


def finish(project, kind):
    """Writes the mark that setup.sh leaves when it is done."""
    digest = hashlib.sha256((project / "requirements" / f"{kind}.lock").read_bytes()).hexdigest()
    (project / ".venv" / "towers-setup").write_text(f"{kind} {digest} {project}\n")


def add_gpu(tmp_path, answers=True):
    write_program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\nexit {0 if answers else 9}\n")


def start(project, command, *arguments, cwd=None, **environment):
    """Runs a launcher; nvidia-smi fails, unless the folder `bin` beside the project holds one that answers."""
    programs = project.parent / "bin"
    if not (programs / "nvidia-smi").exists():
        add_gpu(project.parent, answers=False)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name
        not in {
            "DATA",
            "PICTURES",
            "TOWERS",
            "WORKERS",
            "HOSTS",
            "OUT",
            "LFW_DIR",
            "LFW_PAIRS",
            "VENV",
            "PYTHON",
            "VIRTUAL_ENV",
            "SETUP_DRY_RUN",
        }
    }
    return subprocess.run(
        ["bash", str(project / command), *arguments],
        cwd=cwd or project,
        env=inherited | {"PATH": f"{programs}:{os.environ['PATH']}"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def records(project):
    """Process id and arguments of every call of the recorder, in order."""
    path = project.parent / "calls"
    return [line.split("\0")[:-1] for line in path.read_text().splitlines()] if path.exists() else []


def calls(project):
    return [arguments for _, *arguments in records(project)]


def option(argv, name):
    """The value that argparse would take: the last one."""
    return [value for flag, value in zip(argv, argv[1:], strict=False) if flag == name][-1]


def face_folder(path, *, split):
    for name in ("train/Ann", "test/Bob") if split else ("Ann",):
        (path / name).mkdir(parents=True)
    if split:
        (path / "pairs.txt").write_text("1\t1\n")
    return path


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launchers_are_bash_and_stop_at_the_first_error(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(path, os.X_OK)


def test_bare_launch_makes_the_embedded_data_and_trains_on_two_cpu_towers(project):
    result = start(project, "softmax_train.sh")
    assert result.returncode == 0, result.stderr
    prepare, train = calls(project)
    assert prepare == ["data/synthetic_faces/prepare.py", "--out_dir", "data/synthetic_faces/generated"]
    assert train[0] == "train_softmax.py"
    assert option(train, "--data_dir") == "data/synthetic_faces/generated"
    assert option(train, "--towers") == "2"
    assert option(train, "--network") == "small"
    assert "--run_dir" not in train


def test_made_embedded_data_is_split(project):
    generated = face_folder(project / "data" / "synthetic_faces" / "generated", split=True)
    start(project, "softmax_train.sh")
    train = calls(project)[-1]
    relative = generated.relative_to(project)
    assert option(train, "--data_dir") == str(relative / "train")
    assert option(train, "--lfw_dir") == str(relative / "test")
    assert option(train, "--lfw_pairs") == str(relative / "pairs.txt")


def test_options_of_the_user_come_last_and_whole(project):
    start(project, "softmax_train.sh", "--max_epochs", "1", "--run_dir", "a b")
    train = calls(project)[-1]
    assert train[-4:] == ["--max_epochs", "1", "--run_dir", "a b"]
    assert option(train, "--max_epochs") == "1"


def test_environment_is_honoured_from_another_folder(project, tmp_path):
    face_folder(tmp_path / "faces", split=True)
    result = start(project, "softmax_train.sh", cwd=tmp_path, DATA="faces", TOWERS="4", OUT="out")
    assert result.returncode == 0, result.stderr
    (train,) = calls(project)
    assert option(train, "--data_dir") == str(tmp_path / "faces" / "train")
    assert option(train, "--lfw_dir") == str(tmp_path / "faces" / "test")
    assert option(train, "--lfw_pairs") == str(tmp_path / "faces" / "pairs.txt")
    assert option(train, "--towers") == "4"
    assert option(train, "--run_dir") == str(tmp_path / "out")


def test_data_without_train_is_the_training_folder(project, tmp_path):
    faces = face_folder(tmp_path / "faces", split=False)
    start(project, "softmax_train.sh", DATA=str(faces))
    start(project, "softmax_train.sh", DATA=str(faces), LFW_DIR="lfw", LFW_PAIRS="/pairs.txt")
    bare, validated = calls(project)
    assert option(bare, "--data_dir") == str(faces)
    assert "--lfw_dir" not in bare
    assert "--lfw_pairs" not in bare
    assert option(validated, "--lfw_dir") == str(project / "lfw")
    assert option(validated, "--lfw_pairs") == "/pairs.txt"


def test_classes_are_validated_on_their_test_folder(project, tmp_path):
    result = start(project, "scripts/train_googlenet.sh")
    assert result.returncode == 0, result.stderr
    prepare, bare = calls(project)
    assert prepare == ["data/mini_imagenet/prepare.py", "--synthetic", "--out_dir", "data/mini_imagenet/generated"]
    assert option(bare, "--data_dir") == "data/mini_imagenet/generated"
    assert option(bare, "--network") == "googlenet"
    face_folder(tmp_path / "images", split=True)
    start(project, "scripts/train_googlenet.sh", "--max_epochs", "1", DATA=str(tmp_path / "images"), LFW_DIR="lfw")
    train = calls(project)[-1]
    assert option(train, "--data_dir") == str(tmp_path / "images" / "train")
    assert option(train, "--val_dir") == str(tmp_path / "images" / "test")
    assert "--lfw_dir" not in train
    assert "--lfw_pairs" not in train
    (tmp_path / "images" / "test").rename(tmp_path / "images" / "val")
    start(project, "scripts/train_googlenet.sh", DATA=str(tmp_path / "images"))
    assert option(calls(project)[-1], "--val_dir") == str(tmp_path / "images" / "val")


def test_data_that_is_missing_is_named(project):
    result = start(project, "softmax_train.sh", DATA="/no/such/faces")
    assert result.returncode == 2
    assert "/no/such/faces" in result.stderr
    assert calls(project) == []


def test_single_tower_launcher_is_the_same_on_one(project):
    start(project, "softmax_train.sh", "--seed", "7")
    start(project, "softmax_train_sg.sh", "--seed", "7", TOWERS="8")
    _, several, _, one = calls(project)
    at = several.index("--towers") + 1
    assert one == [*several[:at], "1", *several[at + 1 :]]


@pytest.mark.parametrize(
    ("launcher", "own"),
    [
        ("per_tower", ["--batch_mode", "per_tower", "--people_per_batch", "16", "--mining_scope", "tower"]),
        ("split", ["--batch_mode", "split", "--mining_scope", "tower"]),
    ],
)
def test_both_batch_modes_of_triplets_are_train_sh_with_options(project, launcher, own):
    start(project, "train.sh", *own, "--seed", "7")
    start(project, f"scripts/train_triplet_{launcher}.sh", "--seed", "7")
    _, expected, _, found = calls(project)
    assert found == expected
    assert found[0] == "train_tripletloss.py"


def test_all_gpus_are_taken_where_there_are_some(project, tmp_path):
    add_gpu(tmp_path)
    finish(project, "gpu")
    start(project, "softmax_train.sh")
    assert "--towers" not in calls(project)[-1]


def test_cpu_build_beside_a_gpu_is_said(project, tmp_path):
    add_gpu(tmp_path)
    result = start(project, "softmax_train.sh")
    assert option(calls(project)[-1], "--towers") == "2"
    assert "bash scripts/setup.sh gpu" in result.stderr


def test_python_takes_the_place_of_the_shell(project, tmp_path):
    programs = tmp_path / "bin"
    add_gpu(tmp_path, answers=False)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", str(project / "softmax_train.sh")], env=environment, cwd=project) as process:
        pid = process.pid
    assert records(project)[-1][0] == str(pid)


def test_finished_setup_does_nothing(project):
    result = start(project, "scripts/setup.sh")
    assert (result.returncode, result.stdout, calls(project)) == (0, "", [])
    result = start(project, "scripts/setup.sh", "cpu")
    assert (result.returncode, result.stdout, calls(project)) == (0, "", [])


@pytest.mark.parametrize("change", ["lock", "folder"])
def test_outdated_environment_is_installed_again(project, change):
    if change == "lock":
        with (project / "requirements" / "cpu.lock").open("a") as lock:
            lock.write("# newer\n")
    else:
        project = project.rename(project.with_name("moved"))
    result = start(project, "scripts/setup.sh")
    assert result.returncode == 0, result.stderr
    assert calls(project) == [
        ["-m", "pip", "install", "--quiet", "--require-hashes", "-r", "requirements/cpu.lock"],
        ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."],
        ["-m", "pip", "check"],
    ]
    assert start(project, "scripts/setup.sh").stdout == ""


def test_interrupted_setup_is_taken_up_again(project):
    python = project / ".venv" / "bin" / "python"
    works = python.read_text()
    (project / "requirements" / "cpu.lock").write_text("# newer\n")
    write_program(python, works + '[[ "$*" != *--require-hashes* ]]\n')
    assert start(project, "scripts/setup.sh").returncode != 0
    write_program(python, works)
    assert start(project, "scripts/setup.sh").returncode == 0
    assert calls(project)[-1] == ["-m", "pip", "check"]


def dry(project, *arguments, **environment):
    result = start(project, "scripts/setup.sh", *arguments, SETUP_DRY_RUN="1", **environment)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(("gpu", "lock"), [(True, "gpu"), (False, "cpu")])
def test_setup_takes_the_gpu_lock_where_nvidia_smi_answers(project, tmp_path, gpu, lock):
    shutil.rmtree(project / ".venv")
    add_gpu(tmp_path, answers=gpu)
    code, output = dry(project)
    assert code == 0
    assert f"--require-hashes -r requirements/{lock}.lock" in output
    assert re.search(r"python\S* -m venv \.venv", output)
    assert not (project / ".venv").exists()


def test_dev_is_added_to_cpu_but_another_tensorflow_starts_afresh(project):
    assert "-m venv" not in dry(project, "dev")[1]
    assert "-m venv --clear .venv" in dry(project, "gpu")[1]
    finish(project, "dev")
    assert dry(project, "cpu") == (0, "")


def test_foreign_environment_of_an_old_python_is_left_alone(project):
    (project / ".venv" / "towers-setup").unlink()
    write_program(project / ".venv" / "bin" / "python", "#!/bin/sh\nexit 1\n")
    code, output = dry(project)
    assert code == 2
    assert ".venv was not made by this script" in output


def test_setup_names_what_is_missing(project, tmp_path):
    shutil.rmtree(project / ".venv")
    old = tmp_path / "old python"
    write_program(old, "#!/bin/sh\nexit 1\n")
    code, output = dry(project, PYTHON=str(old))
    assert code == 2
    assert "no Python 3.11, 3.12 or 3.13" in output
    assert str(old) in output
    bare = tmp_path / "bare-python"
    write_program(bare, f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\nexec "{sys.executable}" "$@"\n')
    code, output = dry(project, PYTHON=str(bare))
    assert code == 2
    assert f"apt-get install python3.{sys.version_info[1]}-venv" in output
    assert dry(project, "tpu") == (2, "setup.sh: unknown kind 'tpu': cpu, gpu or dev\n")


TWO_PROCESSES = ["-n", "2", "--dist", "loadfile"]


def test_test_command_leaves_slow_tests_out_unless_told(project, tmp_path):
    (project / ".venv" / "towers-setup").unlink()
    active = {"VIRTUAL_ENV": str(project / ".venv"), "PYTHONPATH": str(ROOT / "src")}
    start(project, "test.sh", "tests/losses", cwd=tmp_path, **active)
    start(project, "test.sh", "--all", "-x", cwd=tmp_path, **active)
    assert calls(project) == [
        ["-m", "pytest", "-q", *TWO_PROCESSES, "-m", "not slow", "tests/losses"],
        ["-m", "pytest", "-q", *TWO_PROCESSES, "-x"],
    ]


def test_test_command_completes_the_environment(project):
    start(project, "test.sh")
    lock, *_, tests = calls(project)
    assert lock[-1] == "requirements/dev.lock"
    assert tests == ["-m", "pytest", "-q", *TWO_PROCESSES, "-m", "not slow"]


def locked(kind):
    """Package names of a lock file, and its text."""
    text = (ROOT / "requirements" / f"{kind}.lock").read_text()
    return {name.lower() for name in re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==", text, flags=re.MULTILINE)}, text


@pytest.mark.parametrize("kind", LOCKS)
def test_locks_hold_every_dependency_with_hashes_and_no_host(kind):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = {"cpu": ["cpu"], "gpu": ["gpu"], "dev": ["cpu", "dev"]}[kind]
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
    wanted += [line for extra in extras for line in project["project"]["optional-dependencies"][extra]]
    names, text = locked(kind)
    assert {re.match(r"[\w.-]+", line)[0].lower() for line in wanted} <= names
    assert "tf-keras" not in names
    assert len({"tensorflow", "tensorflow-cpu"} & names) == 1
    entries = re.findall(r"^\S+==.*?(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "--index" not in text


def test_dev_lock_has_the_versions_of_the_cpu_lock():
    pins = {
        kind: set(re.findall(r"^\S+==\S+.*?(?= \\$)", locked(kind)[1], flags=re.MULTILINE)) for kind in ("cpu", "dev")
    }
    assert pins["cpu"] - pins["dev"] == set()


INSIGHTFACE_LAUNCHERS = {
    "insightface_r100_arcface.sh": ("train_multi_gpu.py", {"--network": "r100", "--loss": "arcface"}),
    "insightface_r50_cosface.sh": ("train_multi_gpu.py", {"--network": "r50", "--loss": "cosface"}),
    "insightface_y1_softmax.sh": ("train_multi_gpu.py", {"--network": "mobilefacenet_y1", "--loss": "softmax"}),
    "insightface_y1_triplet.sh": (
        "train_tripletloss.py",
        {"--network": "mobilefacenet_y1", "--learning_rate": "0.005"},
    ),
}


@pytest.mark.parametrize("name", INSIGHTFACE_LAUNCHERS)
def test_insightface_examples_start_their_script(project, tmp_path, name):
    script, options = INSIGHTFACE_LAUNCHERS[name]
    faces = face_folder(tmp_path / "faces_emore", split=False)
    start(project, f"scripts/{name}", "--pretrained", "runs/y1,1", DATA=str(faces))
    (train,) = calls(project)
    assert train[0] == script
    assert {flag: option(train, flag) for flag in options} == options
    assert option(train, "--data_dir") == str(faces)
    assert train[-2:] == ["--pretrained", "runs/y1,1"]


@pytest.mark.slow
def test_insightface_examples_give_options_that_there_are(project, tmp_path):
    faces = face_folder(tmp_path / "faces_emore", split=False)
    for name in INSIGHTFACE_LAUNCHERS:
        start(project, f"scripts/{name}", "--pretrained", "runs/y1,1", DATA=str(faces))
    code = (
        "import importlib, json, sys\n"
        "for script, *options in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(script.removesuffix('.py')).make_parser().parse_args(options)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    subprocess.run([sys.executable, "-c", code, json.dumps(calls(project))], env=environment, check=True)


def test_param_server_keeps_its_data_where_it_is_told(project, tmp_path):
    start(project, "scripts/param_server.sh", "--shards", "2")
    start(project, "scripts/param_server.sh", cwd=tmp_path, DIRECTORY="centres")
    own, told = calls(project)
    assert own[:2] == told[:2] == ["-m", "towers.classcenters.server"]
    assert option(own, "--directory") == str(project / "runs" / "class_centres")
    assert option(told, "--directory") == str(tmp_path / "centres")
    assert own[-2:] == ["--shards", "2"]


def test_hf_launchers_start_the_selected_head(project, tmp_path):
    faces = face_folder(tmp_path / "faces", split=True)
    for name in ("train_hf.sh", "train_hf_distributed.sh", "train_hf_baseline.sh"):
        start(project, f"scripts/{name}", DATA=str(faces), SERVERS="a:1,b:2")
    selected, distributed, baseline = calls(project)
    assert option(selected, "--head") == option(distributed, "--head") == "selected"
    assert "--param_servers" not in selected
    assert option(distributed, "--param_servers") == "a:1,b:2"
    assert option(baseline, "--head") == "sharded"


def test_several_processes_are_left_to_the_launcher(project, tmp_path):
    faces = face_folder(tmp_path / "faces", split=True)
    for environment in ({"WORKERS": "2"}, {"HOSTS": "gpu1 gpu2", "TOWERS": "8"}, {"WORKERS": "1"}):
        start(project, "scripts/train_hf_distributed.sh", "--seed", "3", DATA=str(faces), **environment)
    here, there, alone = calls(project)
    assert here[:5] == ["scripts/launch.py", "--workers", "2", "--", "train_multi_gpu.py"]
    assert option(here, "--towers") == "1"
    assert option(here, "--param_servers") == "127.0.0.1:5570"
    assert here[-2:] == ["--seed", "3"]
    assert there[:6] == ["scripts/launch.py", "--workers", "1", "--hosts", "gpu1", "gpu2"]
    assert there[6:8] == ["--", "train_multi_gpu.py"]
    assert option(there, "--towers") == "8"
    assert (alone[0], option(alone, "--towers")) == ("train_multi_gpu.py", "2")


def test_hf_evaluation_goes_over_the_packs_that_are_there(project, tmp_path):
    data = tmp_path / "packs"
    data.mkdir()
    for name in ("cfp_fp.bin", "lfw.bin", "other.bin"):
        (data / name).touch()
    start(project, "scripts/eval_hf.sh", "y1", "runs/hf", "packs", "out", "--towers", "2", cwd=tmp_path)
    for call, name in zip(calls(project), ("lfw", "cfp_fp"), strict=True):
        assert call[0] == "validate_on_lfw.py"
        assert option(call, "--model") == str(tmp_path / "runs" / "hf")
        assert option(call, "--bin") == str(data / f"{name}.bin")
        assert option(call, "--features") == str(tmp_path / "out" / f"{name}.npy")
        assert call[-2:] == ["--towers", "2"]
    (data / "lfw.bin").unlink()
    (data / "cfp_fp.bin").unlink()
    none = start(project, "scripts/eval_hf.sh", "y1", "runs/hf", "packs", "out", cwd=tmp_path)
    assert (none.returncode, "holds none of lfw.bin" in none.stderr) == (65, True)
