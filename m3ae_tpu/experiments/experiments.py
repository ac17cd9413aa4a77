"""The table of the paper's experiments (Geng et al. 2022, arXiv 2205.14204).

Figures were read off the paper's plots. Where two versions of the paper disagree both stand here.
"""

from collections.abc import Mapping
from typing import Any

from m3ae_tpu.experiments.variant import Experiment, Finding, Setting, Variant

JUNE, LATER = "June 2022", "later version, second-hand"
UNTRAINED = "untrained encoder"
"""Name of the base run's encoder before its first step, beside the variants."""
_PAPER = "arXiv 2205.14204"
_STEPS_OF_EPOCHS = {25: 73_000, 50: 146_000, 100: 292_000}
_SIZES = {
    # name: full config; starter's layers, width, heads
    "S": ("m3ae_small", (3, 64, 2)),
    "B": ("m3ae_base", (4, 128, 4)),
    "L": ("m3ae_large", (5, 192, 6)),
}
IMAGES_ALONE: Mapping[str, Any] = {"data.sources.0.kind": "image", "model.vocab_size": 0}
"""MAE is the same code with text off."""


def _probe(june: float, later: float | None = None) -> dict[str, dict[str, float]]:
    return {"linear_probe": {JUNE: june} | ({LATER: later} if later is not None else {})}


def _length(epochs: int) -> dict[str, Any]:
    # The warm-up is five epochs, whatever the length.
    return {"num_steps": _STEPS_OF_EPOCHS[epochs], "optimizer.warmup_fraction": 5 / epochs}


def _variant(
    name: str,
    *,
    starter: Mapping[str, Any] | None = None,
    full: tuple[str, Mapping[str, Any]] | None,
    starter_config: str = "paper_starter",
    **more: Any,
) -> Variant:
    return Variant(
        name=name,
        starter=Setting(config=starter_config, overrides=starter or {}),
        full=Setting(config=full[0], overrides=full[1]) if full else None,
        **more,
    )


def _epochs() -> Experiment:
    paper = {
        "M3AE": {25: 62.9, 50: 64.1, 100: 64.8},
        "MAE": {25: 47.8, 50: 50.1, 100: 55.2},
    }
    variants = []
    for method, accuracies in paper.items():
        text_off = IMAGES_ALONE if method == "MAE" else {}
        for epochs, accuracy in accuracies.items():
            variants.append(
                _variant(
                    f"{method}, {epochs} epochs",
                    starter=text_off,
                    full=("m3ae_large", {**_length(epochs), **text_off}),
                    length=epochs / 100,
                    paper=_probe(accuracy),
                )
            )
    return Experiment(
        name="epochs",
        title="Length of pre-training",
        lead="ViT-L/16 on CC12M. Here 25, 50 and 100 epochs are a quarter, a half and all of the "
        "steps.",
        source=f"{_PAPER}, Figure 4",
        variants=tuple(variants),
        findings=(
            Finding(
                text="Captions help at equal epochs",
                better="M3AE, 100 epochs",
                worse="MAE, 100 epochs",
            ),
            Finding(
                text="M3AE learns from more epochs",
                better="M3AE, 100 epochs",
                worse="M3AE, 25 epochs",
            ),
            Finding(
                text="A quarter of the epochs with captions is better than all without",
                better="M3AE, 25 epochs",
                worse="MAE, 100 epochs",
            ),
        ),
    )


def _size() -> Experiment:
    paper = {"M3AE": (38.2, 58.2, 64.1), "MAE": (32.1, 44.2, 50.1)}
    variants = []
    for method, accuracies in paper.items():
        text_off = IMAGES_ALONE if method == "MAE" else {}
        for (size, (config, encoder)), accuracy in zip(_SIZES.items(), accuracies, strict=True):
            layers, width, heads = encoder
            sizes = {
                "model.encoder.num_layers": layers,
                "model.encoder.width": width,
                "model.encoder.num_heads": heads,
                "model.unroll": layers,
            }
            variants.append(
                _variant(
                    f"{method}, {size}",
                    starter={**sizes, **text_off},
                    full=(config, text_off),
                    paper=_probe(accuracy),
                )
            )
    return Experiment(
        name="size",
        title="Size of the encoder",
        lead="ViT-S, -B and -L at 50 epochs of CC12M. Here the encoders have 3, 4 and 5 blocks of "
        "64, 128 and 192 channels.",
        source=f"{_PAPER}, Figure 4",
        variants=tuple(variants),
        findings=(
            Finding(text="Captions help the small encoder", better="M3AE, S", worse="MAE, S"),
            Finding(text="Captions help the large encoder", better="M3AE, L", worse="MAE, L"),
            Finding(text="A larger M3AE is better", better="M3AE, L", worse="M3AE, S"),
        ),
    )


