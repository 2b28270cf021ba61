import os

import pytest

from towers import host_memory

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_OWN_GROUPS", tmp_path / "own")

    def write(own, **limits):
        (tmp_path / "own").write_text(own)
        for path, limit in limits.items():
            file = tmp_path / "cgroup" / path.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")

    return write


def test_all_of_a_machine_without_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_OWN_GROUPS", tmp_path / "missing")
    assert host_memory.host_memory_bytes() == MACHINE


def test_the_least_limit_of_the_groups_that_contain_this_one(groups):
    groups(
        "0::/a/b\n", a__b__memory_dot_max=5000, a__memory_dot_max=4000, memory_dot_max="max", other__memory_dot_max=1
    )
    assert host_memory.host_memory_bytes() == 4000


def test_a_container_that_sees_its_own_group_as_the_root(groups):
    groups("0::/\n", memory_dot_max=3000)
    assert host_memory.host_memory_bytes() == 3000


def test_groups_of_the_first_version(groups):
    own = "5:cpuset:/x\n4:cpu,memory:/a\n0::/\n"
    groups(own, memory__a__memory_dot_limit_in_bytes=2000, memory__memory_dot_limit_in_bytes=2**63 - 4096)
    assert host_memory.host_memory_bytes() == 2000


def test_a_group_without_a_limit(groups):
    groups("0::/a\n", a__memory_dot_max="max")
    assert host_memory.host_memory_bytes() == MACHINE
