"""Encoders: architectures that are taken, files that are refused, names that lead nowhere."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForPreTraining
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qa_lib.__main__ import run_verb
from qa_lib.data import corpora, features
from qa_lib.models import encoders
from qa_lib.reports import plans
from qa_lib.settings import encoder_files, hub
from qa_lib.settings.params import UserError
from qa_lib.training import build, clusters, study

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture(scope="session")
def tokenizer():
    """Return MiniLM's tokenizer, trained anew to 600 word pieces."""
    large = AutoTokenizer.from_pretrained(encoder_files.find_folder("minilm"))
    texts = [row["context"] for row in corpora.draw_questions("encyclopaedia", 200)]
    return large.train_new_from_iterator(texts, 600)


@pytest.fixture(scope="session")
def small_encoder(tokenizer, tmp_path_factory):
    """Return a function that makes the folder of an encoder with random weights.

    The encoder has two blocks of width 32 and 600 word pieces, if nothing is changed.
    """

    def make(architecture: str = "bert", model=None, **changes) -> Path:
        sizes = {
            "vocab_size": 600,
            "pad_token_id": tokenizer.pad_token_id,
            "max_position_embeddings": 160,
        }
        if architecture == "distilbert":
            sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        else:
            sizes |= {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
            }
        config = CONFIG_MAPPING[architecture](**sizes | changes)
        folder = tmp_path_factory.mktemp(architecture)
        (model or AutoModel.from_config)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def whole(small_encoder):
    """Return the folder of a small encoder, from which tests only read."""
    return small_encoder()


@pytest.fixture
def copied(whole, tmp_path):
    """Return a copy of a small encoder's folder, which a test may break."""
    return Path(shutil.copytree(whole, tmp_path / "encoder"))


