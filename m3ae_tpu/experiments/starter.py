"""An experiment at the starter scale: short runs over several seeds, in the time that is given."""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence

from threadpoolctl import threadpool_limits

from m3ae_tpu.config.tree import replaced
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.evaluation.evaluate import TEST_SHARDS, TRAIN_SHARDS
from m3ae_tpu.experiments import measuring
from m3ae_tpu.experiments.experiments import UNTRAINED
from m3ae_tpu.experiments.measuring import Examples, measure
from m3ae_tpu.experiments.page import Outcome, write_outcome
from m3ae_tpu.experiments.plan import Plan, fitting_steps, read_plan, write_plan
from m3ae_tpu.experiments.progress import RunsShown
from m3ae_tpu.experiments.training import Run, load_run, make_run, step_flops, train_run
from m3ae_tpu.experiments.variant import Experiment
from m3ae_tpu.files import atomic_write
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.metrics import read_metrics

_TIMED_STEPS = 16
_SLACK = 1.25
"""Over the given time by so much a further seed is left out."""


def run_starter(
    experiment: Experiment,
    output: pathlib.Path,
    *,
    num_seeds: int,
    minutes: float,
    num_steps: int | None,
    command: str,
) -> None:
    """Trains and scores all variants with every seed, and writes table, plot and page.

    What is finished is skipped, and an interrupted run goes on: the same command may be repeated.

    Args:
        experiment: Its variants at the starter scale.
        output: Folder of everything, made if missing.
        num_seeds: Seeds 0, 1, ...
        minutes: Time for everything on this machine; the first call derives the steps from it.
        num_steps: Steps of the longest run; None: as many as fit.
        command: Shown beside the results.

    Raises:
        UserError: the folder holds another experiment, or runs of another version.
    """
    start = time.monotonic()
    plan = read_plan(output, experiment.name, num_steps)
    output.mkdir(parents=True, exist_ok=True)
    base = experiment.variants[-1].starter.load()
    examples = measuring.read_examples(
        base, Tokenizer(base.data.tokenizer), train_shards=TRAIN_SHARDS, test_shards=TEST_SHARDS
    )
    shapes = [make_run(variant, 0, 1, output) for variant in experiment.variants]
    flops = [step_flops(run) for run in shapes]
    costs = [each / max(flops) for each in flops]
    if plan is None:
        print("timing some steps on this machine", flush=True)
        costly = shapes[flops.index(max(flops))]
        plan = _make_plan(
            experiment,
            _timed(experiment, costly, examples, output),
            costs,
            num_seeds=num_seeds,
            seconds=60 * minutes - (time.monotonic() - start),
            num_steps=num_steps,
        )
        write_plan(output, plan)
    rounds = [
        [make_run(variant, seed, plan.num_steps, output) for variant in experiment.variants]
        for seed in range(num_seeds)
    ]
    print(
        f"{experiment.name}: {len(experiment.variants)} variants, {num_seeds} seeds, "
        f"{plan.num_steps} steps at most",
        flush=True,
    )
    scores: dict[str, dict[int, dict[str, float]]] = {}
    remark, first = "", time.monotonic()
    with RunsShown(experiment.name, _seconds(rounds, costs, plan)) as shown:
        for seed, runs in enumerate(rounds):
            spent = time.monotonic() - first
            if seed > 1 and spent * (seed + 1) / seed + first - start > 60 * minutes * _SLACK:
                remark = (
                    f"Stopped after {seed} of {num_seeds} seeds, as the time was up; the same "
                    "command goes on."
                )
                break
            for run, seconds in zip(runs, _seconds([runs], costs, plan), strict=True):
                figures = _scored(experiment, run, examples, shown, seconds, plan)
                scores.setdefault(run.variant.name, {})[seed] = figures
            if experiment.measure != "reconstruct":
                untrained = _untrained(experiment, runs[-1], examples)
                scores.setdefault(UNTRAINED, {})[seed] = untrained
            outcome = Outcome(
                experiment=experiment,
                scores=scores,
                num_steps=plan.num_steps,
                num_test=len(examples.test),
                command=command,
                remark=remark,
            )
            write_outcome(output, outcome)
    if remark:
        outcome = dataclasses.replace(outcome, remark=remark)
    models = {run.variant.name: run for run in rounds[0]}
    images = measuring.show_images(
        experiment.measure,
        {name: load_run(run) for name, run in models.items()}
        if experiment.measure in measuring.SHOWN
        else {},
        examples,
    )
    write_outcome(output, dataclasses.replace(outcome, images=images), is_printed=True)
    print(f"all of it took {(time.monotonic() - start) / 60:.1f} minutes")


