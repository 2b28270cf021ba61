"""The chart of `head.py`: memory and images/s over the number of identities, for each head."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from towers.runs.head_memory import head_memory

HEADS = ("replicated", "sharded", "sampled")
IDENTITIES = (3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
NUM_TOWERS, SAMPLE_RATE = 2, 0.1
# A process has TensorFlow beside its head, and first weights in pieces: bytes.
RUNTIME = 1_500_000_000
# A model of a straight line needs two.
FEWEST_MEASURED = 2


def bytes_a_tower(head_name: str, identities: int, *, batch: int, embedding_size: int) -> int:
    """What `train_multi_gpu.py --dry_run` says of a head trained by momentum."""
    return head_memory(
        identities,
        head=head_name,
        num_towers=NUM_TOWERS,
        batch=batch,
        embedding_size=embedding_size,
        slots=1,
        sample_rate=SAMPLE_RATE,
    ).total


def counts_that_fit(head_name: str, free: float, **sizes) -> list[int]:
    """Those of IDENTITIES whose heads on all towers, which share this machine, and the runtime fit into free bytes."""
    fits = [
        count for count in IDENTITIES if NUM_TOWERS * bytes_a_tower(head_name, count, **sizes) + RUNTIME <= 0.9 * free
    ]
    return fits if len(fits) >= FEWEST_MEASURED else list(IDENTITIES[:FEWEST_MEASURED])


def cost_model(counts: list[int], seconds: list[float]) -> Callable[[float], float]:
    """Seconds of a step over C, fixed + slope * C, by least squares of the relative errors; neither below 0.

    Products and bytes of a step both grow with the pairs of examples and classes, that is with C.
    """
    counts, seconds = np.asarray(counts, float), np.asarray(seconds, float)
    terms = np.stack([np.ones_like(counts), counts], axis=1) / seconds[:, None]
    fixed, slope = np.linalg.lstsq(terms, np.ones_like(counts), rcond=None)[0]
    if fixed < 0:
        ratios = counts / seconds
        fixed, slope = 0.0, ratios.sum() / (ratios**2).sum()
    if slope < 0:
        fixed, slope = 1 / np.mean(1 / seconds), 0.0
    return lambda count: fixed + slope * count


def draw(path: Path, measured: dict[str, dict[int, float]], *, batch: int, embedding_size: int) -> dict:
    """Draw both plots to a PNG from seconds of a step by head and count; what is not measured comes from the model.

    Returns:
      head -> a list of {identities, bytes_a_tower, images_per_second, measured}.
    """
    points = {}
    for head_name, seconds in measured.items():
        model = cost_model(list(seconds), list(seconds.values()))
        points[head_name] = [
            {
                "identities": count,
                "bytes_a_tower": bytes_a_tower(head_name, count, batch=batch, embedding_size=embedding_size),
                "images_per_second": batch / seconds.get(count, model(count)),
                "measured": count in seconds,
            }
            for count in IDENTITIES
        ]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    memory, speed = figure.subplots(1, 2)
    for number, (head_name, line) in enumerate(points.items()):
        colour = f"C{number}"
        memory.loglog(
            [point["identities"] for point in line],
            [point["bytes_a_tower"] / 1e9 for point in line],
            color=colour,
            label=head_name,
        )
        known = [point for point in line if point["measured"]]
        # The model's line begins at the last measured point, so that none of it hides a measurement.
        rest = known[-1:] + [point for point in line if not point["measured"]]
        for part, style, label in (
            (known, {"marker": "o"}, f"{head_name}, measured"),
            (rest, {"linestyle": ":", "marker": "o", "markerfacecolor": "none"}, f"{head_name}, cost model"),
        ):
            speed.loglog(
                [point["identities"] for point in part],
                [point["images_per_second"] for point in part],
                color=colour,
                label=label,
                **style,
            )
    sampled = f"sampled: rate {SAMPLE_RATE}; batch {batch}, {embedding_size} values, {NUM_TOWERS} towers"
    memory.set(xlabel="identities", ylabel="GB a tower, as --dry_run has it", title="Memory of the head")
    speed.set(xlabel="identities", ylabel="images/s through the head", title=sampled)
    for axes in (memory, speed):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return points
