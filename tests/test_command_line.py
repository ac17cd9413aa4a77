"""Guards command lines: what a user may type, and what a mistake says."""

import os
import pathlib
import subprocess
import sys

import pytest

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.overrides import config_names, load_named_config, override

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = '''"""Prints the settings that it was given."""

import sys
import pathlib
from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override

_CONFIG = define_flag("config", str, "debug", "Named config.")
_WORKDIR = define_flag("workdir", pathlib.Path, None, "Folder of this run.", required=True)
_LOG_IDS = define_flag("log_ids", bool, False, "Whether ids are written.")
_ROUNDS = define_flag("rounds", int, 10, "Number of rounds.", at_least=1)
_INPUT = define_flag("input", list, ["a"], "Files.")

def main(argv):
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    if _LOG_IDS.present or _ROUNDS.present or _INPUT.present:
        print(_LOG_IDS.value, _ROUNDS.value, _INPUT.value)
    print(_WORKDIR.value, config.num_steps, config.model.encoder.num_layers, "jax" in sys.modules)

if __name__ == "__main__":
    run_program(main)
'''


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)

    def run(*args):
        command = [sys.executable, path, *args]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    return run


def test_flags_and_fields_mix_in_any_order(launch):
    done = launch(
        "--num_steps", "7", "--config=quickstart", "--model.encoder.num_layers=3", "--workdir", "w"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("w 7 3 False\n", "", 0)


@pytest.mark.parametrize(
    ("args", "printed"),
    [
        (["--log-ids"], "True 10 ['a']"),
        (["--nolog_ids"], "False 10 ['a']"),
        (["--no-log-ids"], "False 10 ['a']"),
        (["--log_ids=yes", "--rounds=1e2"], "True 100 ['a']"),
        (["--rounds", "1_000", "--input=b, c", "--input", "d"], "False 1000 ['b', 'c', 'd']"),
        (["--", "--rounds=3"], "False 3 ['a']"),
    ],
)
def test_launch_flags_are_taken_as_people_type_them(launch, args, printed):
    done = launch("--workdir=w", *args)
    assert (done.stdout.splitlines()[:1], done.stderr) == ([printed], "")


def test_a_tilde_is_the_home_folder_also_behind_an_equals_sign(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from m3ae_tpu.configs.debug import CONFIG\n")
    done = launch("--workdir=~/w", "--config=~/mine.py")
    assert (done.stdout.split()[:1], done.stderr) == ([f"{tmp_path}/w"], "")


def test_a_name_that_is_not_utf8_is_refused_with_escapes(launch):
    done = launch(b"--workdir=caf\xe9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir = caf\\udce9 is not UTF-8, or lies in such")


@pytest.fixture(scope="module")
def run_main(tmp_path_factory):
    """Runs a program of a few lines, whose imports are there already."""
    path = tmp_path_factory.mktemp("main") / "program.py"

    def run(*lines, **environment):
        imports = "import os\nfrom m3ae_tpu.command_line import run_program\n"
        imports += "from m3ae_tpu.errors import UserError\n"
        body = "".join(f"    {line}\n" for line in lines)
        path.write_text(f"{imports}def main(argv):\n{body}run_program(main)\n")
        env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, path]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    return run


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_odd_names_are_printed_with_escapes(run_main, encoding):
    lines = (
        r"name = os.fsdecode(b'caf\xe9')",
        "print(name)",
        r"raise UserError(name + '\x1b[2J')",
    )
    done = run_main(*lines, PYTHONIOENCODING=encoding)
    assert (done.stdout, done.stderr) == ("caf\\udce9\n", "error: caf\\udce9\\x1b[2J\n")
    assert done.returncode == 2


def test_errors_of_the_file_system_are_named_without_a_traceback(run_main):
    done = run_main("open('no/such/file')")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no/such/file cannot be used (No such file or directory).")
    assert "Traceback" not in done.stderr


def test_a_programming_error_keeps_its_traceback(run_main):
    done = run_main("raise OSError('a library in trouble')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_full_disk_is_named_without_a_traceback(run_main):
    done = run_main("open('/dev/full', 'w', buffering=1).write('a line\\n')")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device. Free: ")
    assert "Traceback" not in done.stderr


def test_flagfile_may_hold_fields(launch, tmp_path):
    file = tmp_path / "flags.txt"
    file.write_text("--workdir=w\n--num_steps=9\n")
    assert launch(f"--flagfile={file}").stdout == "w 9 2 False\n"


def test_help_lists_launch_flags_and_the_fields_of_the_config_named_beside_it(launch):
    done = launch("--help", "--config=m3ae_huge")
    assert done.returncode == 0
    assert done.stdout.startswith("Prints the settings that it was given.")
    for text in (
        "--workdir",
        "Folder of this run.",
        "--model.encoder.width INT",
        "1280",
        "Blocks in the",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--workdri=w"],
            "--workdri is not a flag of this program. Did you mean --workdir?",
        ),
        ([], "--workdir is missing. Write --workdir=...: Folder of this run."),
        (["--workdir="], "--workdir is missing. Write --workdir=...: Folder of this run."),
        (["--workdir"], "Missing value for flag --workdir"),
        (["--workdir=w", "--batch-sise=8"], "--batch-sise is neither a launch flag nor a field"),
        (["--workdir=w", "--log-ids=maybe"], "--log_ids = maybe is not True or False."),
        (["--workdir=w", "--rounds=0"], "--rounds = 0 is less than 1. Default: --rounds=10."),
        (["--workdir=w", "--rounds=1.5"], "--rounds = 1.5 is not a whole number."),
        (["--workdir=w", "word"], "argument 'word' belongs to no flag."),
        (["--workdir=w", "--config=quickstrt"], "Did you mean quickstart?"),
        (
            ["--workdir=w", "--model.encoder.num_layer=3"],
            "Did you mean --model.encoder.num_layers?",
        ),
        (
            ["--workdir=w", "--masking.text_mask_ratio=1.2"],
            "masking.text_mask_ratio = 1.2 is not in [0, 1].",
        ),
    ],
)
def test_program_ends_mistakes_in_a_short_message_without_traceback(launch, args, message):
    done = launch(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") < 5


DEBUG = load_named_config("debug", PretrainConfig)


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        (["--model.encoder.num_layers=3"], lambda config: config.model.encoder.num_layers, 3),
        (["--model.encoder.num-layers", "3"], lambda config: config.model.encoder.num_layers, 3),
        (
            ["--optimizer.base_learning_rate=2e-4"],
            lambda config: config.optimizer.base_learning_rate,
            2e-4,
        ),
        (["--loss.norm_pix_loss=True"], lambda config: config.loss.norm_pix_loss, True),
        *(
            (["--data.crop_area", *words], lambda config: config.data.crop_area, (0.5, 0.9))
            for words in (["0.5", "0.9"], ["0.5,0.9"], ["(0.5, 0.9)"], ["[0.5,0.9,]"], ["0.5 .9"])
        ),
        (["--num_steps=1e3"], lambda config: config.num_steps, 1_000),
        (["--num-steps", "2_000"], lambda config: config.num_steps, 2_000),
        (["--loss.norm_pix_loss=yes"], lambda config: config.loss.norm_pix_loss, True),
        (["--loss.norm_pix_loss", "false"], lambda config: config.loss.norm_pix_loss, False),
        (["--data.sources.0.weight=0.5"], lambda config: config.data.sources[0].weight, 0.5),
        (["--data.sources.0.shards=a b=c"], lambda config: config.data.sources[0].shards, "a b=c"),
        (["--model.compute_dtype=bfloat16"], lambda config: config.model.compute_dtype, "bfloat16"),
        (["--seed=1", "--seed=2"], lambda config: config.seed, 2),
        (["--model.unroll=1"], lambda config: config.model.unroll, 1),
        (["--model.unroll=2", "--model.unroll=None"], lambda config: config.model.unroll, None),
    ],
)
def test_override_changes_the_named_field_and_nothing_else(args, field, value):
    changed = override(DEBUG, args)
    assert field(changed) == value
    name = args[0].lstrip("-").partition("=")[0]
    back = args[0].startswith(f"--{name}=") and len(args) == 1 and name != "data.sources.0.shards"
    if back:
        assert override(changed, [f"--{name}={field(DEBUG)}"]) == DEBUG


