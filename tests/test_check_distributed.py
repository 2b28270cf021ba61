"""scripts/check_distributed.py, which scripts/test_distributed.sh starts."""

from classcenters.serving import serving
from conftest import run_python


def test_towers_and_servers_are_checked():
    with serving(shards=2) as (addresses, shards):
        options = ("--towers", 2, "--megabytes", 4, "--param_servers", ",".join(addresses))
        found = run_python("scripts/check_distributed.py", *options)
        assert "sum over 2 tower(s): right" in found.stdout
        assert "2 server(s): round trip" in found.stdout
        assert shards[0].store.version("check_distributed") == 1


def test_servers_that_are_not_there_are_told():
    found = run_python("scripts/check_distributed.py", "--megabytes", 1, "--param_servers", "localhost:9", check=False)
    assert found.returncode == 75
    assert "localhost:9" in found.stderr
