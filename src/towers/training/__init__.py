"""Training: the step, the optimizers and the learning rate."""
