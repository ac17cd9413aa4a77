"""Guards the paper's pickles: read without running anything, and equal to the paper's features."""

import os
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_pickles import (
    FLAGS,
    FrozenDict,
    M3AETrainState,
    libraries,
    paper_pickle,
    reference_config,
    reference_parameters,
)

from m3ae_tpu.errors import UserError
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.weights.imported import Choices
from m3ae_tpu.weights.importing import import_weights, read_weights
from m3ae_tpu.weights.m3ae_pickle import read_paper_pickle

encode = jax.jit(M3AE.encode)
FORMS = ("cloudpickle", "frozen", "device", "main", "plain", "old")


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle_is_read(tmp_path, monkeypatch, protocol):
    tree = reference_parameters()
    with monkeypatch.context() as patch:
        for name, module in libraries().items():
            patch.setitem(sys.modules, name, module)
        state = M3AETrainState(params=FrozenDict({"params": tree}))
        content = pickle.dumps({"step": 3, "variant": FLAGS, "state": state}, protocol)
    path = write(tmp_path / "m.pkl", content)
    imported = read_weights(path, "m3ae", Choices())
    np.testing.assert_array_equal(imported.arrays["cls_token"], tree["cls_token"][0, 0])
    assert imported.step == 3


@pytest.mark.parametrize(
    "step",
    [10**5000, -1, np.float32("inf"), np.array("abc"), np.zeros(2), "3", None],
    ids=["huge", "negative", "infinite", "text in an array", "two", "text", "none"],
)
def test_a_number_of_steps_that_is_none_counts_as_unknown(tmp_path, step):
    content = {"step": step, "state": {"params": {"params": {"a": np.zeros(1)}}}}
    assert read_paper_pickle(write(tmp_path / "m.pkl", pickle.dumps(content))).step == 0


@pytest.mark.parametrize("form", FORMS)
def test_parameters_and_flags_are_the_pickles_own(tmp_path, form):
    got = read_paper_pickle(write(tmp_path / "m.pkl", paper_pickle(form)))
    wanted = dict(np.load(os.path.join("tests", "golden", "reference", "params.npz")))
    assert got.parameters.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(got.parameters[name], array)
    assert (got.step, got.flags) == (3, FLAGS)


def test_features_are_the_papers(tmp_path):
    path = write(tmp_path / "m.pkl", paper_pickle())
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "a", "cat", *map(str, range(60))]) + "\n")
    import_weights(path, tmp_path / "model", "m3ae", vocab=vocab)
    loaded = load_pretrained(tmp_path / "model")
    arrays, _ = reference_config("repr_f32")
    images, ids = jnp.asarray(arrays["in/image"]), jnp.asarray(arrays["in/text"])
    is_valid = jnp.asarray(arrays["in/text_padding_mask"] == 0)
    for name, inputs in (
        ("paired", Inputs(images, ids, is_valid)),
        ("image_only", Inputs(images)),
        ("text_only", Inputs(None, ids, is_valid)),
    ):
        got = np.asarray(encode(loaded.model, inputs).tokens)
        np.testing.assert_allclose(got, arrays[f"out/{name}"], rtol=0, atol=1e-5)
    assert loaded.step == 3
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.pieces(loaded.tokenizer.encode(["A cat?"], 4)[0][0]) == [
        *("▁a", "▁cat", "▁[UNK]", "▁[PAD]")
    ]
    assert loaded.encode(texts=["a cat"]).tokens.shape == (1, 1 + 12, 32)


def test_without_its_vocabulary_a_model_takes_images_and_says_what_text_needs(tmp_path):
    import_weights(write(tmp_path / "m.pkl", paper_pickle()), tmp_path / "model", "m3ae")
    loaded = load_pretrained(tmp_path / "model")
    assert loaded.encode(images=[np.zeros((40, 40, 3), np.uint8)]).tokens.shape == (1, 17, 32)
    with pytest.raises(UserError, match=r"imported without its vocabulary\..* --vocab=vocab\.txt"):
        loaded.encode(texts=["a cat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--vocab = .*vocab\.txt cannot be read \(No such file"),
        (b"", r"is not a WordPiece vocabulary\. Name vocab\.txt of bert-base-uncased"),
        (b"\x00\x01\xff", r"is not a WordPiece vocabulary"),
        (b"[PAD]\n[UNK]\na\n", r"--vocab has 3 words and the source 64\. Name its own"),
    ],
)
def test_another_vocabulary_than_the_models_is_refused(tmp_path, content, message):
    vocab = tmp_path / "vocab.txt"
    if content is not None:
        vocab.write_bytes(content)
    pickled = write(tmp_path / "m.pkl", paper_pickle())
    with pytest.raises(UserError, match=message):
        import_weights(pickled, tmp_path / "model", "m3ae", vocab=vocab)
    assert not (tmp_path / "model").exists()