def read_refusal(folder: Path) -> str:
    """Return the one sentence with which an encoder's folder is refused."""
    with pytest.raises(UserError) as error:
        encoder_files.identify_weights(str(folder))
        encoders.load_encoder(str(folder))
    sentence = str(error.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    assert "; " in sentence
    return sentence


def change_weights(folder: Path, change) -> None:
    """Replace the weights in a folder by what a function makes of them."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def load_weights(encoder) -> dict:
    """Return the weights of an encoder that its folder or its name on the hub identifies."""
    return encoders.load_encoder(str(encoder))[0].state_dict()


# ---- what is taken ----


@pytest.mark.parametrize("architecture", encoders.ARCHITECTURES)
def test_every_architecture_that_is_taken_trains(architecture, small_encoder, tiny):
    """A step is trained plain, with a block after the encoder, and with one inside its last."""
    folder = small_encoder(architecture)
    shared = {"encoder": str(folder), "blocks": 1, "max_length": 96, "stride": 24}
    plain = plans.plan(tiny(**shared))[0]
    after = plans.plan(tiny(**shared, experiments=["untuned"], experts=4))[-1]
    inside = tiny(**shared, experiments=["untuned"], experts=4, place="feed_forward")
    within = plans.plan(inside)[-1]
    assert after.layer.place == "after"
    assert within.layer.place == "feed_forward"
    specs = [plain, after, within]
    if architecture == "albert":
        specs.remove(within)
        with pytest.raises(UserError, match="place: ALBERT has one block for all depths, .*after"):
            build.build_model(within)
    for spec in specs:
        assert study.measure_speed(spec) > 0
    model, tokenizer = build.build_model(specs[-1])
    ids = torch.full((2, 16), tokenizer.unk_token_id)
    model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        start_positions=ids[:, 0] % 16,
        end_positions=ids[:, 1] % 16,
    ).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_fewer_blocks_of_albert_are_fewer_passes_through_its_one(small_encoder):
    folder = str(small_encoder("albert", num_hidden_layers=3))
    whole, tokenizer = encoders.load_encoder(folder)
    fewer, _ = encoders.load_encoder(folder, 2)
    batch = tokenizer("a mill", return_tensors="pt")
    states = whole.eval()(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 4
    torch.testing.assert_close(fewer.eval()(**batch).last_hidden_state, states[2])
    with pytest.raises(UserError, match="asks for 4 blocks of encoder .* has 3; .* from 1 to 3"):
        encoders.load_encoder(folder, 4)


def test_a_small_vocabulary_goes_all_the_way(whole, tiny):
    p = tiny(encoder=str(whole), max_length=96, stride=24)
    frame = study.run(p, plans.plan, workers=1, live=False)
    assert set(frame["trained"]) == {"now"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: {f"bert.{k}": v for k, v in w.items()}, id="of a model with a head"),
        pytest.param(lambda w: w | {"cls.predictions.bias": torch.zeros(600)}, id="a head"),
        pytest.param(lambda w: {k: v for k, v in w.items() if "pooler" not in k}, id="no pooler"),
        pytest.param(
            lambda w: w | {"embeddings.position_ids": torch.arange(160)[None]}, id="positions"
        ),
        pytest.param(
            lambda w: {k.replace("Norm.weight", "Norm.gamma"): v for k, v in w.items()}, id="old"
        ),
    ],
)
def test_weights_that_are_whole_under_other_names_are_taken(copied, whole, change):
    change_weights(copied, change)
    ours = load_weights(copied)
    theirs = load_weights(whole)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_pretrained_head_is_left_out(small_encoder):
    model, _ = encoders.load_encoder(str(small_encoder(model=BertForPreTraining)))
    assert not [k for k in model.state_dict() if "cls" in k or "pooler" in k]


def test_minilm_keeps_its_identity():
    identity = encoder_files.identify_weights("minilm")
    file = encoder_files.find_folder("minilm") / "model.safetensors"
    assert identity == hub.digest_data_file(file)
    assert identity.startswith("53aa51172d14")


def test_a_folder_is_known_by_all_its_files(tmp_path, whole):
    """A copy of MiniLM is MiniLM. Another config or tokenizer makes another encoder of it."""
    minilm = encoder_files.identify_weights("minilm")
    for source, expected in ((encoder_files.find_folder("minilm"), minilm), (whole, None)):
        known = set()
        for name, edited in (("a", ""), ("b", ""), ("c", "config.json"), ("d", "tokenizer.json")):
            copied = Path(shutil.copytree(source, tmp_path / source.name / name))
            if edited:
                (copied / edited).write_text((copied / edited).read_text() + " ")
            identity = encoder_files.identify_weights(str(copied))
            if not edited and expected:
                assert identity == expected
            known.add(identity)
        assert len(known) == 3
        assert all(len(identity) == 64 for identity in known)


# ---- what is refused ----


def lose_one(weights: dict) -> dict:
    """Return weights without one of them."""
    return {k: v for k, v in weights.items() if k != "encoder.layer.1.output.dense.bias"}


def spoil_one(weights: dict) -> dict:
    """Return weights of which one is not finite."""
    return weights | {"embeddings.LayerNorm.bias": torch.full((32,), torch.nan)}


def prefix_all(prefix: str, weights: dict) -> dict:
    """Return weights whose names have a prefix, as a wrapper of the encoder gives them."""
    return {prefix + k: v for k, v in weights.items()}


def assert_refused(folder: Path, words: str) -> None:
    """Assert that an encoder is refused, with these words and in one sentence."""
    with pytest.raises(UserError, match=words):
        encoders.load_encoder(str(folder))
    read_refusal(folder)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "model.", "encoder.", "bert.model.", "roberta."]
)
def test_weights_under_a_prefix_would_be_random_and_are_refused(copied, prefix):
    change_weights(copied, partial(prefix_all, prefix))
    assert_refused(copied, f"lacks 37 of 37 weights, .* called {prefix}.*inside the wrapper")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lose_one,
            "lacks 1 of 37 weights, first encoder.layer.1.output.dense.bias; save encoder and",
        ),
        (
            spoil_one,
            "embeddings.LayerNorm.bias in model.safetensors holds values that are no finite",
        ),
    ],
)
def test_a_weight_that_is_missing_or_spoilt_is_refused(copied, change, words):
    change_weights(copied, change)
    assert_refused(copied, words)


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("model.safetensors", LFS, "model.safetensors is a pointer of Git LFS .* git lfs pull"),
        ("tokenizer.json", LFS, "tokenizer.json is a pointer of Git LFS"),
        ("model.safetensors", b"", "model.safetensors is empty; copy it anew"),
        (
            "model.safetensors",
            b"PK\x03\x04" + bytes(99),
            "model.safetensors is cut short or of another",
        ),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[1]", "config.json has no model_type; name it there, one of albert, "),
        ("config.json", b"\xff\xfe", "config.json is not JSON"),
        ("tokenizer.json", b"{}", "its tokenizer.json or tokenizer_config.json cannot be read"),
        ("tokenizer.json", b"{", "its tokenizer.json or tokenizer_config.json cannot be read"),
        (
            "tokenizer_config.json",
            b"{",
            "its tokenizer.json or tokenizer_config.json cannot be read",
        ),
    ],
)
def test_a_broken_file_is_refused(copied, file, text, words):
    (copied / file).write_bytes(text)
    assert re.search(words, read_refusal(copied))


def test_a_file_that_is_cut_short_is_refused(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors is cut short" in read_refusal(copied)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"vocab_size": 700},
            "has the shape (600, 32) in model.safetensors, and (700, 32) by config",
        ),
        ({"hidden_size": 64}, "(32,) in model.safetensors, and (64,) by config.json"),
        (
            {"num_hidden_layers": 1},
            "has weights that config.json does not know, first encoder.layer.1.",
        ),
        ({"num_hidden_layers": 3}, "lacks 16 of 53 weights, first encoder.layer.2."),
        ({"num_hidden_layers": "two"}, "config.json and model.safetensors cannot be read"),
        ({"num_attention_heads": 3}, "config.json and model.safetensors cannot be read"),
        ({"hidden_act": "none such"}, "config.json and model.safetensors cannot be read (KeyError"),
        (
            {"model_type": None},
            "config.json has no model_type; name it there, one of albert, bert, camembert, ",
        ),
        (
            {"model_type": "gpt2"},
            "of the architecture 'gpt2', which is not taken; take one of albert, bert, ",
        ),
        ({"model_type": "t5"}, "of the architecture 't5', which is not taken"),
        ({"model_type": "llama"}, "of the architecture 'llama', which is not taken"),
        ({"model_type": "deberta-v2"}, "of the architecture 'deberta-v2', which is not taken"),
        ({"model_type": "own", "auto_map": {"AutoModel": "a.B"}}, "of the architecture 'own'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
    ],
)
def test_a_config_of_another_encoder_is_refused(copied, changes, words):
    config = json.loads((copied / "config.json").read_text()) | changes
    (copied / "config.json").write_text(json.dumps(config))
    assert words in read_refusal(copied)


def test_no_code_of_a_folder_runs(copied):
    """The architecture is known, and the library has the code for it."""
    (copied / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    assert type(encoders.load_encoder(str(copied))[0]).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    "beside, words",
    [
        ("model.safetensors.index.json", "has its weights in several files .* save it in one"),
        ("adapter_config.json", "holds an adapter and no encoder"),
        (
            "pytorch_model.bin",
            "has no model.safetensors, and weights as pytorch_model.bin are not read",
        ),
        ("notes.txt", "has no model.safetensors; save the encoder there with save_pretrained"),
    ],
)
def test_weights_in_another_form_are_refused(copied, beside, words):
    (copied / "model.safetensors").rename(copied / beside)
    with pytest.raises(UserError, match=words):
        encoder_files.identify_weights(str(copied))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(copied, file):
    (copied / file).unlink()
    assert f"has no {file}; save the encoder" in read_refusal(copied)


# ---- tokenizers ----


def test_a_tokenizer_with_more_pieces_than_the_encoder_is_refused(copied, small_encoder, tokenizer):
    AutoTokenizer.from_pretrained(encoder_files.find_folder("minilm")).save_pretrained(copied)
    assert "its tokenizer has 30522 word pieces and the encoder embeds 600; " in read_refusal(
        copied
    )
    # an encoder with more embeddings than word pieces is common
    larger = small_encoder(vocab_size=640)
    assert len(encoders.load_encoder(str(larger))[1]) == 600


@pytest.mark.parametrize("token", ["pad_token", "cls_token", "sep_token"])
def test_a_tokenizer_without_a_special_token_is_refused(copied, token):
    change_tokenizer(copied, drop=token, padding=None)
    assert f"its tokenizer has no {token}; name one in tokenizer_config.json" in read_refusal(
        copied
    )


def test_a_tokenizer_that_adds_no_special_tokens_is_refused(copied):
    change_tokenizer(copied, post_processor=None)
    words = "its tokenizer does not put [CLS] before a question and [SEP] behind it"
    assert words in read_refusal(copied)


def test_tokenizer_and_encoder_must_pad_with_the_same_token(small_encoder):
    other = small_encoder("roberta", pad_token_id=1)
    words = "pads with token 0 and the encoder with 1 (pad_token_id in config.json)"
    assert words in read_refusal(other)


def change_tokenizer(folder: Path, drop: str = "", **changes):
    """Change parts of tokenizer.json and drop an entry of tokenizer_config.json.

    The tokenizer is then read as it is written, whatever the architecture.
    """
    rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(rules | changes))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop(drop, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


# ---- lengths ----


def test_windows_longer_than_the_encoder_s_positions_are_refused(small_encoder, tiny):
    few = {"encoder": str(small_encoder(max_position_embeddings=60))}
    words = "reads 60 tokens, and windows of 64 are asked for; lower it"
    with pytest.raises(UserError, match=words):
        study.run(tiny(**few, max_length=64, stride=16), plans.plan, live=False)
    words = "windows of 60 are padded to a multiple of 8; lower it to 56"
    with pytest.raises(UserError, match=words):
        study.run(tiny(**few, max_length=60, stride=16), plans.plan, live=False)
    spec = plans.plan(tiny(**few, max_length=56, stride=16))[0]
    assert study.measure_speed(spec) > 0
    long = [" ".join(["when"] * 99)]
    assert clusters.pool_states(few["encoder"], long).shape == (1, 32)


def test_an_encoder_that_is_refused_trains_nothing(copied, tiny, monkeypatch, tmp_path):
    change_weights(copied, partial(prefix_all, "module."))
    monkeypatch.setattr(study, "_train", lambda *args: pytest.fail("it trains"))
    with pytest.raises(UserError, match="lacks 37 of 37 weights"):
        study.run(tiny(encoder=str(copied)), plans.plan, live=False)
    pair = f"{tmp_path}/a.jsonl:{tmp_path}/b.jsonl"
    monkeypatch.setattr("sys.argv", ["own", "mine", pair, pair, "-p", f"encoder={copied}"])
    with pytest.raises(UserError, match="lacks 37 of 37 weights"):
        run_verb(sys.argv)


def test_long_questions_leave_room_for_context_beside_four_special_tokens(tokenizer, tmp_path):
    """RoBERTa's pairs have one special token more than BERT's."""
    folder = Path(tokenizer.save_pretrained(tmp_path / "pairs")[0]).parent
    change_tokenizer(folder, post_processor=ROBERTA_PAIRS)
    pairs = AutoTokenizer.from_pretrained(folder)
    assert pairs.num_special_tokens_to_add(pair=True) == 4
    rows = corpora.draw_questions("news", 4)
    rows = [row | {"question": " ".join([row["question"]] * 12)} for row in rows]
    for length, stride in ((32, 15), (64, 31), (100, 49), (132, 64)):
        windows = features.load_windows(rows, pairs, length, stride, tmp_path / "cache")
        assert len(windows) > len(rows)


ROBERTA_PAIRS = {
    "type": "RobertaProcessing",
    "sep": ["[SEP]", 3],
    "cls": ["[CLS]", 2],
    "trim_offsets": True,
    "add_prefix_space": False,
}


# ---- names ----


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "models/minlm",
            "encoder models/minlm: there is no such folder, seen from .*/, and it .*; "
            "did you mean models/minilm.$",
        ),
        ("model/minilm", "did you mean models/minilm.$"),
        ("minlm", "did you mean minilm.$"),
        (
            "./models/minlm",
            "folder ./models/minlm does not exist, .*; did you mean models/minilm.$",
        ),
        ("models/minlm/", "encoder folder models/minlm/ does not exist"),
        ("a/b/c", "folder a/b/c does not exist, .*; name a folder, a hub id or 'minilm'"),
        ("~nobody-of-this-name/x", "folder ~nobody-of-this-name/x does not exist"),
        ("models/minilm/config.json", "is a file; name the folder .*, encoder=models/minilm"),
        (
            "some/encoder",
            "name an encoder's folder or minilm, which need no network .* "
            "or give the same command once with network",
        ),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(whole, tmp_path, monkeypatch, name, words):
    shutil.copytree(whole, tmp_path / "models" / "minilm")
    (tmp_path / "models" / "minilm-notes").mkdir()
    monkeypatch.chdir(tmp_path)
    pair = "a.jsonl:b.jsonl"
    monkeypatch.setattr("sys.argv", ["own", "mine", pair, pair, "-p", f"encoder={name}"])
    with pytest.raises(UserError, match=words) as error:
        run_verb(sys.argv)
    sentence = str(error.value)
    for text in ("\n", "make data", "PROFILE", "DATA="):
        assert text not in sentence


def test_a_name_that_the_hub_does_not_know_gets_no_advice_about_the_network():
    from huggingface_hub.errors import RepositoryNotFoundError

    unknown = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    sentence = str(hub.describe_offline("model", "some/encoder", unknown))
    assert "it has no public repository of that name" in sentence
    assert "with network" not in sentence
    sentence = str(hub.describe_offline("dataset", "some/data", unknown))
    assert "mend its name in params/datasets.yaml" in sentence
    assert "with network" not in sentence


@pytest.mark.parametrize("name", ["x" * 300, f"./{'x' * 300}/y", f"some/{'x' * 300}"])
def test_an_encoder_whose_name_is_too_long_is_one_sentence(name):
    with pytest.raises(UserError, match=f"^encoder folder {name} does not exist, seen from"):
        encoder_files.find_folder(name)


def test_an_encoder_of_the_hub_is_read_like_a_folder(whole, copied, tmp_path, monkeypatch):
    """It is read from the hub's cache on disk, at the pinned revision."""
    pinned = "0" * 40
    snapshot = tmp_path / "hub" / "models--some--encoder" / "snapshots" / pinned
    shutil.copytree(whole, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "PINS", tmp_path / "pins.yaml")
    (tmp_path / "pins.yaml").write_text(f"some/encoder: '{pinned}'\n")
    ours = load_weights("some/encoder")
    theirs = load_weights(whole)
    assert encoder_files.identify_weights("some/encoder") == pinned
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    encoders.read_encoder.cache_clear()
    (snapshot / "model.safetensors").write_bytes(LFS)
    words = "some/encoder, at the hub's revision 000000000000,.* Git LFS"
    with pytest.raises(UserError, match=words):
        encoders.load_encoder("some/encoder")


def test_parameters_of_a_plan_load_no_weights(tiny, copied):
    """A page is drawn from records, for which the encoder's weights need not be readable."""
    (copied / "model.safetensors").write_bytes(b"of the same name")
    assert plans.plan(tiny(encoder=str(copied)))
    assert plans.load_params("exbert", "quick")
