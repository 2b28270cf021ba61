"""Options that count only beside others: given without those, they are said to do nothing instead of being ignored."""

import argparse

_THOR = "thor_optimizer thor_interval thor_trace_rule thor_damping thor_damping_decay thor_kl_clip thor_map_side"
# Option -> what it needs: other options with their values, None: any value but none, 0 and False.
NEEDS = {
    "beta": {"retrieval_loss": ("margin",)},
    "mining": {"retrieval_loss": ("triplet",)},
    "alpha": {"soft_margin": (False,)},
    **dict.fromkeys(_THOR.split(), {"optimizer": ("THOR",)}),
    "learning_rate_end_epoch": {"learning_rate_schedule": ("thor",)},
    "learning_rate_halving_epochs": {"learning_rate_schedule": ("thor",)},
    # Linear refuses another power than 1 itself.
    "learning_rate_power": {"learning_rate_schedule": ("polynomial", "thor", "linear")},
    "lr_steps": {"learning_rate_schedule": ("step",)},
    "learning_rate_decay_epochs": {"learning_rate_schedule": ("exponential",)},
    "learning_rate_decay_factor": {"learning_rate_schedule": ("exponential",)},
    "min_crop_area": {"random_resized_crop": None},
    "center_loss_alfa": {"center_loss_factor": None},
    "prelogits_norm_p": {"prelogits_norm_loss_factor": None},
    "filter_percentile": {"filter_filename": None},
    "min_nrof_val_images_per_class": {"validation_set_split_ratio": None},
    **dict.fromkeys(
        "selector query num_selected interval adaptive center_folder param_servers".split(), {"head": ("selected",)}
    ),
    "num_trees": {"head": ("selected",), "selector": ("forest", "annoy")},
    "probes": {"head": ("selected",), "selector": ("ivf", "faiss")},
    "center_waiting_gb": {"center_folder": None, "deterministic": (False,)},
    **dict.fromkeys("param_token_file param_tls_ca param_tls_cert param_tls_key".split(), {"param_servers": None}),
    "identities": {"dry_run": None},
    "card_memory": {"dry_run": None},
}


def options_without_effect(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """A line for each option that has another value than its default, and does nothing beside the others."""
    values = dict(vars(arguments))
    if values.get("learning_rate_schedule_file"):
        # A file's rates decay in stairs, whatever the schedule.
        values["learning_rate_schedule"] = "exponential"
    lines = []
    for name, needs in NEEDS.items():
        if name not in values or values[name] == parser.get_default(name):
            continue
        for other, accepted in needs.items():
            if other in values and not (values[other] if accepted is None else values[other] in accepted):
                lines.append(f"--{name} does nothing {_beside(other, values[other])}")
                break
    return lines


def _beside(name: str, value) -> str:
    if value is True:
        return f"with --{name}"
    return f"with --{name} {value}" if value else f"without --{name}"