def test_a_vocabulary_is_for_models_of_text_alone(tmp_path):
    vocab = write(tmp_path / "vocab.txt", b"[PAD]\n[UNK]\na\n")
    tree = {name: node for name, node in reference_parameters().items() if "text" not in name}
    pickled = write(tmp_path / "m.pkl", paper_pickle("plain", parameters=tree))
    with pytest.raises(UserError, match=r"the source no text\. Leave --vocab out"):
        import_weights(pickled, tmp_path / "model", "m3ae", vocab=vocab)
    with pytest.raises(UserError, match=r"is for --format=m3ae: other models have no text"):
        import_weights(pickled, tmp_path / "model", "timm", vocab=vocab)


def test_models_of_images_alone_and_without_type_vectors_are_read(tmp_path):
    tree = reference_parameters()
    without = {name: node for name, node in tree.items() if "text" not in name}
    without = {name: node for name, node in without.items() if "type" not in name}
    flags = {"mae": {"num_heads": 4, "dec_num_heads": 4}, "dataset": "imagenet"}
    flags |= {"imagenet_data.image_normalization": "imagenet", "imagenet_data.image_size": 64}
    path = write(tmp_path / "m.pkl", paper_pickle("plain", parameters=without, flags=flags))
    imported = read_weights(path, "m3ae", Choices())
    assert imported.config.model.vocab_size == 0
    assert imported.config.data.image_size == 64
    assert imported.config.data.image_mean == (0.485, 0.456, 0.406)
    assert not imported.arrays["image.encoder_type"].any()
    fates = {line.ours: line.fate for line in imported.lines}
    assert fates["image.encoder_type"] == fates["image.decoder_type"] == "missing"


def test_blocks_are_ordered_by_number(tmp_path):
    tree = reference_parameters()
    blocks = [tree["encoder"]["Block_0"], tree["encoder"]["Block_1"]]
    for layer in range(12):
        scale = {"LayerNorm_0": {"scale": np.full(32, layer), "bias": np.zeros(32)}}
        tree["encoder"][f"Block_{layer}"] = blocks[layer % 2] | scale
    path = write(tmp_path / "m.pkl", paper_pickle("plain", parameters=tree))
    with pytest.raises(UserError, match="holds numbers of type int64"):
        read_weights(path, "m3ae", Choices())
    for layer in range(12):
        norm = tree["encoder"][f"Block_{layer}"]["LayerNorm_0"]
        norm["scale"] = norm["scale"].astype(np.float32)
    path = write(tmp_path / "m.pkl", paper_pickle("plain", parameters=tree))
    scales = read_weights(path, "m3ae", Choices()).arrays["encoder.blocks.attention_norm.scale"]
    np.testing.assert_array_equal(scales[:, 0], np.arange(12))


def without(name):
    tree = reference_parameters()
    del tree["encoder"]["Block_1"][name]
    return tree


def with_block(name):
    tree = reference_parameters()
    tree["encoder"][name] = {"LayerNorm_0": tree["encoder"]["LayerNorm_0"]}
    return tree


def not_finite():
    tree = reference_parameters()
    tree["encoder"]["LayerNorm_0"]["scale"] = np.full(32, np.nan, np.float32)
    return tree


def with_head():
    tree = reference_parameters()
    head = tree["decoder_image_output"]
    head["LayerNorm_0"] = {"scale": np.ones(24, np.float32), "bias": np.ones(24, np.float32)}
    head["Dense_1"] = head["Dense_0"]
    head["Dense_0"] = {"kernel": np.ones((24, 24), np.float32), "bias": np.ones(24, np.float32)}
    return tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"parameters": with_block("Block_999999999")},
            r"holds encoder/Block_999999999/LayerNorm_0/bias.* no part of our model",
        ),
        ({"parameters": not_finite()}, r"not finite, in our encoder\.norm\.scale\."),
        (
            {"parameters": without("LayerNorm_1")},
            r"lacks encoder/Block_1/LayerNorm_1/scale, .*Half",
        ),
        ({"parameters": with_head()}, r"decoder_image_output/LayerNorm_0/.*: a head of several"),
        (
            {"parameters": reference_parameters() | {"extra": np.ones(2, np.float32)}},
            r"holds extra, which no part of our model is made of",
        ),
        (
            {"parameters": reference_parameters() | {"text_embedding": {"embedding": np.ones(3)}}},
            r"text_embedding/embedding is \[3\] in the source, and 2 axes are expected",
        ),
        ({"flags": {}}, r"how many attention heads its width of 24 .*--decoder_num_heads=N"),
        ({"flags": FLAGS | {"m3ae.num_heads": 5}}, r"--num_heads = 5 does not divide the width 32"),
    ],
)
def test_half_models_and_models_of_another_kind_are_refused_by_name(tmp_path, change, message):
    path = write(tmp_path / "m.pkl", paper_pickle("plain", **change))
    with pytest.raises(UserError, match=message):
        read_weights(path, "m3ae", Choices())


