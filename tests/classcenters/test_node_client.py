import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from classcenters.serving import ROOT, serving

from towers.classcenters.remote import RemoteStore
from towers.classcenters.spec import MatrixSpec
from towers.classcenters.store import memory_store

CLIENT = ROOT / "scripts/clients/node"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The example with its packages, installed in a temporary folder."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules"))
    if (CLIENT / "node_modules").is_dir():
        (folder / "node_modules").symlink_to(CLIENT / "node_modules")
        return folder
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    try:
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install took more than a minute")
    if made.returncode:
        pytest.skip(f"npm install failed: {made.stderr.strip().splitlines()[-1:]}")
    return folder


def run(folder, *arguments, **environment):
    variables = {**os.environ, "TOWERS_PROTO": str(ROOT / "src/towers/classcenters/protocol/class_centers.proto")}
    return subprocess.run(
        ["node", "example.js", *arguments],
        cwd=folder,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_node_trains_the_rows_that_python_sees(client, shards):
    with serving(shards=shards) as (addresses, _):
        made = run(client, ",".join(addresses), "3")
        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout)
        local = memory_store()
        local.create("node", MatrixSpec(rows=10, columns=4, seed=1, scale=0.5, rule="sgd"))
        store = RemoteStore(addresses)
        rows = np.array(found["rows"])
        assert found["version"] == store.version("node") == 3
        expected = local.pull("node", rows) / 8
        np.testing.assert_allclose(store.pull("node", rows), expected, rtol=1e-6)
        np.testing.assert_allclose(np.reshape(found["values"], (4, 4)), expected, rtol=1e-6)
        others = np.setdiff1d(np.arange(10), rows)
        np.testing.assert_array_equal(store.pull("node", others), local.pull("node", others))
        store.close()


def test_node_is_told_of_a_wrong_token(client, tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef")
    with serving("--token_file", tmp_path / "token") as (addresses, _):
        assert run(client, addresses[0], TOWERS_TOKEN="0123456789abcdef").returncode == 0
        made = run(client, addresses[0], TOWERS_TOKEN="wrong")
        assert made.returncode == 1
        assert "token" in made.stderr
