"""A run folder: one process at a time, the options it was started with, and where it can go on."""

import fcntl
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import __version__
from ..errors import StorageError, UserError
from ..processes import ALONE, Processes

MAY_DIFFER = frozenset(
    {
        "towers",
        "workers",
        "wait_for_workers",
        "reduction",
        "max_steps",
        "max_epochs",
        "run_dir",
        "data_dir",
        "log_every",
        "log_histograms",
        "validate_every_n_epochs",
        "checkpoint_every_n_steps",
        "keep_checkpoints",
        "audit_data",
        "time_towers",
        "debug",
        "dry_run",
        "val_dir",
        "holidays_dir",
        "holidays_rotations",
        "copydays_dir",
        "distractors",
        "lfw_dir",
        "lfw_pairs",
        "lfw_batch_size",
        "lfw_nrof_folds",
        "lfw_distance_metric",
        "lfw_use_flipped_images",
        "lfw_subtract_mean",
        "verbose",
        "card_memory",
        "identities",
        "val_sets",
        "max_bad_fraction",
        "center_folder",
        "center_waiting_gb",
        "param_servers",
        "param_token_file",
        "param_tls_ca",
        "param_tls_cert",
        "param_tls_key",
    }
)


class RunFolder:
    """An open run folder; no other run opens it until ``close``.

    Of several processes the chief writes it; the others see the same folder and have ``workers/INDEX`` in it for their
    own log.

    Args:
      path: the folder, None: ``runs/YYYYMMDD-HHMMSS`` in the current folder.
      options: the resolved options; where the folder holds a run, they must equal its options, those of ``MAY_DIFFER``
        aside.
      processes: those of this run; all must make it.

    Raises:
      UserError: the folder holds a run of other options, or another process runs in it.
      StorageError: the folder cannot be written, or a process sees another folder than the chief.
    """

    def __init__(self, path: Path | None, options: dict, processes: Processes = ALONE):
        self.path = Path("runs") / time.strftime("%Y%m%d-%H%M%S") if path is None else Path(path)
        self._lock = None
        if processes.is_chief:
            self._open({**options, "workers": processes.num})
            token = secrets.token_hex(8)
            self._lock.write(token)
            self._lock.flush()
            processes.gather({"path": str(self.path.resolve()), "token": token})
            self.own = self.path
            return
        chiefs = processes.gather(None)[0]
        self.path = Path(chiefs["path"]) if path is None else self.path
        self.own = self.path / "workers" / str(processes.index)
        try:
            same = (self.path / ".lock").read_text() == chiefs["token"]
            self.own.mkdir(parents=True, exist_ok=True)
        except OSError:
            same = False
        if not same:
            raise StorageError(
                f"--run_dir {self.path}: is not the folder that the chief writes, {chiefs['path']} on its machine; "
                "give one on a disk that all machines share"
            )

    def _open(self, options: dict) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise StorageError(
                f"--run_dir {self.path}: cannot be written ({error.strerror}); choose another"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--run_dir {self.path}: another process is training in it; wait for it, or choose another folder"
            ) from error
        recorded = self.path / "options.json"
        if recorded.exists():
            _check_same(json.loads(recorded.read_text()), options, self.path)
        else:
            recorded.write_text(json.dumps(options, indent=1, default=str) + "\n")
        (self.path / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


def environment() -> dict:
    """Versions, devices, and the git revision of the code, for ``environment.json``."""
    code = Path(__file__).resolve().parent
    revision = subprocess.run(
        ["git", "-C", str(code), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "towers": __version__,
        "git_revision": revision.stdout.strip() or None,
        "command": sys.argv,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "devices": [
            tf.config.experimental.get_device_details(device).get("device_name", device.name)
            for device in tf.config.list_physical_devices()
        ],
    }


def _check_same(recorded: dict, options: dict, path: Path) -> None:
    wanted = json.loads(json.dumps(options, default=str))
    differing = [
        f"--{name} {recorded.get(name)} -> {wanted.get(name)}"
        for name in sorted(set(recorded) | set(wanted))
        if name not in MAY_DIFFER and recorded.get(name) != wanted.get(name)
    ]
    if differing:
        raise UserError(
            f"{path} holds a run of other options: {'; '.join(differing)}; give the recorded options to go on with it, "
            "or another --run_dir"
        )
    then, now = ((each.get("workers", 1), each.get("towers")) for each in (recorded, wanted))
    if recorded.get("batch_mode") == "per_tower" and then != now:
        raise UserError(
            f"{path} was trained with --batch_mode per_tower on {then[0]} process(es) of {then[1]} tower(s): another "
            "number of towers would change the global batch; give the recorded number, or another --run_dir"
        )
