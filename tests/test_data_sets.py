"""Data sets: every kind of source, the columns of known data sets, and mistakes named by row and field."""

import json

import pandas
import pytest
import torch

from course_lib import data_sets
from course_lib.algorithms import dpo, pretrain, sft
from course_lib.data_sets import conversations, documents, fitting, preferences, questions, texts
from course_lib.environments import LMAgent, Questions
from course_lib.rewards.maths import maths_reward


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


TALKS = [{"messages": [user("Hi?"), said("Hello.")]},
         {"messages": [{"role": "system", "content": "Be kind."}, user("Hm"), said("Oh")]}]
PAIRS = [{"prompt": "Where is SF?", "chosen": "In California.", "rejected": "No idea."},
         {"prompt": "And LA?", "chosen": "There, too.", "rejected": "Hm."}]
SUMS = [{"prompt": "What is 1 + 1?", "answer": "2"}, {"prompt": "And 2 + 5?", "answer": "7"}]


def write(path, rows):
    """The rows in a file of the kind that its name says."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        frame = pandas.DataFrame([{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows])
        frame.to_csv(path, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(params=["list", "frame", "dataset", ".jsonl", ".json", ".csv", ".parquet"])
def source(request, tmp_path):
    """Makes a source of each kind from rows."""
    def make(rows):
        if request.param == "list":
            return rows
        if request.param == "frame":
            return pandas.DataFrame(rows)
        if request.param == "dataset":
            import datasets

            return datasets.Dataset.from_list(rows)
        return write(tmp_path / f"data{request.param}", rows)

    return make


# Sources


def test_every_kind_of_source_gives_the_same_rows(source):
    assert conversations(source(TALKS)) == [row["messages"] for row in TALKS]
    assert preferences(source(PAIRS))[1] == {"prompt": [user("And LA?")], "chosen": [said("There, too.")],
                                             "rejected": [said("Hm.")]}
    assert questions(source(SUMS), limit=1) == [{"prompt": [user("What is 1 + 1?")], "answer": "2"}]
    assert texts(source([{"text": "Once."}, {"text": "Upon."}])) == ["Once.", "Upon."]


def test_columns_can_be_renamed_and_others_stay(tmp_path):
    file = write(tmp_path / "a.csv", [{"question": "Where?", "answer": "7", "level": "2"}])
    assert questions(file, rename={"question": "prompt"}) == [{"prompt": [user("Where?")], "answer": "7", "level": "2"}]


@pytest.mark.parametrize("rows", [[{"question": "Where?", "prompt": "Old", "answer": "7"}],
                                  [{"prompt": "Old", "question": "Where?", "answer": "7"}]])
def test_pitfall_a_new_name_that_another_column_has_is_refused(rows):
    with pytest.raises(ValueError, match="row 0: rename gives two columns one name; there are .*question"):
        questions(rows, rename={"question": "prompt"})
    assert questions(rows, rename={"question": "prompt", "prompt": "old"})[0]["prompt"] == [user("Where?")]


def test_a_frame_read_from_a_file_has_arrays_for_lists(tmp_path):
    def frame(rows):
        return pandas.read_parquet(write(tmp_path / "a.parquet", rows))

    assert conversations(frame(TALKS)) == [row["messages"] for row in TALKS]
    pair = {"prompt": [user("Hi")], "chosen": [said("Hello.")], "rejected": [said("Go.")]}
    assert preferences(frame([pair])) == [pair]
    whole = {side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")}
    assert preferences(frame([whole]), preset="ultrafeedback") == [pair]


def test_several_splits_and_rows_without_columns_are_said():
    for given in (dict(train=SUMS), SUMS[0]):
        with pytest.raises(ValueError, match=r"give one split, such as data\['train'\], or a list of rows"):
            questions(given)
    for row in (3, "text", ["text"]):
        with pytest.raises(ValueError, match="row 1: it is no object with columns"):
            texts([{"text": "a"}, row])
        assert texts([{"text": "a"}, row], bad="drop") == ["a"]


def test_what_is_no_source_is_said(tmp_path):
    for given, says in (("nothing", "give a file .*owner/name.*gsm8k"), (tmp_path / "no.jsonl", "no file"),
                        (tmp_path, "no data set")):
        with pytest.raises(ValueError, match=says):
            texts(given)
    with pytest.raises(ValueError, match="no preset 'x'; there are tinystories"):
        texts([{"text": "a"}], preset="x")
    with pytest.raises(ValueError, match="bad is"):
        texts([{"text": "a"}], bad="ignore")


def test_a_data_set_of_the_hub_that_cannot_be_had_is_said_at_once():
    with pytest.raises(ValueError, match="no data set 'openai/gsm8k'.*cannot be reached.*give a file"):
        questions("gsm8k")
    with pytest.raises(ValueError, match="no data set 'some/data' with the split 'test'"):
        texts("some/data", split="test")


@pytest.mark.parametrize("limit", [None, 1])
def test_a_data_set_of_the_hub_is_asked_for_by_its_own_name_and_split(monkeypatch, limit):
    asked = []

    def load_dataset(*where, **how):
        asked.append((where, how))
        return iter([{"question": "1 + 1?", "answer": "<<1+1=2>>\n#### 2"}] * 3)

    monkeypatch.setattr(data_sets, "online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(questions("gsm8k", limit=limit)) == (limit or 3)
    assert asked == [(("openai/gsm8k", "main"), {"split": "train", "streaming": limit is not None})]


def test_a_known_data_set_by_its_name_of_the_hub_has_its_config_and_split(monkeypatch):
    asked = []

    def load_dataset(*where, **how):
        asked.append((*where, how["split"]))
        return iter([{"question": "1 + 1?", "answer": "#### 2", "chosen": [user("a"), said("b")],
                      "rejected": [user("a"), said("c")]}])

    monkeypatch.setattr(data_sets, "online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert questions("openai/gsm8k", preset="gsm8k", split="test")[0]["answer"] == "2"
    assert questions("openai/gsm8k", rename={"question": "prompt"})[0]["answer"] == "#### 2"
    assert preferences("HuggingFaceH4/ultrafeedback_binarized", preset="ultrafeedback")
    assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train"),
                     ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs")]


def test_several_configs_are_said_with_the_whole_reason(monkeypatch):
    def load_dataset(*where, **how):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']")

    monkeypatch.setattr(data_sets, "online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"among the available configs: \['main', 'socratic'\]\. .*load_dataset\(name, config"):
        questions("some/data")


def test_a_split_of_what_has_none_is_refused(source):
    with pytest.raises(ValueError, match="split='test' is for a data set of the hub"):
        questions(source(SUMS), split="test")


# Mistakes, by row and field


@pytest.mark.parametrize(("kind", "row", "says"), [
    (conversations, {"message": []}, r"there is no column messages; there are message; rename"),
    (conversations, {"messages": "Hi"}, r"field messages: 'Hi' is no list of messages"),
    (conversations, {"messages": []}, r"field messages: \[\] is no list"),
    (conversations, {"messages": [user("a"), {"role": "assistant"}]}, r"field messages\[1\]: .* has no role and content"),
    (conversations, {"messages": [user("a"), said(" ")]}, r"field messages\[1\].content is empty"),
    (conversations, {"messages": [user("a"), said(3)]}, r"field messages\[1\].content: 3 \(int\) is no text"),
    (conversations, {"messages": [user("a"), {"role": "bot", "content": "b"}]}, r"messages\[1\].role: 'bot' is none of system"),
    (conversations, {"messages": [said("b")]}, r"messages\[0\].role: 'assistant' cannot come first"),
    (conversations, {"messages": [user("a"), user("b"), said("c")]}, r"messages\[1\].role: 'user' cannot follow 'user'"),
    (conversations, {"messages": [user("a"), {"role": "system", "content": "s"}, said("c")]}, "'system' cannot follow 'user'"),
    (conversations, {"messages": [user("a")]}, "the last is the user's, and nobody answers"),
    (preferences, {"prompt": "a", "chosen": "b"}, "there is no column rejected; there are prompt, chosen"),
    (preferences, {"prompt": "a", "chosen": "b", "rejected": ""}, "field rejected is empty"),
    (preferences, {"prompt": "a", "chosen": "b", "rejected": None}, "field rejected: None \\(NoneType\\) is no text"),
    (preferences, {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same: 'b'"),
    (preferences, {"prompt": "a", "chosen": "b", "rejected": [said("b")]}, "chosen and rejected are the same: 'b'"),
    (preferences, {"prompt": [user("a"), said("b")], "chosen": "c", "rejected": "d"}, "prompt: the last message is the assis"),
    (preferences, {"prompt": "a", "chosen": [user("a"), said("b")], "rejected": "d"}, "field chosen: give the assistant's last"),
    (preferences, {"prompt": 3, "chosen": "b", "rejected": "d"}, "field prompt: 3 is no list of messages"),
    (questions, {"prompt": " ", "answer": "b"}, "field prompt is empty"),
    (questions, {"prompt": "a", "answer": ""}, "field answer is empty"),
    (questions, {"prompt": "a", "answer": float("nan")}, "field answer is empty"),
    (questions, {"prompt": "a", "answer": True}, "field answer: True \\(bool\\) is no text"),
    (texts, {"text": "\n"}, "field text is empty"),
])
def test_pitfall_a_mistake_is_named_by_row_and_field(kind, row, says):
    good = {conversations: TALKS, preferences: PAIRS, questions: SUMS, texts: [{"text": "a"}, {"text": "b"}]}[kind]
    with pytest.raises(ValueError, match=rf"the rows, row 2: .*{says}"):
        kind([*good, row])
    assert len(kind([*good, row], bad="drop")) == 2


def test_dropped_rows_are_counted(capsys):
    assert len(texts([{"text": "a"}, {"text": ""}, {"text": 4}], bad="drop")) == 1
    assert "2 of 3 rows are left out; the first: the rows, row 1: field text is empty" in capsys.readouterr().err


def test_no_rows_and_no_good_rows_are_errors(source, tmp_path):
    with pytest.raises(ValueError, match="is empty: there is no row to learn from"):
        texts([])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl is empty"):
        texts(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="row 0: field text is empty"):
        texts([{"text": ""}], bad="drop")


def test_broken_files_are_named_by_their_row(tmp_path):
    file = tmp_path / "a.jsonl"
    for line, says in (('{"text": ', "a.jsonl, row 1: not JSON"), ("[3]", "a.jsonl, row 1: a line must hold an object")):
        file.write_text('{"text": "a"}\n\n' + line + "\n")
        with pytest.raises(ValueError, match=says):
            texts(file)
    write(tmp_path / "b.csv", [{"messages": '[{"role": "user", "content": "Hi"},]'}])
    with pytest.raises(ValueError, match="b.csv, row 0: field messages: a list of messages that is no JSON"):
        conversations(tmp_path / "b.csv")


def test_a_file_with_lines_that_cannot_be_read_is_refused_also_where_bad_rows_are_dropped(tmp_path):
    for name, text in (("a.jsonl", '{"text": "a"}\n{"text":\n{"text": "b"}\n'), ("a.csv", "text\na\nb,c\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"^{name}, row 1: not "):
            texts(tmp_path / name, bad="drop")


@pytest.mark.parametrize("rows", [{"data": SUMS, "n": 2}, SUMS[0]])
def test_pitfall_a_json_file_that_is_one_object_over_several_lines(rows, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    with pytest.raises(ValueError, match=rf"^a.json is one object, with {', '.join(rows)}: a .json file holds a list"):
        questions(tmp_path / "a.json")


LISTS = {"prompt": [user("Where?")], "chosen": [said("It's here.")], "rejected": [said("No.")]}


def test_pitfall_lists_of_messages_that_were_written_as_text(tmp_path):
    """pandas.to_csv writes lists as Python prints them: their texts would be learned as they stand there."""
    pandas.DataFrame([LISTS]).to_csv(tmp_path / "a.csv", index=False)
    pandas.DataFrame([{**LISTS, "prompt": "Where?", "chosen": "Here."}]).to_csv(tmp_path / "b.csv", index=False)
    whole = {side: LISTS["prompt"] + LISTS[side] for side in ("chosen", "rejected")}
    pandas.DataFrame([whole]).to_csv(tmp_path / "c.csv", index=False)
    pandas.DataFrame(TALKS).to_csv(tmp_path / "d.csv", index=False)
    for name, field, kind, options in (("a", "prompt", preferences, {}), ("b", "rejected", preferences, {}),
                                       ("c", "chosen", preferences, {"preset": "ultrafeedback"}),
                                       ("d", "messages", conversations, {})):
        for source in (tmp_path / f"{name}.csv", pandas.read_csv(tmp_path / f"{name}.csv")):
            with pytest.raises(ValueError, match=f"row 0: field {field}: .* is no JSON .* save the data as .jsonl or .parquet"):
                kind(source, **options)
    with pytest.raises(ValueError, match="row 0: field prompt: a list of messages that is no JSON"):
        data_sets.prompts([{"prompt": str(LISTS["prompt"])}])


def test_lists_of_messages_as_json_in_a_csv(tmp_path):
    assert preferences(write(tmp_path / "a.csv", [LISTS])) == [LISTS]
    renamed = {"prompt": LISTS["prompt"], "good": LISTS["chosen"], "poor": "No."}
    assert preferences(write(tmp_path / "b.csv", [renamed]), rename={"good": "chosen", "poor": "rejected"}) == [LISTS]
    whole = {side: LISTS["prompt"] + LISTS[side] for side in ("chosen", "rejected")}
    assert preferences(write(tmp_path / "c.csv", [whole]), preset="ultrafeedback") == [LISTS]


@pytest.mark.parametrize("text", ["[{'a': 1}, {'b': 2}]", '[{"role": "user", "content": "Hi"}] is what?', "[1, 2]",
                                  "Mend [{'role': 'user', 'content': 'x'}]"])
def test_texts_with_lists_in_them_stay_texts(text):
    assert data_sets.prompts([{"prompt": text}]) == [{"prompt": [user(text)]}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_json_may_hold_any_character_and_begin_with_a_mark(name, start, tmp_path):
    rows = [{"text": "one\u2028two"}, {"text": "and\x85three"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for text in ("\n".join(lines), "\r\n".join(lines) + "\r\n", f"[{','.join(lines)}]")[: 2 if name == "a.jsonl" else 3]:
        (tmp_path / name).write_bytes((start + text).encode())
        assert texts(tmp_path / name) == [row["text"] for row in rows]


def test_a_file_in_another_encoding_or_broken_is_named(tmp_path):
    for name, content in (("a.jsonl", '{"text": "é"}'), ("a.json", '[{"text": "é"}]'), ("a.csv", "text\né\n")):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=f"^{name}: 'utf-8' codec can't decode"):
            texts(tmp_path / name)
    (tmp_path / "a.json").write_text('[{"text": "a"},]')
    with pytest.raises(ValueError, match="^a.json: .*line 1"):
        texts(tmp_path / "a.json")


@pytest.mark.parametrize(("text", "says"), [
    ("prompt,answer\nSam has 3 apples, and eats 1,2\nAnn has 5 pens, and buys 4,9\n", "row 0: not as many fields as the head"),
    ("prompt,answer\nSam has 3,2\nAnn has 5 pens, and buys 4,9\n", "row 1: not as many fields as the head"),
    ("prompt,answer\nSam has 3,2\n\nAnn has 5 pens\n", "row 1: not as many fields as the head"),
    ('prompt,answer\nSam has 3,2\n"Ann has 5 pens,9\n', "a.csv, line 3: unexpected end of data"),
    ('prompt,answer\n"Sam" has 3,2\n', "a.csv, line 2: ',' expected"),
    ("prompt,answer\n", "a.csv is empty"), ("", "a.csv is empty"),
])
def test_pitfall_a_csv_whose_texts_lack_quotes_is_refused(text, says, tmp_path):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        questions(tmp_path / "a.csv")


@pytest.mark.parametrize("text", [
    "prompt,answer\na?,1\nb?,2\n", "\nprompt,answer\n\na?,1\n  \nb?,2\n\n", "prompt,answer\r\na?,1\r\nb?,2\r\n",
    '\ufeffprompt,answer\n"a?",1\nb?,"2"', ",prompt,answer,,prompt\n0,a?,1,,c\n1,b?,2,,d\n",
    'prompt,answer,note\na?,1,"' + "long " * 50_000 + '"\nb?,2,\n',
])
def test_csvs_as_other_programs_write_them(text, tmp_path):
    (tmp_path / "a.csv").write_bytes(text.encode())
    rows = questions(tmp_path / "a.csv")
    assert [(row["prompt"][0]["content"], row["answer"]) for row in rows] == [("a?", "1"), ("b?", "2")]


def test_a_csv_holds_texts_even_where_they_look_like_numbers_or_like_nothing(tmp_path):
    file = write(tmp_path / "a.csv", [{"prompt": "1 + 6?", "answer": "007"}, {"prompt": "Who?", "answer": "NA"}])
    assert [row["answer"] for row in questions(file)] == ["007", "NA"]


# The columns of known data sets


def test_anthropic_hh(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Where is\nSF?\n\nAssistant:"
    rows = [{"chosen": start + " In CA.", "rejected": start + " Dunno: it\n\nmoves."}]
    for file in (write(tmp_path / "a.jsonl", rows), write(tmp_path / "a.parquet", rows)):
        assert preferences(file, preset="hh") == [{
            "prompt": [user("Hi"), said("Hello."), user("Where is\nSF?")], "chosen": [said("In CA.")],
            "rejected": [said("Dunno: it\n\nmoves.")]}]
    for broken, says in (({"chosen": "Hi", "rejected": "Hi"}, "field chosen: a transcript begins with"),
                         ({"chosen": start + " a", "rejected": "\n\nHuman: Hm\n\nAssistant: a"}, "differ before their last turn"),
                         ({"chosen": start + " a", "rejected": start}, "field rejected is empty"),
                         ({"chosen": start + " a", "rejected": 5}, "field rejected: 5 \\(int\\) is no text"),
                         ({"chosen": [user("Hi")], "rejected": [user("Hi")]}, "field chosen: .* \\(list\\) is no text"),
                         ({"chosen": start + " a"}, "there is no column rejected; there are chosen$")):
        with pytest.raises(ValueError, match=rf"row 1: .*{says}"):
            preferences([*rows, broken], preset="hh")


def test_ultrafeedback(tmp_path):
    row = {"prompt": "Where?", "prompt_id": "f0", "chosen": [user("Where?"), said("Here.")],
           "rejected": [user("Where?"), said("No.")], "messages": [user("Where?"), said("Here.")], "score_chosen": 8.0,
           "score_rejected": 3.0}
    file = write(tmp_path / "a.parquet", [row])
    assert preferences(file, preset="ultrafeedback") == [
        {"prompt": [user("Where?")], "chosen": [said("Here.")], "rejected": [said("No.")]}]
    assert conversations(file) == [row["messages"]]
    for broken, says in ((row | {"rejected": [user("When?"), said("No.")]}, "differ before their last message"),
                         (row | {"rejected": row["chosen"]}, "chosen and rejected are the same"),
                         (row | {"chosen": "Here."}, "field chosen: 'Here.' is no list of messages"),
                         (row | {"chosen": [user("Where?"), said("")]}, r"field chosen\[1\].content is empty")):
        with pytest.raises(ValueError, match=rf"row 0: .*{says}"):
            preferences([broken], preset="ultrafeedback")


def test_gsm8k(tmp_path):
    rows = [{"question": "Half of 2,400 and 10?", "answer": "2400/2 = <<2400/2=1200>>1200\nso\n#### 1,210"}]
    file = write(tmp_path / "a.jsonl", rows)
    got = questions(file, preset="gsm8k")
    assert got == [{"prompt": [user("Half of 2,400 and 10?")], "answer": "1210",
                    "solution": "2400/2 = <<2400/2=1200>>1200\nso"}]
    assert maths_reward("####")(prompts=[""], completions=["so\n#### 1210"], answer=[got[0]["answer"]]) == [1.1]
    with pytest.raises(ValueError, match="row 0: field answer: there is no '####' in '7'"):
        questions([{"question": "3 + 4?", "answer": "7"}], preset="gsm8k")
    with pytest.raises(ValueError, match=r"row 0: field answer: \['7'\] \(list\) is no text"):
        questions([{"question": "3 + 4?", "answer": ["7"]}], preset="gsm8k")


def test_tinystories(tmp_path):
    file = write(tmp_path / "a.parquet", [{"text": " Once upon a time.\n"}])
    assert texts(file, preset="tinystories") == ["Once upon a time."]


def test_presets_name_what_is_on_the_hub():
    assert {name: (p.hub, p.config, p.split) for name, p in data_sets.PRESETS.items()} == {
        "tinystories": ("roneneldan/TinyStories", None, "train"), "hh": ("Anthropic/hh-rlhf", None, "train"),
        "ultrafeedback": ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs"),
        "gsm8k": ("openai/gsm8k", "main", "train")}


# Straight into the algorithms


def test_rows_go_straight_into_the_algorithms(tiny_lm, tmp_path):
    model, tokenizer = tiny_lm
    few = dict(lr=1e-3, precision="fp32", batch_size=2)
    assert sft.train(model, tokenizer, conversations(write(tmp_path / "a.jsonl", TALKS)), sft.SFTConfig(**few))
    assert dpo.train(model, tokenizer, preferences(write(tmp_path / "b.csv", PAIRS)), dpo.DPOConfig(**few))
    played = Questions(questions(write(tmp_path / "c.parquet", SUMS)), maths_reward())
    outcome = played.step(LMAgent(model, tokenizer, max_new_tokens=4).act(played.reset(2, 1, seed=0), seed=0))
    assert len(outcome.reward) == 2 and outcome.done.all()
    stories = documents(tokenizer, texts([{"text": "Once upon a time."}, {"text": "The end. " * 20}]), length=32)
    assert max(map(len, stories)) <= 32 and torch.tensor([ids[-1] == tokenizer.eos_token_id for ids in stories]).sum() == 2
    assert pretrain.train(model, stories, pretrain.PretrainConfig(context=32, **few))


def test_conversations_that_are_too_long_are_left_out_and_counted(tiny_lm, capsys):
    _, tokenizer = tiny_lm
    long = [user("Hi?"), said("Hello. " * 40)]
    assert fitting(tokenizer, [TALKS[0]["messages"], long], 64) == [TALKS[0]["messages"]]
    assert "1 of 2 conversations are longer than 64 tokens" in capsys.readouterr().err