def _seconds(rounds: Sequence[Sequence[Run]], costs: Sequence[float], plan: Plan) -> list[float]:
    """Returns the expected seconds of each run."""
    return [
        plan.seconds_per_run + run.config.num_steps * cost * plan.seconds_per_step
        for runs in rounds
        for run, cost in zip(runs, costs, strict=True)
    ]


def _timed(
    experiment: Experiment, run: Run, examples: Examples, output: pathlib.Path
) -> tuple[float, float]:
    """Returns the seconds of a step, and those of a run beside its steps."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".timed-") as folder:
        changes = {"num_steps": _TIMED_STEPS, "logging.every_steps": _TIMED_STEPS // 2}
        run = dataclasses.replace(
            run, config=replaced(run.config, changes), folder=pathlib.Path(folder)
        )
        start = time.monotonic()
        train_run(run, lambda step: None)
        of_step = read_metrics(run.folder)[-1]["time/seconds_per_step"]
        _measured(experiment, load_run(run), examples)
        return of_step, max(0.0, time.monotonic() - start - _TIMED_STEPS * of_step)


def _make_plan(
    experiment: Experiment,
    timed: tuple[float, float],
    costs: Sequence[float],
    *,
    num_seeds: int,
    seconds: float,
    num_steps: int | None,
) -> Plan:
    of_step, of_run = timed
    work = sum(
        variant.length * cost for variant, cost in zip(experiment.variants, costs, strict=True)
    )
    steps = num_steps or fitting_steps(
        seconds=seconds,
        num_runs=num_seeds * (len(costs) + 1),  # One more: the untrained encoder.
        work=num_seeds * work,
        seconds_per_step=of_step,
        seconds_per_run=of_run,
    )
    return Plan(
        experiment=experiment.name,
        num_steps=steps,
        seconds_per_step=of_step,
        seconds_per_run=of_run,
    )


def _scored(
    experiment: Experiment,
    run: Run,
    examples: Examples,
    shown: RunsShown,
    seconds: float,
    plan: Plan,
) -> dict[str, float]:
    """Returns the figures of a run, which is trained unless it was."""
    path = _score_file(run)
    figures = _read_score(path, run)
    title = f"{run.variant.name}, seed {run.seed}"
    with shown.run(title, seconds) as advance:
        if figures is None:
            training = seconds - plan.seconds_per_run
            train_run(run, lambda step: advance(training * step / run.config.num_steps))
            figures = _measured(experiment, load_run(run), examples)
            _write_score(path, run, figures)
    first = next(iter(measuring.FIGURES[experiment.measure]))
    shown.finished(f"{title}: {first} {figures[first]:.3f}")
    return figures


def _untrained(experiment: Experiment, run: Run, examples: Examples) -> dict[str, float]:
    """Returns the figures of a run's model before its first step."""
    path = _score_file(run).with_name(f"untrained-seed{run.seed}.json")
    figures = _read_score(path, run)
    if figures is None:
        trained = load_run(run)
        model = dataclasses.replace(trained, model=trained.init_model())
        figures = _measured(experiment, model, examples)
        _write_score(path, run, figures)
    return figures


def _measured(experiment: Experiment, run: Pretrained, examples: Examples) -> dict[str, float]:
    # The probes' matrices are small: threads of BLAS would spend their time waiting for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        return measure(experiment.measure, run, examples)


def _score_file(run: Run) -> pathlib.Path:
    return run.folder.parent.parent / "scores" / f"{run.folder.name}.json"


def _digest(run: Run) -> str:
    text = json.dumps(dataclasses.asdict(run.config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_score(path: pathlib.Path, run: Run) -> dict[str, float] | None:
    """Returns the figures on file, None if there is no file.

    Raises:
        UserError: they are those of another config, or damaged.
    """
    try:
        stored = json.loads(path.read_bytes())
        digest, figures = stored["config_sha256"], stored["figures"]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged. Remove it, and start again.") from None
    require(
        digest == _digest(run),
        f"{path} is the score of other settings, perhaps of another version. "
        "Name another --output.",
    )
    return figures


def _write_score(path: pathlib.Path, run: Run, figures: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {"config_sha256": _digest(run), "figures": figures}
    atomic_write(path, json.dumps(stored, indent=2) + "\n")
