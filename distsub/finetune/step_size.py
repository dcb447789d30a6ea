"""How far a subspace step should go: one relative number, eta, that serves every d, model and normalisation.

Adam moves each trained number by about its learning rate, whatever the gradient's size. With g the gradient of all
D parameters, full fine-tuning therefore lowers the loss to first order by lr_full |g|_1, about
lr_full sqrt(2/pi) sqrt(D) |g|_2 for a gradient of Gaussian shape. In a subspace it is lr |P^T g|_1, about
lr sqrt(2/pi) sqrt(d) |P^T g|_2. Equating the two:

    global isometry:   E|P^T g|^2 = (d / D) |g|^2                 lr = lr_full D / d
    per tensor:        E|P^T g|^2 = d sum_i |g_i|^2 / D_i         lr = lr_full D / (d sqrt(T)),  T tensors,

the second with gradient mass spread over tensors as parameters are. eta scales the match: full fine-tuning's
direction is a good one, a random subspace's share of it is not, so steps of the same first-order decrease are
longer (by sqrt(D / d)) and bend more; eta of 0.03 to 1 has been seen to work (docs/log.md).
"""

SCALE_STEP = 0.01
"""Peak learning rate of SAID scales at eta = 1. They multiply a layer's whole update and start at 1: a step is
a relative change, so it does not depend on D or d."""


def step_size(
    eta: float, learning_rate: float, num_params: int, d: int, normalization: str | None, num_tensors: int
) -> float:
    """Compute the peak learning rate of subspace coordinates.

    Args:
        eta: Relative step; 1 matches full fine-tuning's first-order decrease.
        learning_rate: The learning rate of full fine-tuning that is matched.
        num_params: D.
        d: Number of coordinates.
        normalization: "global" or "per_tensor".
        num_tensors: T, tensors in the subspace; read for "per_tensor".

    Returns:
        A learning rate for Adam on the coordinates.
    """
    matched = eta * learning_rate * num_params / d
    return matched / num_tensors**0.5 if normalization == "per_tensor" else matched


def learned_step_size(eta: float, learning_rate: float, num_params: int, d: int) -> float:
    """Compute the peak learning rate of the coordinates of a learned subspace.

    A learned subspace is made of where full fine-tuning went, so |P^T g| is taken as |g| where a random one has
    sqrt(d / D) |g|, and matching the first-order decrease gives lr = lr_full sqrt(D / d): with P isometric, also the
    step of the same length as full fine-tuning's. Zhang et al. 2023 use 0.01; this gives 0.0094 for a layer of
    BERT-base (D = 7.1 M) at d = 32 and lr_full = 2e-5.

    Args:
        eta: Relative step; 1 is the match.
        learning_rate: The learning rate of full fine-tuning that is matched.
        num_params: D, over all layers.
        d: Number of coordinates, over all layers.

    Returns:
        A learning rate for Adam on the coordinates.
    """
    return eta * learning_rate * (num_params / d) ** 0.5