def _baselines() -> Experiment:
    long = _length(100)
    return Experiment(
        name="baselines",
        title="Beside other objectives",
        lead="ViT-B/16 at 100 epochs of CC12M. CLIP has an image tower and a text tower of the "
        "encoder's size; supervised is the image tower trained on the classes themselves.",
        source=f"{_PAPER}, Figure 3",
        variants=(
            _variant("MAE", starter=IMAGES_ALONE, full=("mae_base", long), paper=_probe(45.2)),
            _variant("M3AE", full=("m3ae_base", long), paper=_probe(59.4)),
            _variant(
                "CLIP",
                starter={"optimizer.accumulation_steps": 1},
                full=None,
                method="contrastive",
                paper=_probe(69.0),
                note="The paper's value equals SLIP's published CLIP on CC12M, so it looks quoted. "
                "The objective here sees the whole batch of one process; it is not launched on "
                "pods.",
            ),
            _variant(
                "supervised",
                full=None,
                method="supervised",
                paper=_probe(81.8),
                note="The paper's value is a published one. At the starter scale the image tower "
                "learns the classes of the training images; it is not launched on pods.",
            ),
        ),
        findings=(
            Finding(text="Captions help", better="M3AE", worse="MAE"),
            Finding(text="CLIP is above M3AE", better="CLIP", worse="M3AE"),
            Finding(text="Labels are better still", better="supervised", worse="CLIP"),
        ),
    )


def _mixture(percent: int, *, batch_size: int, multiple: int) -> dict[str, Any]:
    """Returns the fields of a share of pairs; the rest are images alone.

    The loss is that of the paper's code: the mean over all images, a missing caption counted as 0.

    Args:
        percent: Share of the images that have captions.
        batch_size: Rows of a batch.
        multiple: Micro-batches, or chips: they divide the rows of each kind.
    """
    share = percent / 100
    num_pairs = round(share * batch_size / multiple) * multiple
    return {
        "data.sources.0.split": (0.0, share),
        "data.sources.0.weight": float(num_pairs),
        "data.sources.1.split": (share, 1.0),
        "data.sources.1.weight": float(batch_size - num_pairs),
        "loss.image_weight": share,
        "loss.text_weight": round(share / 2, 3),
        "loss.unpaired_image_weight": round(1 - share, 3),
    }


def _paired_share() -> Experiment:
    variants = [
        _variant(
            "0 %, images alone",
            starter=IMAGES_ALONE,
            full=("mae_base", _length(100)),
            paper=_probe(45.2),
        )
    ]
    for percent, accuracy in {10: 53.3, 20: 54.0, 30: 54.5}.items():
        variants.append(
            _variant(
                f"{percent} %",
                starter=_mixture(percent, batch_size=40, multiple=4),
                starter_config="paper_starter_mixed",
                full=("paper_base_mixed", _mixture(percent, batch_size=4_096, multiple=32)),
                paper=_probe(accuracy),
            )
        )
    variants.append(_variant("100 %", full=("m3ae_base", _length(100)), paper=_probe(59.4)))
    return Experiment(
        name="paired_share",
        title="Share of images with captions",
        lead="ViT-B/16 at 100 epochs of CC12M; the images without captions are seen alone. A share "
        "of 0 is the paper's MAE.",
        source=f"{_PAPER}, Figure 3",
        variants=tuple(variants),
        findings=(
            Finding(text="A tenth of the captions helps", better="10 %", worse="0 %, images alone"),
            Finding(text="All captions help more", better="100 %", worse="10 %"),
        ),
        accelerator="v5litepod-32",
    )


