"""Guards experiments at the starter scale: trained once, measured, written, and gone on with."""

import json

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.experiments import starter
from m3ae_tpu.experiments.experiments import IMAGES_ALONE, UNTRAINED
from m3ae_tpu.experiments.models import measure_models
from m3ae_tpu.experiments.variant import Experiment, Finding, Method, Setting, Variant

pytestmark = pytest.mark.long

SMALL = {
    "batch_size": 8,
    "data.image_size": 16,
    "model.encoder.num_layers": 1,
    "optimizer.accumulation_steps": 1,
}


def variant(name, method: Method = "reconstruction", **overrides):
    setting = Setting(config="debug", overrides={**SMALL, **overrides})
    return Variant(name=name, starter=setting, full=None, method=method)


EXPERIMENT = Experiment(
    name="toy",
    title="Toy",
    lead="A toy.",
    source="nowhere",
    variants=(
        variant("CLIP", "contrastive"),
        variant("MAE", **IMAGES_ALONE),
    ),
    findings=(Finding(text="captions help", better="CLIP", worse="MAE"),),
)


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch, capsys):
    output = tmp_path / "toy"

    def run(num_seeds):
        starter.run_starter(
            EXPERIMENT, output, num_seeds=num_seeds, minutes=20.0, num_steps=3, command="toy"
        )

    trained = []
    train_run = starter.train_run

    def counted(run, show):
        trained.append(run.folder.name)
        train_run(run, show)

    monkeypatch.setattr(starter, "train_run", counted)
    run(1)
    assert len(trained) == 1 + 2  # The first times steps.
    first = json.loads((output / "results.json").read_text())
    assert first["scores"].keys() == {"CLIP", "MAE", UNTRAINED}
    assert all(0 < by_seed["0"]["linear_probe"] < 1 for by_seed in first["scores"].values())

    (output / "scores" / "MAE-seed0.json").unlink()
    run(2)
    # The run whose score is gone is finished already, and only measured again.
    assert trained[3:] == ["MAE-seed0", "CLIP-seed1", "MAE-seed1"]
    second = json.loads((output / "results.json").read_text())
    assert {name: by_seed["0"] for name, by_seed in second["scores"].items()} == {
        name: by_seed["0"] for name, by_seed in first["scores"].items()
    }
    assert second["findings"][0]["standard_error"] is not None
    assert "[4/4]" in capsys.readouterr().out

    with pytest.raises(UserError, match="--model does not go with"):
        measure_models(
            EXPERIMENT,
            [str(output / "runs" / "MAE-seed0")],
            tmp_path / "measured",
            train_shards="starter/train-*",
            test_shards="starter/heldout-*",
            foreign_shards="",
            command="toy",
        )