def test_a_decoder_that_predicts_codes_is_dropped_and_the_encoder_kept(tmp_path):
    tree = reference_parameters()
    head = tree["decoder_image_output"]["Dense_0"]
    head["kernel"], head["bias"] = np.zeros((24, 1024), np.float32), np.zeros(1024, np.float32)
    path = write(tmp_path / "m.pkl", paper_pickle("plain", parameters=tree))
    imported = read_weights(path, "m3ae", Choices())
    assert imported.config.model.decoder.num_layers == 0
    assert {line.fate for line in imported.lines if "decoder" in line.theirs} == {"dropped"}


class Call:
    """Runs a function when an ordinary unpickler reads it."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def shared(leaf, depth):
    """Pickles a tree that holds each of its few dictionaries in many places."""
    for _ in range(depth):
        leaf = {f"{number}": leaf for number in range(300)}
    return pickle.dumps({"state": {"params": {"params": leaf}}})


def params(pushed):
    """A pickle of `{"state": {"params": {<pushed>: None}}}`."""
    return b"\x80\x04}\x8c\x05state}\x8c\x06params}" + pushed + b"Nsss."


MARK = "ran"
NESTED = 10_000
HOSTILE = {
    "os.system": (pickle.dumps({"state": Call(os.system, f"touch {MARK}")}), r"posix\.system"),
    "eval": (pickle.dumps(Call(eval, f"open('{MARK}', 'w')")), r"builtins\.eval"),
    "getattr": (b"\x80\x04cbuiltins\ngetattr\n.", r"builtins\.getattr"),
    "old": (f"(S'touch {MARK}'\nios\nsystem\n.".encode(), r"os\.system"),
    "submodule": (b"\x80\x04cnumpy.testing\nmeasure\n.", r"numpy\.testing\.measure"),
    "persistent": (b"\x80\x04X\x01\x00\x00\x00aQ.", r"a step BINPERSID"),
    "extension": (b"\x80\x04\x82\x01.", r"a step EXT1"),
    "objects": (b"\x80\x04cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", r"an array of O"),
    "places": (b"\x80\x04}r\xff\xff\xff\x7f.", r"a memory place"),
    "pairs": (b"\x80\x04cflax\nFrozenDict\n]\x85R.", r"not made of a dictionary"),
    "list": (b"\x80\x04ccopyreg\n_reconstructor\ncjax\nf\n)R\x85R.", r"a class of Python's own"),
    "tuples": (b"\x80\x04}N" + b"\x85" * 1_000_000 + b"Ns.", r"far more steps"),
}
SENSELESS = {
    "lists": (b"\x80\x04" + b"]" * NESTED + b"a" * (NESTED - 1) + b".", "without state.params"),
    "tuples": (b"\x80\x04N" + b"\x85" * NESTED + b".", "without state.params"),
    "keys": (b"\x80\x04}N" + b"\x85" * NESTED + b"Ns.", "without state.params"),
    "dictionaries": (
        b"\x80\x04}\x8c\x05state}\x8c\x06params"
        + b"}\x8c\x01a" * NESTED
        + b"N"
        + b"s" * NESTED
        + b"ss.",
        "holds a/a/a/a",
    ),
    "number": (pickle.dumps(3), "without state.params"),
    "shared": (shared(np.zeros(1), 6), "too many, or under keys"),
    "shared and empty": (shared({}, 14), "too many, or under keys"),
    "key": (params(b"N" + b"\x85" * NESTED), "too many, or under keys"),
    "number as key": (params(pickle.dumps(10**5000, 2)[2:-1]), "too many, or under keys"),
    "dtype": (b"\x80\x04cnumpy\ndtype\n\x8c\x06(,,)f4\x85R.", "not copied to its end"),
    "half": (paper_pickle("plain")[:-5000], r"not copied to its end"),
    "start": (paper_pickle("plain")[:3000], r"not copied to its end"),
    "huge": (b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"abc", r"not copied to its end"),
    "nonsense": (b"\x80\x04\xff\xff", r"not copied to its end"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_nothing_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    with pytest.raises(UserError, match=f"is refused, and nothing in it was run.*{message}"):
        read_paper_pickle(write(tmp_path / "m.pkl", content))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", SENSELESS)
def test_nested_and_damaged_pickles_end_in_one_message(tmp_path, name):
    content, message = SENSELESS[name]
    with pytest.raises(UserError, match=message) as raised:
        read_paper_pickle(write(tmp_path / "m.pkl", content))
    assert str(raised.value).count("\n") == 0
