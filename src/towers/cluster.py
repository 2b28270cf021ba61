"""Which processes train together, as the environment says it: TensorFlow's TF_CONFIG, or a step of SLURM."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from .errors import UserError

# SLURM gives no ports; jobs on the same machines get different ones.
_FIRST_PORT, _NUM_PORTS = 20_000, 8_000


class Cluster(NamedTuple):
    """All processes and which of them this is.

    Attributes:
      addresses: ``host:port`` of each process, the chief's first.
      index: this process among them.
    """

    addresses: tuple[str, ...]
    index: int


def read_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster of TF_CONFIG, else that of a SLURM step; None where this process trains alone.

    Raises:
      UserError: a TF_CONFIG or SLURM variables that do not make sense.
    """
    if environment.get("TF_CONFIG"):
        cluster = _from_tf_config(environment["TF_CONFIG"])
    elif "SLURM_STEP_NODELIST" in environment:
        cluster = _from_slurm(environment)
    else:
        return None
    return cluster if len(cluster.addresses) > 1 else None


def _from_tf_config(text: str) -> Cluster:
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        if not jobs:
            return Cluster((), 0)
        kind, index = task["type"], int(task["index"])
        addresses = tuple(address for job in ("chief", "worker") for address in jobs.get(job, []))
        place = index + (len(jobs.get("chief", [])) if kind == "worker" else 0)
        whole = all(re.fullmatch(r".+:\d+", address) for address in addresses)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"TF_CONFIG={text}: not as TensorFlow writes it ({error!r}); {_TF_CONFIG_EXAMPLE}") from error
    strange = sorted(set(jobs) - {"chief", "worker"})
    if strange or kind not in jobs:
        raise UserError(
            f"TF_CONFIG: jobs {', '.join(sorted(jobs))} with a task of type {kind}: only chief and worker train "
            f"together here; {_TF_CONFIG_EXAMPLE}"
        )
    if not whole or not 0 <= index < len(jobs[kind]):
        raise UserError(
            f"TF_CONFIG: task {kind} {index} of addresses {', '.join(map(str, addresses))}; {_TF_CONFIG_EXAMPLE}"
        )
    return Cluster(addresses, place)


_TF_CONFIG_EXAMPLE = (
    'give {"cluster": {"worker": ["host1:5000", "host2:5000"]}, "task": {"type": "worker", "index": 0}}, '
    "with another index for each process, or start all of them by scripts/launch.py"
)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    try:
        hosts = expand_hosts(environment["SLURM_STEP_NODELIST"])
        counts = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
        index = int(environment["SLURM_PROCID"])
        number = int(environment["SLURM_JOB_ID"]) * 31 + int(environment.get("SLURM_STEP_ID", 0))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"SLURM's variables of this step: {error!r}; start the processes by srun, or give TF_CONFIG"
        ) from error
    if len(hosts) != len(counts) or not 0 <= index < sum(counts):
        raise UserError(
            f"SLURM_STEP_NODELIST names {len(hosts)} machines, SLURM_STEP_TASKS_PER_NODE {len(counts)}, and this is "
            f"process {index} of {sum(counts)}; give TF_CONFIG instead"
        )
    first = _FIRST_PORT + number * 16 % _NUM_PORTS
    addresses = [f"{host}:{first + place}" for host, count in zip(hosts, counts, strict=True) for place in range(count)]
    return Cluster(tuple(addresses), index)


def expand_hosts(text: str) -> list[str]:
    """SLURM's short form of host names: ``gpu[01-03,7],login`` -> gpu01, gpu02, gpu03, gpu7, login."""
    if not re.fullmatch(r"([^\[\],]+(\[[\d,-]+\][^\[\],]*)?)(,[^\[\],]+(\[[\d,-]+\][^\[\],]*)?)*", text):
        raise ValueError(text)
    hosts = []
    for before, numbers, after in re.findall(r"([^\[\],]+)(?:\[([\d,-]+)\])?([^\[\],]*)", text):
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            span = range(int(first), int(last or first) + 1) if part else [None]
            hosts += [before + ("" if number is None else f"{number:0{len(first)}}") + after for number in span]
    return hosts


def expand_counts(text: str) -> list[int]:
    """SLURM's short form of numbers of processes: ``2(x3),1`` -> 2, 2, 2, 1."""
    counts = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(text)
        counts += [int(found[1])] * int(found[2] or 1)
    return counts
