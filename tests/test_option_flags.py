"""Guards the flags of options: a dataclass states each of them once."""

import dataclasses
import os
import subprocess
import sys
import textwrap

from repository import ROOT

from m3ae_tpu.prepare.options import CleaningOptions, PrepareOptions

PROGRAM = """
    '''Prints its options.'''

    from m3ae_tpu.command_line import run_program
    from m3ae_tpu.option_flags import define_flags
    from m3ae_tpu.prepare.options import PrepareOptions

    OPTIONS = define_flags(PrepareOptions)

    def main(argv):
        print(OPTIONS())

    if __name__ == "__main__":
        run_program(main)
"""


def program(folder, *flags):
    path = folder / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(path), *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_flags_become_the_fields_of_the_dataclass_and_of_those_in_it(tmp_path):
    given = ["--kind", "text", "--min_caption_characters=3", "--drop_duplicates", "--name=books"]
    ended = program(tmp_path, *given)
    cleaning = CleaningOptions(kind="text", min_caption_characters=3)
    expected = PrepareOptions(cleaning=cleaning, drop_duplicates=True, name="books")
    assert (ended.stderr, ended.stdout) == ("", f"{expected}\n")


def test_help_shows_every_field_with_its_docstring_and_default(tmp_path):
    shown = program(tmp_path, "--help").stdout
    for options in (CleaningOptions, PrepareOptions):
        for field in dataclasses.fields(options):
            assert f"--{field.name} " in shown or field.name == "cleaning"
    assert "Larger images are resized to this shorter side, pixels; 0 keeps every size." in shown
    assert "<paired|image|text|labelled>: Content of an example" in shown
    assert "(default: 64000000)" in shown


def test_values_that_the_flag_or_the_dataclass_refuses_are_named(tmp_path):
    for flag, message in {
        "--kind=images": "error: --kind = images is not one of paired, image, text, labelled. ",
        "--seed=x": "error: --seed = x is not a whole number. Default: --seed=0.",
        "--num_shards=-1": "error: --num_shards = -1 is not in 0 to 99999. Set 0.",
    }.items():
        ended = program(tmp_path, flag)
        assert (ended.returncode, ended.stderr[: len(message)]) == (2, message)