def test_fields_that_depend_on_each_other_change_together():
    config = override(DEBUG, ["--model.encoder.width=36", "--model.encoder.num_heads=3"])
    assert (config.model.encoder.width, config.model.encoder.num_heads) == (36, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--num_layers=3"],
            r"--num_layers is neither .* Did you mean --model\.encoder\.num_layers\?",
        ),
        (["--bach_size=3"], r"Did you mean --batch_size\?"),
        (
            ["--model.encoder.num_layers=four"],
            r"num_layers = four is not a whole number\. The config has 2",
        ),
        (["--optimizer.beta1=x"], r"--optimizer\.beta1 = x is not a number\. The config has 0\.9"),
        (["--masking.draw=some"], r"--masking\.draw = some is not one of per_example, per_batch"),
        (["--loss.norm_pix_loss=maybe"], r"norm_pix_loss = maybe is not True or False"),
        (
            ["--data.crop_area=0.1"],
            r"--data\.crop_area = 0\.1 is not a sequence of 2 numbers\. The config has "
            r"\(.*\): --data\.crop_area=0\.\d+,1\.0\.$",
        ),
        (["--data.crop_area=(0.1, x)"], r"crop_area = \(0\.1, x\) is not a sequence of 2 numbers"),
        (
            ["--data.sources.0.shards", "a", "b"],
            r"shards = a b is not one text\. .*: --data\.sources\.0\.shards='starter/train-\*'\.$",
        ),
        (["--num-steps=1.5"], r"--num-steps = 1\.5 is not a whole number"),
        (["--model.unroll=all"], r"unroll = all is not a whole number or none\."),
        (["--model.unroll=0"], r"^model\.unroll = 0 is not positive\. Set None, the default"),
        (["--num_steps=inf"], r"--num_steps = inf is not a whole number"),
        (["--num_steps="], r"--num_steps = \(nothing\) is not a whole number"),
        (["--num_steps"], r"--num_steps = \(nothing\) is not a whole number"),
        (
            ["--optimizer.clip_norm", "-1e-4"],
            r"optimizer\.clip_norm = -0\.0001 is not in \[0, inf\)\. Set 0\.0, the default",
        ),
        (["--model.encoder.width=30"], r"^model\.encoder\.width = 30 .* Set 32"),
        (["--data.sources.0.weight=0"], r"^data\.sources\.0\.weight = 0\.0 is not positive"),
        (["--data.sources.1.weight=1"], r"Did you mean --data\.sources\.0\.weight\?"),
        (
            ["--data.image_size=33"],
            r"data\.image_size = 33 is not a multiple of model\.patch_size = 8.*=32\.",
        ),
        (["quickstart"], r"argument 'quickstart' belongs to no flag\. Write --config=quickstart"),
    ],
)
def test_override_refuses_with_field_value_and_fix(args, message):
    with pytest.raises(UserError, match=message) as caught:
        override(DEBUG, args)
    assert str(caught.value).count("\n") < 4