def _text_mask() -> Experiment:
    paper = {15: (53.3, 45.9), 50: (62.5, 61.0), 75: (64.1, 64.1), 90: (62.6, 63.9)}
    return Experiment(
        name="text_mask",
        title="Share of hidden words",
        lead="ViT-L/16 at 50 epochs of CC12M. Two versions of the paper give other numbers for the "
        "same shape: 50 to 90 % are good, 15 % is bad.",
        source=f"{_PAPER}, ablation of the text mask ratio",
        variants=tuple(
            _variant(
                f"{percent} %",
                starter={"masking.text_mask_ratio": percent / 100},
                full=("m3ae_large", {"masking.text_mask_ratio": percent / 100}),
                paper=_probe(*accuracies),
            )
            for percent, accuracies in paper.items()
        ),
        findings=(
            Finding(text="75 % is better than 15 %", better="75 %", worse="15 %"),
            Finding(text="50 % is better than 15 %", better="50 %", worse="15 %"),
            Finding(text="90 % is better than 15 %", better="90 %", worse="15 %"),
        ),
    )


def _both(paper: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[Variant, ...]:
    """Returns MAE and M3AE as the paper's 50 epochs of ViT-L train them."""
    return (
        _variant(
            "MAE",
            starter=IMAGES_ALONE,
            full=("m3ae_large", IMAGES_ALONE),
            paper=paper.get("MAE", {}),
        ),
        _variant("M3AE", full=("m3ae_large", {}), paper=paper.get("M3AE", {})),
    )


def _ood() -> Experiment:
    paper = {
        "MAE": {"mahalanobis": {JUNE: 69.0}, "softmax": {JUNE: 77.2}},
        "M3AE": {"mahalanobis": {JUNE: 71.4}, "softmax": {JUNE: 78.5}},
    }
    return Experiment(
        name="ood",
        title="Detection of foreign images",
        lead="In the paper CIFAR-100 is known and CIFAR-10 foreign. Here the starter set's "
        "held-out images are known; digits, noise, shuffled patches and text on white are foreign. "
        "The areas under the ROC curve (AUROC) are means over the foreign sets.",
        source=f"{_PAPER}, Figure 6",
        variants=_both(paper),
        findings=tuple(
            Finding(
                text=f"M3AE detects better, by {title}", better="M3AE", worse="MAE", figure=name
            )
            for name, title in {"mahalanobis": "Mahalanobis", "softmax": "maximum softmax"}.items()
        ),
        measure="ood",
    )


def _embedding() -> Experiment:
    return Experiment(
        name="embedding",
        title="Clusters of features",
        lead="t-SNE of ten ImageNet classes in the paper, of the starter set's held-out images "
        "here. The paper shows plots without a number.",
        source=f"{_PAPER}, Figure 9",
        variants=_both({}),
        findings=(
            Finding(
                text="Classes of M3AE lie apart more clearly",
                better="M3AE",
                worse="MAE",
                figure="neighbors_in_plot",
            ),
        ),
        measure="embedding",
    )


def _m3ae_alone(name: str, title: str, lead: str, source: str, measure: Any) -> Experiment:
    return Experiment(
        name=name,
        title=title,
        lead=lead,
        source=f"{_PAPER}, {source}",
        variants=_both({})[1:],
        measure=measure,
    )


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        _epochs(),
        _size(),
        _baselines(),
        _paired_share(),
        _text_mask(),
        _ood(),
        _m3ae_alone(
            "attention",
            "Attention between words and patches",
            "The last block's attention, mean of its heads, with nothing hidden.",
            "Figures 7 and 8",
            "attention",
        ),
        _embedding(),
        _m3ae_alone(
            "reconstruct",
            "Reconstruction at several mask ratios",
            "Held-out images with 50, 75 and 90 % of their patches hidden, their captions given.",
            "reconstructions",
            "reconstruct",
        ),
    )
}
"""By the names that `pipelines.paper --experiment` takes."""
