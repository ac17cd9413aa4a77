"""Published recipes of probes that are trained by gradient descent."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a probe's training by LARS with momentum 0.9, warm-up and a half cosine.

    The peak rate is `base_rate` for 256 examples of a batch and proportional to them.
    """

    batch_size: int
    """Examples of a step; small sets take fewer."""
    epsilon: float
    """Added to variances in standardisation."""
    is_bias_adapted: bool
    """True gives the bias a trust ratio too, and applies rates before momentum: so in the paper's
    code. MAE's leaves vectors out, and scales the momentum.
    """
    init_kernel: jax.nn.initializers.Initializer
    """Draws the classifier's kernel."""
    epochs: int = 90
    warmup_epochs: int = 10
    base_rate: float = 0.1
    min_steps: int = 1
    """Fewest steps of an epoch: small sets take smaller batches."""

    def schedule(self, steps_per_epoch: int, batch_size: int) -> optax.Schedule:
        """Returns the rate by step."""
        return optax.warmup_cosine_decay_schedule(
            0.0,
            self.base_rate * batch_size / 256,
            min(self.warmup_epochs, self.epochs - 1) * steps_per_epoch,
            self.epochs * steps_per_epoch,
        )

    def optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Returns the optimizer for a schedule of rates."""
        if self.is_bias_adapted:
            return optax.lars(schedule, trust_coefficient=0.001, momentum=0.9)
        ratios = optax.scale_by_trust_ratio(trust_coefficient=0.001)
        return optax.chain(
            optax.masked(ratios, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
            optax.trace(0.9),
            optax.scale_by_learning_rate(schedule),
        )


_NORMAL = jax.nn.initializers.normal(0.01)

MAE = Recipe(batch_size=16_384, epsilon=1e-6, is_bias_adapted=False, init_kernel=_NORMAL)
"""Linear probing of MAE (He et al. 2022, appendix A.1, and its code's FINETUNE.md)."""
M3AE = Recipe(
    batch_size=2_048,
    epsilon=1e-5,
    is_bias_adapted=True,
    init_kernel=jax.nn.initializers.lecun_normal(),
)
"""Linear probing of the paper's code (linear_main.py)."""
EFFICIENT = Recipe(
    batch_size=4_096, epsilon=1e-6, is_bias_adapted=False, init_kernel=_NORMAL, min_steps=16
)
"""Efficient probing (Psomas et al. 2026). Theirs takes 313 steps for an epoch of ImageNet; one step
for an epoch of a small set would not train queries.
"""

RATE_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Multiples of a recipe's rate that are trained in one pass: published rates are for ImageNet, and
small sets take fewer steps.
"""
