"""Guards the words of code and documents: the field's names, plain sentences, lines that fit."""

import ast
import io
import re
import tokenize

import pytest
from repository import ROOT, tracked_files


def _section(title):
    """Reads `wrong = right` lines of a section of the list."""
    _, _, text = (ROOT / "tests" / "words.txt").read_text().partition(f"[{title}")
    lines = text.partition("\n")[2].partition("\n[")[0].splitlines()
    return dict(line.split(" = ", 1) for line in lines if line)


NAMES, PHRASES = _section("names"), _section("phrases")
PHRASE = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def files():
    paths = tracked_files("*.py", "*.md")
    if paths is None:
        pytest.skip("tracked files are read, and this folder is not a git checkout")
    left_out = {"starter", "test_words.py", "CHANGELOG.md"}  # Others' texts; names of the past.
    return [path for path in paths if not left_out & set(path.parts)]


def bound_names(tree):
    """Yields the names that a module gives: functions, classes, arguments, variables, fields."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()):
                yield (node.id if isinstance(node, ast.Name) else node.attr), node.lineno


def sentences(path):
    """Yields the numbered lines of a file's prose: comments and strings of Python, all Markdown."""
    text = (ROOT / path).read_text()
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, tokenize.FSTRING_MIDDLE):
            yield from enumerate(token.string.splitlines(), token.start[0])


def test_names_are_the_fields(files):
    wrong = [
        f"{path}:{line}: {name}; write {NAMES[name.lstrip('_')]}"
        for path in files
        if path.suffix == ".py"
        for name, line in bound_names(ast.parse((ROOT / path).read_text()))
        if name.lstrip("_") in NAMES
    ]
    assert wrong == [], "\n".join(wrong)


def test_sentences_use_the_fields_words(files):
    wrong = [
        f"{path}:{line}: {found[0]}"
        for path in files
        for line, text in sentences(path)
        if (found := PHRASE.search(text))
    ]
    assert wrong == [], "\n".join(wrong)


def docstrings(tree):
    """Yields the docstrings of modules, classes and functions, and those below fields."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield text, child.lineno


def test_docstrings_begin_with_a_verb_or_a_noun(files):
    wrong = [
        f"{path}:{line}: {text.splitlines()[0]}"
        for path in files
        if path.suffix == ".py"
        for text, line in docstrings(ast.parse((ROOT / path).read_text()))
        if re.match(r"(What|Which|Who|Whose|How|That|Of|Whether|Where|When)\b", text)
    ]
    assert wrong == [], "\n".join(wrong)


def test_what_an_argument_is_begins_with_a_noun(files):
    wrong = [
        f"{path}:{line}: {text.strip()}"
        for path in files
        if path.suffix == ".py"
        for line, text in enumerate((ROOT / path).read_text().splitlines(), 1)
        if re.match(r"\s+\w+: (Of|Or) ", text)
    ]
    assert wrong == [], "\n".join(wrong)


def test_no_line_is_longer_than_a_hundred_characters(files):
    wrong = []
    for path in [*files, *(tracked_files("CHANGELOG.md") or [])]:
        in_code = False
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            if path.suffix == ".md" and line.startswith("```"):
                in_code = not in_code
            is_free = in_code or "://" in line or line.startswith("|")
            if len(line) > 100 and not ((is_free and path.suffix == ".md") or "://" in line):
                wrong.append(f"{path}:{number}: {len(line)}")
    assert wrong == [], "\n".join(wrong)
