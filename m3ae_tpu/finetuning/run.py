"""A fine-tuning run, put together: its classes, its data, its test examples, its start."""

import dataclasses

from m3ae_tpu.config import FinetuneConfig, SourceConfig
from m3ae_tpu.data.labelling import Labelling
from m3ae_tpu.data.rand_augment import RandAugment
from m3ae_tpu.data.sources import OpenData, open_data, records_of_split
from m3ae_tpu.files import Place
from m3ae_tpu.finetuning.labelled_stream import LabelledStream
from m3ae_tpu.finetuning.objective import finetuning
from m3ae_tpu.finetuning.scoring import Scorer
from m3ae_tpu.finetuning.start import (
    encoder_weights,
    record_initial_model,
    require_known_classes,
    with_classes,
)
from m3ae_tpu.model.inputs import Normalizer
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.options import RunOptions
from m3ae_tpu.run.workdir import Workdir
from m3ae_tpu.train.loop import Probe
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.start import start


def finetune(
    config: FinetuneConfig,
    workdir: Place,
    model: Pretrained | None = None,
    options: RunOptions = RunOptions(),
    *,
    start_time: float | None = None,
) -> int:
    """Runs `config` to its last step, writing metrics and checkpoints to `workdir`.

    Args:
        config: The run's; its network is that of the model, see `settings_of`.
        workdir: Folder of the run.
        model: Gives the encoder to begin with; None: from scratch.
        options: Those of this start.
        start_time: As `train.loop.train` takes it.

    Returns:
        The number of finished steps: fewer than the config's if the run was asked to stop.

    Raises:
        UserError: shards without classes, test examples of other classes, a model of texts, or as
            for `train`.
    """
    with_weights = None if model is None else encoder_weights(model)
    data = open_data(config.data, batch_size=config.batch_size, seed=config.seed, vocab_size=0)
    config = with_classes(config, data.shards)
    data = dataclasses.replace(data, labelling=labelling_of(config))
    probe = _make_probe(config, data)

    def prepare(claimed: Workdir) -> tuple[Objective, Probe | None]:
        record_initial_model(claimed.path, "" if model is None else model.digest)
        return finetuning(config, with_weights), probe

    return start(config, data, workdir, prepare=prepare, options=options, start_time=start_time)


def labelling_of(config: FinetuneConfig) -> Labelling:
    """Returns the classes of a run, and what its loader does to images beside crops."""
    augmentation, augment = config.augmentation, None
    if augmentation.rand_augment_operations > 0:
        red, green, blue = (round(255 * mean) for mean in config.data.image_mean)
        augment = RandAugment(
            num_operations=augmentation.rand_augment_operations,
            magnitude=augmentation.rand_augment_magnitude,
            deviation=augmentation.rand_augment_deviation,
            fill=(red, green, blue),
        )
    return Labelling(classes=config.classes, augment=augment)


def _make_probe(config: FinetuneConfig, data: OpenData) -> Probe | None:
    """Returns what scores the classifier on all test examples; None where none are named."""
    evaluation = config.evaluation
    if not evaluation.shards:
        return None
    shards = data.open(evaluation.shards)
    require_known_classes(config, shards)
    source = SourceConfig(kind="image", shards=evaluation.shards, split=evaluation.split)
    mesh = make_mesh(config.mesh)
    stream = LabelledStream(
        shards,
        records_of_split(source, len(shards)),
        classes=config.classes,
        image_size=config.data.image_size,
        mesh=mesh,
    )
    return Probe(evaluation.every_steps, Scorer(stream, Normalizer.of_data(config.data), mesh))
