"""The head of --head selected, from the options: where class centres are kept and how a step's classes are found."""

import math
import sys
from pathlib import Path

from ..classcenters import indexes
from ..classcenters.remote import RemoteStore, access
from ..classcenters.selection import Settings
from ..classcenters.spec import MatrixSpec, StepMismatch
from ..classcenters.store import Store, default_waiting_bytes, mapped_store, memory_store
from ..distribution import Towers
from ..errors import UserError
from ..heads.selected import SelectedHead
from ..losses.margin import LogitForm
from ..processes import Processes

OPTIONS = (
    "embedding_size seed optimizer weight_decay deterministic accumulate selector query num_selected num_trees probes "
    "interval adaptive center_folder center_waiting_gb param_servers param_token_file "
    "param_tls_ca param_tls_cert param_tls_key"
)
RULES = {"MOM": "momentum", "SGD": "sgd", "ADAGRAD": "adagrad"}
MATRIX = "class_centers"


def check_processes(head: str, param_servers: str | None, processes: Processes) -> None:
    """Raise UserError for the selected head on several processes without a server: each would have its own centres."""
    if head == "selected" and processes.num > 1 and not param_servers:
        raise UserError(
            f"--head selected: {processes.num} processes cannot share centres that one of them keeps in memory or in "
            f"mapped files; start `python -m towers.classcenters.server --clients {processes.num}` and give "
            "--param_servers 127.0.0.1:5570"
        )


def make_head(
    towers: Towers,
    num_classes: int,
    largest_batch: int,
    form: LogitForm,
    *,
    dtype: str,
    embedding_size: int,
    seed: int,
    optimizer: str,
    weight_decay: float,
    deterministic: bool,
    selector: str,
    query: str,
    accumulate: int,
    num_selected: int,
    num_trees: int,
    probes: int,
    interval: int,
    adaptive: bool,
    center_folder: Path | None,
    center_waiting_gb: float | None,
    param_servers: str | None,
    param_token_file: Path | None,
    param_tls_ca: Path | None,
    param_tls_cert: Path | None,
    param_tls_key: Path | None,
) -> SelectedHead:
    """Make the store, its matrix and the head.

    Raises:
      UserError: an update rule that the store has not, fewer selected classes than a batch may hold, a package that is
        not installed, servers that hold another matrix or wait for another number of processes.
    """
    if optimizer not in RULES:
        raise UserError(
            f"--optimizer {optimizer}: the selected head is trained by {', '.join(RULES)}; choose one of them, "
            "or --head replicated"
        )
    if num_selected < min(largest_batch, num_classes):
        raise UserError(
            f"--num_selected {num_selected}: a batch of {largest_batch} pictures may hold as many classes; "
            f"give --num_selected {largest_batch} or more"
        )
    if query == "features" and accumulate > 1:
        raise UserError(
            f"--accumulate {accumulate}: --query features needs the features of a whole batch before its classes are "
            "chosen; give --query center, or --accumulate 1"
        )
    if interval < 1 or num_trees < 1 or probes < 1:
        raise UserError("--interval, --num_trees and --probes must be 1 or more")
    if param_servers and center_folder:
        raise UserError("--center_folder keeps the centres here, --param_servers elsewhere; give one of them")
    entry = access(param_token_file, param_tls_ca, param_tls_cert, param_tls_key)
    store = _store(center_folder, center_waiting_gb, param_servers, entry, towers.processes, eager=deterministic)
    spec = MatrixSpec(
        rows=num_classes, columns=embedding_size, seed=seed, scale=0.1, rule=RULES[optimizer], weight_decay=weight_decay
    )
    try:
        store.create(MATRIX, spec)
    except ValueError as error:
        raise UserError(f"--param_servers {param_servers}: {error}; start servers anew for another run") from error
    except StepMismatch as error:
        raise UserError(
            f"--param_servers {param_servers}: {error}; or start the servers anew, with another --directory: "
            "the run's checkpoint holds all rows"
        ) from error
    return SelectedHead(
        towers,
        store,
        MATRIX,
        form=form,
        query=query,
        dtype=dtype,
        settings=Settings(num_selected, num_trees if selector in ("forest", "annoy") else probes, interval),
        build=_builder(selector),
        adaptive=adaptive,
        wait=deterministic,
        seed=seed,
        found=_tell,
    )


def describe(
    num_classes: int,
    *,
    embedding_size: int,
    optimizer: str,
    num_selected: int,
    deterministic: bool,
    center_folder: Path | None,
    center_waiting_gb: float | None,
    param_servers: str | None,
    **others,
) -> list[str]:
    """Lines of --dry_run. Raises UserError for a memory that is none."""
    spec = MatrixSpec(rows=num_classes, columns=embedding_size, rule=RULES.get(optimizer, "momentum"))
    place = "memory of servers" if param_servers else "host memory"
    if center_folder:
        waiting_bytes = 0 if deterministic else min(_waiting_bytes(center_waiting_gb), spec.num_bytes)
        place = f"mapped files, {waiting_bytes / 1e9:.2f} GB of changed ones in memory"
    rows = min(num_selected, num_classes) * embedding_size * 4
    return [
        f"head: {min(num_selected, num_classes):,} of {num_classes:,} classes a step, {rows / 1e6:.1f} MB of rows; "
        f"all of them, {spec.num_bytes / 1e9:.2f} GB, in {place}"
    ]


def _store(center_folder, center_waiting_gb, param_servers, entry, processes, eager) -> Store | RemoteStore:
    if param_servers:
        store = RemoteStore(param_servers.split(","), client=processes.index, **entry)
        if store.clients != processes.num:
            raise UserError(
                f"--param_servers {param_servers}: a step waits there for {store.clients} process(es), and this run "
                f"has {processes.num}; start the servers with --clients {processes.num}"
            )
        return store
    if not center_folder:
        return memory_store(eager=eager)
    return mapped_store(center_folder, eager=eager, waiting_bytes=_waiting_bytes(center_waiting_gb))


def _waiting_bytes(gigabytes):
    if gigabytes is None:
        return default_waiting_bytes()
    if not 0 <= gigabytes < math.inf:
        raise UserError(f"--center_waiting_gb {gigabytes}: 0 or more; 0 writes every change at once")
    return int(1e9 * gigabytes)


def _builder(selector):
    if selector == "random":
        return None
    build, package = indexes.INDEXES[selector]
    if selector not in indexes.available():
        raise UserError(f"--selector {selector}: {package} is not installed; pip install '.[ann]', or --selector ivf")

    def build_with(points, *, breadth, **arguments):
        setting = {"forest": "num_trees", "annoy": "num_trees", "ivf": "probes", "faiss": "probes"}.get(selector)
        return build(points, **arguments, **({setting: breadth} if setting else {}))

    return build_with


def _tell(rebuild):
    measured = rebuild.measured
    text = f"; recall {measured.recall:.3f}, probability mass {measured.mass:.3f}" if measured else ""
    drift = "" if rebuild.drift is None else f", drift {rebuild.drift:.3g}"
    print(f"index of step {rebuild.step} after {rebuild.seconds:.1f} s{text}{drift}", file=sys.stderr, flush=True)
