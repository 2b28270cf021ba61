"""Run folders of one process and of several."""

import pytest

from towers.errors import StorageError, UserError
from towers.processes import Processes
from towers.runs.folder import RunFolder

OPTIONS = {"batch_mode": "per_tower", "towers": 1}


class Recorded(Processes):
    """Processes of which the values of the first are known."""

    def __init__(self, index, said=None):
        super().__init__(("a:1", "b:1"), index)
        self.said = said

    def gather(self, value):
        self.said = value if self.is_chief else self.said
        return [self.said, value]


def test_a_run_of_two_processes_is_not_one_of_a_batch_for_each_of_other_towers(tmp_path):
    RunFolder(tmp_path, OPTIONS, Recorded(0)).close()
    RunFolder(tmp_path, OPTIONS, Recorded(0)).close()
    with pytest.raises(UserError, match=r"on 2 process\(es\) of 1 tower"):
        RunFolder(tmp_path, OPTIONS)


def test_a_split_batch_goes_on_in_one_process(tmp_path):
    options = {**OPTIONS, "batch_mode": "split"}
    RunFolder(tmp_path, options, Recorded(0)).close()
    RunFolder(tmp_path, options).close()


def test_the_others_use_the_folder_of_the_chief(tmp_path):
    chief = Recorded(0)
    first = RunFolder(tmp_path / "run", OPTIONS, chief)
    second = RunFolder(None, OPTIONS, Recorded(1, chief.said))
    assert second.path == tmp_path / "run"
    assert (first.own, second.own) == (first.path, tmp_path / "run/workers/1")
    assert second.own.is_dir()
    first.close()
    second.close()


def test_another_folder_of_the_same_name_is_refused(tmp_path):
    chief = Recorded(0)
    RunFolder(tmp_path / "run", OPTIONS, chief)
    RunFolder(tmp_path / "other", OPTIONS, Recorded(0))
    for folder in ("other", "missing"):
        with pytest.raises(StorageError, match="a disk that all machines share"):
            RunFolder(tmp_path / folder, OPTIONS, Recorded(1, chief.said))
    assert not (tmp_path / "missing").exists()
