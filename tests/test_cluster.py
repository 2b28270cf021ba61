"""Clusters as TF_CONFIG and SLURM name them."""

import json

import pytest

from towers.cluster import expand_counts, expand_hosts, read_cluster
from towers.errors import UserError


def tf_config(cluster, **task):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_workers_of_tf_config():
    cluster = read_cluster(tf_config({"worker": ["a:1", "b:2"]}, type="worker", index=1))
    assert cluster == (("a:1", "b:2"), 1)


@pytest.mark.parametrize(("kind", "index", "place"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_a_chief_comes_before_the_workers(kind, index, place):
    cluster = read_cluster(tf_config({"worker": ["a:1", "b:2"], "chief": ["c:3"]}, type=kind, index=index))
    assert cluster == (("c:3", "a:1", "b:2"), place)


@pytest.mark.parametrize(
    "environment",
    [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}, tf_config({"worker": ["a:1"]}, type="worker", index=0)],
)
def test_one_process_is_no_cluster(environment):
    assert read_cluster(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG={"),
        ({"TF_CONFIG": "[1]"}, "not as TensorFlow writes it"),
        (tf_config({"worker": ["a:1", "b:2"]}), "not as TensorFlow writes it"),
        (tf_config({"worker": ["a:1", "b:2"]}, type="worker", index=2), "task worker 2"),
        (tf_config({"worker": ["a:1", "b"]}, type="worker", index=0), "addresses a:1, b"),
        (tf_config({"worker": ["a:1"], "ps": ["b:2"]}, type="ps", index=0), "jobs ps, worker"),
    ],
)
def test_a_tf_config_that_makes_no_sense_is_refused(environment, message):
    with pytest.raises(UserError, match=message):
        read_cluster(environment)


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[01-02],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "3",
}


def test_a_step_of_slurm():
    cluster = read_cluster(SLURM)
    hosts = [address.rpartition(":")[0] for address in cluster.addresses]
    assert hosts == ["gpu01", "gpu01", "gpu02", "gpu02", "login"]
    assert len(set(cluster.addresses)) == 5
    assert cluster.index == 3
    assert read_cluster({**SLURM, "SLURM_JOB_ID": "78"}).addresses != cluster.addresses


def test_a_batch_script_of_slurm_is_no_cluster():
    assert read_cluster({"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None


@pytest.mark.parametrize("name", ["SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID"])
def test_missing_variables_of_slurm_are_named(name):
    with pytest.raises(UserError, match=name):
        read_cluster({key: value for key, value in SLURM.items() if key != name})


def test_slurm_with_more_machines_than_counts_is_refused():
    with pytest.raises(UserError, match="names 3 machines, SLURM_STEP_TASKS_PER_NODE 2"):
        read_cluster({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2,1"})


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("n[8-10]", ["n8", "n9", "n10"]),
        ("n[08-10,3]-ib,x", ["n08-ib", "n09-ib", "n10-ib", "n3-ib", "x"]),
    ],
)
def test_host_names_are_written_out(text, hosts):
    assert expand_hosts(text) == hosts


def test_counts_are_written_out():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(ValueError, match="2x3"):
        expand_counts("2x3")
    with pytest.raises(ValueError, match="a"):
        expand_hosts("a[")
