"""A whole run: from options to a trained model folder, the same for every training script."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import checkpoints, export, networks, plots
from ..datasets.cropping import RandomResizedCrop
from ..datasets.pipeline import Quarantine, train_dataset
from ..distribution import Towers
from ..errors import BadData, StorageError, UserError
from ..heads.replicated import ReplicatedHead
from ..processes import ALONE, Processes
from ..summaries import RunLog, highest_before
from ..training import loop, optimizers, state
from ..training.averaging import WeightAverage
from ..training.loss_scale import LossScale
from ..training.step import Head, Objective, make_train_step
from ..training.thor import Thor, warn_of_failures
from .folder import RunFolder
from .plan import Plan

OPTIONS = (
    "optimizer thor_optimizer loss_scale weight_decay clip_norm moving_average_decay run_dir checkpoint_every_n_steps "
    "keep_checkpoints validate_every_n_epochs log_every log_histograms max_bad_fraction audit_data time_towers"
)
NETWORK_OPTIONS = (
    "network use_fixed_image_standardization image_size embedding_size embedding_head norm keep_probability sync_bn "
    "seed"
)
THOR_OPTIONS = "optimizer thor_interval thor_trace_rule thor_damping thor_damping_decay thor_kl_clip thor_map_side"
POLICIES = {"float32": "float32", "float64": "float64", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def set_up(
    *,
    towers: int | None,
    reduction: str = "cpu",
    precision: str,
    deterministic: bool = False,
    seed: int = 0,
    processes: Processes = ALONE,
) -> Towers:
    """Make the towers, and set precision, determinism and seeds; the first call of a script.

    Raises:
      UserError: more towers than GPUs.
    """
    result = Towers.create(towers, reduction, processes)
    keras.mixed_precision.set_dtype_policy(POLICIES[precision])
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return result


def network_arguments(*, network: str, use_fixed_image_standardization: bool, **others) -> dict:
    """The arguments of ``networks.build``, from the options; ``model.json`` records them."""
    return {"name": network, "standardization": "fixed" if use_fixed_image_standardization else "per_image", **others}


def make_thor(
    towers: Towers,
    network: keras.Model,
    heads: Sequence[ReplicatedHead],
    epoch_size: int,
    *,
    optimizer: str,
    thor_interval: int,
    thor_trace_rule: tuple[float, float] | None,
    thor_damping: float,
    thor_damping_decay: float,
    thor_kl_clip: float,
    thor_map_side: int,
) -> Thor | None:
    """THOR for a network and its linear heads where ``optimizer`` is THOR, else None.

    Raises:
      UserError: a value out of range.
    """
    if optimizer != optimizers.THOR:
        return None
    if thor_map_side < 0:
        raise UserError(f"--thor_map_side {thor_map_side}: give 1 or more positions, or 0 for all")
    return Thor(
        towers,
        network,
        heads,
        damping=thor_damping,
        damping_decay=thor_damping_decay,
        epoch_size=epoch_size,
        interval=thor_interval,
        trace_rule=thor_trace_rule,
        largest_side=thor_map_side or None,
        kl_clip=thor_kl_clip,
    )


def train(
    *,
    towers: Towers,
    plan: Plan,
    source,
    order,
    make_audit: Callable,
    network: keras.Model,
    network_arguments: dict,
    objective: Objective,
    trained: list,
    decayed: list,
    statistics: list,
    other_state: dict,
    learning_rate: Callable[[int], float | None],
    optimizer: str,
    thor_optimizer: str,
    loss_scale: float | None,
    weight_decay: float,
    clip_norm: float,
    moving_average_decay: float,
    load_size: int,
    crop: RandomResizedCrop | None = None,
    float16: bool,
    validators: Iterable[Callable[[RunLog, int], dict]],
    options: dict,
    run_dir: Path | None,
    checkpoint_every_n_steps: int,
    keep_checkpoints: int,
    validate_every_n_epochs: int,
    log_every: int,
    log_histograms: bool,
    max_bad_fraction: float,
    audit_data: bool,
    time_towers: bool,
    model_facts: dict,
    warn: Callable[[dict], str | None] | None = None,
    classifier: Callable[[], tuple[np.ndarray, np.ndarray | None]] | None = None,
    head: Head | None = None,
    accumulate: int = 1,
    validate_every_n_steps: int = 0,
    best_by: str | None = None,
    thor: Thor | None = None,
) -> Path:
    """Train, validate and export; goes on where the run folder's newest checkpoint ends.

    Args:
      plan: steps and batch.
      source: the pictures (``datasets``); ``order``: position in the stream -> record.
      make_audit: (path, first step) -> an ``Audit`` of that order, for --audit_data.
      network_arguments: what ``networks.build`` was called with, for ``model.json``.
      trained: trainable variables; ``decayed``: those with weight decay; ``statistics``: BN moving statistics.
      other_state: name -> variable beside network and optimizer, for the checkpoint (head, class centres).
      load_size: side that pictures are brought to; ``crop``: what training takes of them instead.
      validators: functions of (log, step) that return metrics; they see the averaged weights.
      options: the resolved options, for ``options.json``.
      model_facts: what else ``model.json`` records.
      warn: the metrics of a logged step -> a line for the user, or None.
      classifier: gives the class weights [C, D] and bias [C] for the model folder, None: it gets none.
      thor: what ``make_thor`` made; ``thor_optimizer`` then takes its gradients.
      loss_scale: fixed factor of the mean loss of a tower's pictures; None: 1, with float16 one that is steered.
      head, accumulate: see ``make_train_step``; the head's variables are among ``other_state``.
      best_by: the validation metric whose highest value keeps its model in ``best/``.

    Returns:
      The run folder.
    """
    if loss_scale is not None and not 0 < loss_scale < float("inf"):
        raise UserError(f"--loss_scale {loss_scale}: must be above 0; 128 and 1024 are published ones")
    with towers.scope():
        tower_optimizer = optimizers.build(optimizers.rule_name(optimizer, thor_optimizer))
        tower_optimizer.build(trained)
        average = WeightAverage(trained, moving_average_decay) if moving_average_decay else None
        scale = LossScale() if float16 else None
        if loss_scale is not None:
            # Ours multiplies the sum over a tower's pictures.
            scale = LossScale(loss_scale * towers.num_towers / plan.batch_size, growth_interval=None)
    variables = {
        **state.named("network", network.variables),
        **{f"optimizer/{name}": variable for name, variable in optimizers.state(tower_optimizer).items()},
        **other_state,
    }
    if average is not None:
        variables |= {f"average/{name}": variable for name, variable in average.variables().items()}
    if thor is not None:
        variables |= {f"thor/{name}": variable for name, variable in thor.variables().items()}
    if scale is not None and loss_scale is None:
        variables |= {f"loss_scale/{name}": variable for name, variable in scale.variables().items()}

    processes = towers.processes
    folder = RunFolder(run_dir, options, processes)
    fingerprint = source.fingerprint()
    processes.check_alike("fingerprint of the pictures", fingerprint, BadData, "; give every machine the same pictures")
    first_step, complaints = _resume(folder, variables, fingerprint)
    processes.check_alike("step of the newest whole checkpoint", first_step, StorageError, "; start again in a minute")
    log = RunLog(folder.own, first_step=first_step, last_step=plan.last_step, tensorboard=processes.is_chief)
    with contextlib.closing(folder), contextlib.closing(log):
        for complaint in complaints:
            log.text(complaint)
        if first_step and _is_finished(folder.path, first_step, plan.last_step, learning_rate):
            log.text(f"{folder.path}: finished after {first_step} steps; a larger --max_epochs or --max_steps goes on")
            return folder.path
        log.text(
            f"{folder.path}: {'going on at' if first_step else 'from'} step {first_step}, "
            f"{len(source)} images of {source.num_classes} classes, {towers.num_towers} tower(s) x "
            f"{plan.batch_size // towers.num_towers} images, {plan.epoch_size} steps an epoch; "
            f"watch with: {_tensorboard(folder.path)}"
        )
        quarantine = Quarantine(source)
        batches = towers.feed(
            lambda local_towers: train_dataset(
                source,
                order,
                first_step=first_step,
                global_batch=plan.batch_size,
                towers=local_towers,
                num_towers=towers.num_towers,
                load_size=load_size,
                quarantine=quarantine,
                crop=crop,
            )
        )
        train_step = make_train_step(
            towers,
            network,
            objective,
            tower_optimizer,
            variables=trained,
            decayed=decayed,
            statistics=statistics,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            average=average,
            loss_scale=scale,
            time_towers=time_towers,
            head=head,
            accumulate=accumulate,
            thor=thor,
        )

        if hasattr(head, "around"):
            train_step = head.around(train_step)
            batches = head.follow(batches, first_step)

        def save(step):
            facts = {"data": fingerprint, "options": options, "towers": towers.num_towers}
            arrays = state.read(variables)
            if processes.is_chief:
                checkpoints.save(folder.checkpoints, step, arrays, facts, keep=keep_checkpoints)
            else:
                _hand_over(arrays)

        def validate(step, epoch):
            with average.in_use() if average is not None else contextlib.nullcontext():
                metrics = {"step": step, "epoch": round(epoch, 4)}
                for validator in validators:
                    metrics |= validator(log, step)
                facts = {"network": network_arguments, "load_size": load_size, "step": step, **model_facts}
                facts = {**facts, "validation": metrics}
                model = networks.inference(network), facts, None if classifier is None else classifier()
                if processes.is_chief:
                    export.save_model(folder.path / "model", *model)
                if (
                    processes.is_chief
                    and best_by in metrics
                    and metrics[best_by] > highest_before(folder.path, best_by)
                ):
                    export.save_model(folder.path / "best", *model)
            log.validation(metrics)
            if log_histograms:
                log.histograms(trained, step)
            if processes.is_chief:
                plots.curves(folder.path / "metrics.jsonl", folder.path / "curves.png")

        def seen(step, batch):
            if step == first_step:
                log.images("training pictures", towers.local_values(batch["image"])[0].numpy(), step)
            if audit_data:
                values = (towers.local_values(batch[name]) for name in ("record", "position"))
                own = [[each.numpy().tolist() for each in both] for both in zip(*values, strict=True)]
                fed = [both for of_process in processes.gather(own) for both in of_process]
                for tower, (records, positions) in enumerate(fed if audit is not None else []):
                    audit.add(step, tower, np.array(records), np.array(positions))

        audit = make_audit(folder.path / "audit.tsv", first_step) if audit_data and processes.is_chief else None
        log.graph(partial(network, training=False), tf.TensorSpec([1, *network.input_shape[1:]], network.input_dtype))
        steps = loop.fit(
            train_step,
            batches,
            learning_rate=learning_rate,
            first_step=first_step,
            last_step=plan.last_step,
            epoch_size=plan.epoch_size,
            batch_size=plan.batch_size,
            log=log,
            log_every=log_every,
            save=save,
            checkpoint_every_n_steps=checkpoint_every_n_steps,
            validate=validate,
            validate_every_n_epochs=validate_every_n_epochs,
            check_data=lambda: quarantine.check(max_bad_fraction),
            seen=seen,
            processes=processes,
            records_of_step=lambda step: _names(source, order, step, plan.batch_size),
            warn=_joined([watch for watch in (warn, warn_of_failures) if watch is not None]),
            overflow_allowed=float16,
            validate_every_n_steps=validate_every_n_steps,
        )
        if audit is not None:
            audit.close()
        if quarantine.bad:
            log.text(f"{len(quarantine.bad)} unreadable picture(s) replaced: {quarantine.first_paths(10)}")
        log.text(f"{steps} steps done: {folder.path}; model: {folder.path / 'model'}; curves: curves.png")
        log.text(_tensorboard(folder.path))
    return folder.path


def _joined(watches: list[Callable[[dict], str | None]]) -> Callable[[dict], str | None]:
    """The lines of all watches, or None."""
    return lambda metrics: "\n".join(filter(None, (watch(metrics) for watch in watches))) or None


def start_from(folder: Path, network: keras.Model) -> None:
    """Give ``network`` the weights of a run or model folder (--pretrained_model); heads and auxiliary parts start anew.

    Raises:
      UserError: no model there, or one of another network.
      StorageError: weights that are damaged.
    """
    path, facts = export.read_facts(folder)
    exported = networks.inference(network).variables
    state.write(state.named("network", exported), export.read_weights(path, facts), str(path))


def _resume(folder: RunFolder, variables: dict, fingerprint: str) -> tuple[int, list[str]]:
    checkpoint, complaints = checkpoints.newest(folder.checkpoints)
    if checkpoint is None:
        if complaints:
            raise UserError(f"no checkpoint of {folder.path} is whole: {complaints[0]}; start another --run_dir")
        return 0, []
    if checkpoint.facts["data"] != fingerprint:
        raise BadData(
            f"{folder.path} was trained on other pictures than are there now (names or sizes differ), so it cannot go "
            "on exactly; put them back, or start another --run_dir with --pretrained_model"
        )
    in_pieces = [name for name, variable in variables.items() if hasattr(variable, "chunks")]
    state.write(variables, checkpoint.read(in_pieces), str(checkpoint.path))
    return checkpoint.step, complaints


def _hand_over(arrays: dict) -> None:
    """Give the chief the rows that this process holds: they travel while all processes go through the pieces."""
    for array in arrays.values():
        if hasattr(array, "chunks"):
            for _ in array.chunks():
                continue


def _is_finished(run_dir: Path, step: int, last_step: int | None, learning_rate) -> bool:
    ended = (last_step is not None and step >= last_step) or learning_rate(step) is None
    try:
        return ended and export.read_facts(run_dir)[1]["step"] == step
    except UserError:
        return False


def _tensorboard(run_dir: Path) -> str:
    program = Path(sys.executable).with_name("tensorboard")
    with contextlib.suppress(ValueError):
        program = program.relative_to(Path.cwd())
    return f"{program if program.exists() else 'tensorboard'} --logdir {run_dir / 'tensorboard'}"


def _names(source, order, step: int, batch_size: int) -> str:
    records = order.records(np.arange(step * batch_size, (step + 1) * batch_size))
    shown = ", ".join(str(source.where(int(record))) for record in records[:5])
    return shown if len(records) <= 5 else f"{shown} and {len(records) - 5} more"