def test_config_may_be_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import dataclasses\nfrom m3ae_tpu.configs import debug\n"
        "CONFIG = dataclasses.replace(debug.CONFIG, num_steps=5)\n"
    )
    assert load_named_config(str(path), PretrainConfig) == override(DEBUG, ["--num_steps=5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "\nx = 1 / 0\n",
            r"mine\.py raises ZeroDivisionError: division by zero \(.*mine\.py, line 2\)",
        ),
        (
            "CONFIG = (\n",
            r"mine\.py raises SyntaxError: .* was never closed \(.*mine\.py, line 1\)",
        ),
        ("import no_such_module\n", r"raises ModuleNotFoundError: .*no_such_module.* line 1\)"),
        ("X = 1\n", r"mine\.py has no CONFIG\. Write: CONFIG = PretrainConfig"),
        ("CONFIG = 3\n", r"mine\.py has a CONFIG of type int"),
        (
            "from m3ae_tpu.config import PretrainConfig\nCONFIG = PretrainConfig(num_steps=0)\n",
            r"FieldError: num_steps = 0 is not positive.* line 2\)",
        ),
    ],
)
def test_config_file_that_cannot_be_used_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_named_config(str(path), PretrainConfig)
    assert str(caught.value).count("\n") < 4


@pytest.mark.parametrize("name", ["no/such/file.py", "nothing_like_it", "", "__init__"])
def test_config_that_does_not_exist_lists_those_that_do(name):
    with pytest.raises(UserError, match=rf"--config = {name} .*debug, .*m3ae_base, .*starter_long"):
        load_named_config(name, PretrainConfig)


def test_config_names_are_the_files_of_the_folder():
    assert {"debug", "quickstart", "starter_long", "mae_base"} <= set(config_names())
