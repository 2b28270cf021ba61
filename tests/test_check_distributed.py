"""scripts/check_distributed.py, which scripts/test_distributed.sh starts."""

from classcenters.serving import serving
from conftest import run_python


def test_towers_and_servers_are_checked():
    with serving(shards=2) as (addresses, shards):
        options = ("--towers", 2, "--megabytes", 4, "--param_servers", ",".join(addresses))
        found = run_python("scripts/check_distributed.py", *options)
        assert "sum over 2 tower(s): right" in found.stdout
        assert "2 server(s): round trip" in found.stdout
        assert found.stderr == ""
        assert shards[0].store.version("check_distributed") == 1


def test_servers_of_several_clients():
    with serving("--clients", 3) as (addresses, shards):
        for version in (1, 2):
            found = run_python("scripts/check_distributed.py", "--megabytes", 1, "--param_servers", ",".join(addresses))
            assert "1 server(s): round trip" in found.stdout
            assert shards[0].store.version("check_distributed") == version


def test_one_tower_has_no_bandwidth():
    found = run_python("scripts/check_distributed.py", "--megabytes", 1)
    assert "one tower: nothing is summed" in found.stdout
    assert "GB/s" not in found.stdout


def test_servers_that_ask_for_a_certificate_and_a_token(certificate, tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef\n")
    crt, key = certificate / "crt", certificate / "key"
    asking = ("--tls_cert", crt, "--tls_key", key, "--tls_client_ca", crt, "--token_file", tmp_path / "token")
    giving = ("--param_tls_ca", crt, "--param_tls_cert", crt, "--param_tls_key", key)
    giving += ("--param_token_file", tmp_path / "token")
    with serving(*asking) as (addresses, shards):
        servers = ("--megabytes", 1, "--param_servers", *addresses)
        assert "1 server(s): round trip" in run_python("scripts/check_distributed.py", *servers, *giving).stdout
        assert shards[0].store.version("check_distributed") == 1
        without_token = run_python("scripts/check_distributed.py", *servers, *giving[:6], check=False)
        assert without_token.returncode == 2
        assert "--token_file" in without_token.stderr


def test_servers_that_are_not_there_are_told():
    found = run_python("scripts/check_distributed.py", "--megabytes", 1, "--param_servers", "localhost:9", check=False)
    assert found.returncode == 75
    assert "localhost:9" in found.stderr
