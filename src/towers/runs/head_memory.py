"""Bytes a tower needs for its class weights, and how many identities a card can hold."""

import subprocess
from dataclasses import dataclass

import tensorflow as tf

from ..errors import UserError
from ..host_memory import host_memory_bytes

# Copies of the touched rows at the peak of a step: their gradient, what it is made from, and what replaces it.
ROW_COPIES = 3
# Copies of the logits at the peak of a step: cosines, logits, shares, and their gradient.
LOGIT_COPIES = 4


@dataclass(frozen=True)
class HeadMemory:
    """Bytes on one tower. ``rows``: gradients and other copies of the rows of a step."""

    weights: int
    momentum: int
    rows: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.momentum + self.rows + self.logits


def check_options(*, identities: int | None, card_memory: float | None, dry_run: bool) -> None:
    """Raise UserError for what only ``--dry_run`` reckons with, given to a run that trains."""
    if (identities or card_memory) and not dry_run:
        raise UserError(
            "--identities and --card_memory tell what --dry_run shall reckon with; add it, or leave them out"
        )


def head_memory(
    identities: int,
    *,
    head: str,
    num_towers: int,
    batch: int,
    embedding_size: int,
    slots: int,
    sub_centres: int = 1,
    sample_rate: float = 1.0,
    chunk: int = 0,
    value_bytes: int = 4,
) -> HeadMemory:
    """What a head of so many identities takes of each tower.

    Args:
      head: replicated, sharded or sampled; batch: B, of all towers; slots: optimizer values a weight.
      chunk: classes whose logits are held at a time, 0: all.
    """
    split = 1 if head == "replicated" else num_towers
    classes = -(-identities // split)
    row_bytes = embedding_size * sub_centres * value_bytes
    seen = round(classes * sample_rate) if head == "sampled" else classes
    examples = batch // num_towers if head == "replicated" else batch
    held = min(seen, chunk) if chunk else seen
    return HeadMemory(
        weights=classes * row_bytes,
        momentum=slots * classes * row_bytes,
        rows=(ROW_COPIES + (head == "sampled") * (1 + slots)) * seen * row_bytes,
        logits=LOGIT_COPIES * held * sub_centres * examples * value_bytes,
    )


def most_identities(free: int, **settings) -> int:
    """The largest number of identities whose ``head_memory`` fits into ``free`` bytes a tower."""
    lowest, highest = 0, 1
    while highest < 2**40 and head_memory(highest, **settings).total <= free:
        lowest, highest = highest, 2 * highest
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        if head_memory(middle, **settings).total <= free:
            lowest = middle
        else:
            highest = middle
    return lowest


def memory_at_hand(num_towers: int) -> float | None:
    """GB of a tower: of the smallest card that nvidia-smi shows, or a share of this machine's; None: not known."""
    if not tf.config.list_physical_devices("GPU"):
        return host_memory_bytes() / num_towers / 1e9
    question = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return min(int(mebibytes) for mebibytes in answer.split()) * 2**20 / 1e9


def describe(
    identities: int, network_bytes: int, card_memory: float | None, accumulate: int = 1, **settings
) -> list[str]:
    """Lines of --dry_run.

    Args:
      network_bytes: what the network takes of a tower; card_memory: GB of a tower, None: not known.
      settings: the other arguments of ``head_memory``.
    """
    settings["batch"] //= accumulate
    memory = head_memory(identities, **settings)
    parts = {"weights": memory.weights, "momentum": memory.momentum, "gradients": memory.rows, "logits": memory.logits}
    lines = [
        f"class weights of {identities:,} identities, {settings['head']}, a tower: "
        + ", ".join(f"{name} {value / 1e6:.0f} MB" for name, value in parts.items())
    ]
    if card_memory is None:
        return [*lines, "with --card_memory GB: up to how many identities these towers go"]
    # A tenth is left to the libraries and to what the allocator cannot use.
    usable = int(0.9 * card_memory * 1e9)
    needed = network_bytes + memory.total
    most = most_identities(usable - network_bytes, **settings)
    fits = "fits" if needed <= usable else "does not fit"
    return [
        *lines,
        f"a tower needs {needed / 1e9:.2f} GB of {usable / 1e9:.2f} GB (0.9 of {card_memory:g} GB): {fits}; "
        f"these towers go up to {most:,} identities",
    ]
