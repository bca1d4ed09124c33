"""Rows: what each column becomes, what each mistake is called, and which rows are held out."""

from __future__ import annotations

import logging

import pytest

from limbeck.errors import DataError

from .helpers import everything, load, sums

# What a row becomes


def test_a_prompt_is_one_user_message_where_there_is_a_template(write, chat):
    first = everything(load(write(*sums(3)), chat))[0]
    assert chat.decode(first.token_ids) == "<user>0+1=<assistant>"
    assert (first.text, first.answer, first.task, first.id) == ("0+1=", "1", "sums", "sums-000001")
    assert all(type(token) is int for token in first.token_ids)


@pytest.mark.parametrize("why", ["no template", "chat off"])
def test_a_prompt_is_raw_text_with_the_tokenizers_own_special_tokens_otherwise(why, write, chat, plain):
    tokenizer, keys = (plain, {}) if why == "no template" else (chat, {"chat": False})
    first = everything(load(write(*sums(3)), tokenizer, **keys))[0]
    assert tokenizer.decode(first.token_ids) == "<bos>0+1="


def test_messages_go_through_the_template_even_where_chat_is_off(write, chat):
    turns = [("user", "hi"), ("assistant", "yes?"), ("user", "1+1=")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    for keys in ({}, {"chat": False}):
        prompt = load(write(row, row), chat, **keys).train[0]
        assert chat.decode(prompt.token_ids) == "<user>hi<assistant>yes?<user>1+1=<assistant>"
        assert prompt.text == "user: hi\nassistant: yes?\nuser: 1+1="


def test_the_system_message_goes_before_prompts_and_messages(write, chat):
    path = write({"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]})
    texts = [chat.decode(p.token_ids) for p in everything(load(path, chat, system="Be brief."))]
    assert texts == ["<system>Be brief.<user>a<assistant>", "<system>Be brief.<user>b<assistant>"]


def test_other_columns_travel_as_metadata_and_named_ones_do_not(write, chat):
    row = {"prompt": "a", "answer": None, "id": "x7", "teacher": "maths", "level": 3, "tags": ["t"]}
    prompt = everything(load(write(row, {"prompt": "b"}), chat))[1]
    assert (prompt.id, prompt.answer, prompt.teacher) == ("x7", None, "maths")
    assert prompt.metadata == {"level": 3, "tags": ["t"]}


def test_columns_can_have_other_names(write, chat):
    columns = {"prompt": "question", "answer": "solution", "id": "name", "messages": "chat", "teacher": "who"}
    row = {"question": "a", "solution": "s", "name": 7, "who": "t", "id": "kept"}
    prompt = everything(load(write(row, {"question": "b"}), chat, columns=columns))[0]
    assert (prompt.text, prompt.answer, prompt.id, prompt.teacher) == ("a", "s", "7", "t")
    assert prompt.metadata == {"solution": "s", "id": "kept"}, "a teacher's prompt may quote the solution"


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (0, "0"), (-1.5, "-1.5"), ("07", "07"), (None, None)])
def test_numbers_become_text_and_nothing_stays_nothing(value, text, write, chat):
    row = {"prompt": "a", "answer": value}
    assert load(write(row, row), chat).train[0].answer == text


def test_lines_end_at_newlines_only_and_blank_ones_keep_the_count(write, chat):
    path = write('{"prompt": "a\u2028b"}', "", '{"prompt": "c\x85d"}')
    assert [(p.id, p.text) for p in everything(load(path, chat))] == [
        ("sums-000001", "a\u2028b"),
        ("sums-000003", "c\x85d"),
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path, chat):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a"}\n{"prompt": "b"}')
    assert [p.text for p in everything(load(str(path), chat))] == ["a", "b"]


# Mistakes in rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", r"line 2 is not JSON"),
        ("[1]", r"line 2 is \[1\] \(list\); expected an object"),
        ("[" * 100_000, r"line 2 is not JSON"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, r"expected one of the two"),
        ({"question": "a"}, r"neither a 'prompt' nor a 'messages'; the columns are 'question'"),
        ({}, r"the columns are none"),
        ({"prompt": 7}, r"'prompt' is 7 \(int\); expected text, or a list"),
        (
            {"prompt": '[{"role": "user", "content": "b"}]'},
            r"reads as a list of messages in JSON.*set task",
        ),
        ({"messages": "hello"}, r"'messages' is text that is not JSON"),
        ({"messages": '{"role": "user"}'}, r"'messages' is .* \(dict\); expected a list"),
        ({"messages": []}, r"expected a list of one message or more"),
        ({"messages": ["hello"]}, r"messages\[0\] is 'hello'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content is None"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"content\[0\] is of type 'image'; prompts",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"content\[0\] is of type 'text'"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\]\.content is \[\]"),
        ({"prompt": "a", "images": ["a.png"]}, r"it has 'images', and prompts are text alone"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\]\.role is None"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            r"ends with an assistant message",
        ),
        ({"messages": [{"role": "pope", "content": "a"}]}, r"refuses these messages.*unknown role pope"),
        ('{"prompt": "a\\ud800"}', r"lone surrogate '\\ud800' at character 1"),
        ({"prompt": "a", "answer": ["7"]}, r"'answer' is \['7'\]"),
        ({"prompt": "a", "answer": True}, r"'answer' is True"),
        ('{"prompt": "a", "answer": NaN}', r"'answer' is nan"),
        ({"prompt": "a", "id": 1.5}, r"'id' is 1\.5"),
        ({"prompt": "a", "id": ""}, r"'id' is ''"),
        ({"prompt": "a", "teacher": 1}, r"'teacher' is 1"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(row, message, write, chat):
    with pytest.raises(DataError, match=message) as caught:
        load(write({"prompt": "fine"}, row, {"prompt": "fine too"}), chat)
    assert "sums.jsonl line 2" in str(caught.value)


def test_a_wrong_byte_is_named_with_its_line(tmp_path, chat):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl line 2 is not JSON in UTF-8"):
        load(str(path), chat)


def test_a_prompt_without_tokens_is_an_error(write, chat, plain):
    path = write({"prompt": "fine"}, {"prompt": ""})
    assert len(load(path, chat).train) == 1, "the template gives it tokens"
    assert len(load(path, plain).train) == 1, "<bos> is a token"
    bare = type(plain)(tokenizer_object=plain.backend_tokenizer, unk_token="<unk>")
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match=r"line 2: the prompt has no tokens"):
        load(path, bare)


def test_messages_and_system_need_a_template_and_a_chat(write, chat, plain):
    with pytest.raises(DataError, match=r"line 1: messages need a chat template"):
        load(write({"messages": [{"role": "user", "content": "a"}]}), plain)
    with pytest.raises(DataError, match=r"task\.system = 'S' needs a chat template"):
        load(write(*sums(2)), plain, system="S")
    with pytest.raises(DataError, match=r"needs a chat to stand in, but task\.chat = false"):
        load(write(*sums(2)), chat, system="S", chat=False)
    own = {"messages": [{"role": "system", "content": "T"}, {"role": "user", "content": "a"}]}
    assert chat.decode(load(write(own, own), chat).train[0].token_ids) == "<system>T<user>a<assistant>"
    with pytest.raises(DataError, match=r"already begin with a system message"):
        load(write(own), chat, system="S")


def test_a_duplicate_id_names_both_rows_also_across_files(write, chat):
    rows = [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "y"}, {"prompt": "c", "id": "x"}]
    with pytest.raises(DataError, match=r"line 3: the id 'x' is already that of .*sums\.jsonl line 1"):
        load(write(*rows), chat)
    held_out = write(rows[0], name="held_out.jsonl")
    with pytest.raises(DataError, match=r"held_out\.jsonl line 1: the id 'x' is already that of .*sums"):
        load(write(*rows[:2]), chat, held_out_path=held_out)


def test_a_grader_needs_an_answer_in_every_row(write, chat):
    path = write({"prompt": "a", "answer": "1"}, {"prompt": "b"})
    for grader in ({"kind": "exact"}, {"kind": "numeric"}, {"kind": "regex", "pattern": "(.)"}):
        with pytest.raises(DataError, match=r"line 2: there is no answer"):
            load(path, chat, grader=grader)
    assert load(path, chat).grade(load(path, chat).train[0], "1") is None, "no grader: nothing to say"
    load(path, chat, grader={"kind": "python", "function": "os.path:commonprefix"})


def test_the_grader_grades(write, chat):
    task = load(write(*sums(2)), chat, grader={"kind": "numeric"})
    answer = task.train[0].answer
    assert (task.grade(task.train[0], f"it is {answer}"), task.grade(task.train[0], "it is 77")) == (1.0, 0.0)


# Training and held-out rows


def test_held_out_rows_are_chosen_by_the_seed_and_removed(write, chat):
    path = write(*sums(40))
    chosen = {}
    for seed in (0, 1):
        task = load(path, chat, seed=seed, held_out=10)
        again = load(path, chat, seed=seed, held_out=10)
        train, held_out = ([p.id for p in part] for part in (task.train, task.held_out))
        assert (len(train), len(held_out), len({*train, *held_out})) == (30, 10, 40)
        assert [p.id for p in again.held_out] == held_out
        assert train == sorted(train), "the order of the file"
        chosen[seed] = held_out
    assert chosen[0] != chosen[1]
    assert chosen[0] != [f"sums-{n:06d}" for n in range(1, 11)], "not simply the first"


def test_a_held_out_file_of_its_own(write, chat):
    path, other = write(*sums(5)), write(*sums(9, start=100), name="other.jsonl")
    task = load(path, chat, held_out_path=other, held_out=4)
    assert [p.text for p in task.train] == [f"{n}+1=" for n in range(5)]
    assert len(task.held_out) == 4
    assert {int(p.text[:-3]) for p in task.held_out} <= set(range(100, 109))
    assert {p.task for p in task.held_out} == {"sums"}
    assert len({p.id for p in everything(task)}) == 9
    with pytest.raises(DataError, match=r"task\.held_out = 10, but .*other\.jsonl has only 9.*at most 9"):
        load(path, chat, held_out_path=other, held_out=10)
    with pytest.raises(DataError, match=r"are both"):
        load(path, chat, held_out_path=path)


def test_too_few_rows_say_how_many_can_be_held_out(write, chat):
    path = write(*sums(10))
    assert len(load(path, chat, held_out=9).train) == 1
    with pytest.raises(DataError, match=r"task\.held_out = 10, but .* has only 10 prompts.*at most 9"):
        load(path, chat, held_out=10)
    with pytest.raises(DataError, match=r"Add rows\.$"):
        load(write(*sums(1)), chat)


def test_training_prompts_that_are_held_out_too_are_reported(write, chat, caplog):
    path, other = write(*sums(5)), write(*sums(2), name="other.jsonl")
    with caplog.at_level(logging.WARNING, "limbeck"):
        load(path, chat, held_out_path=other, held_out=2)
    assert "2 of 5 prompts to train on are also held out" in caplog.text


# Prompts that are too long


def test_too_long_prompts_stop_the_run_or_are_dropped_and_counted(write, chat, caplog):
    rows = [*sums(4), {"prompt": "9" * 30, "answer": 1}, {"prompt": "8" * 20, "answer": 1}]
    path = write(*rows)  # 6, 6, 6, 6, 32 and 22 tokens with <user> and <assistant>
    with pytest.raises(DataError, match=r"'sums-000005' has 32 tokens, but at most 21.*2 of 6") as caught:
        load(path, chat, longest_prompt=21)
    assert "rollout.max_tokens" in str(caught.value)
    assert 'task.too_long = "drop"' in str(caught.value)
    with caplog.at_level(logging.WARNING, "limbeck"):
        task = load(path, chat, longest_prompt=21, too_long="drop", held_out=3)
    assert (task.dropped, len(task.train), len(task.held_out)) == (2, 1, 3), "dropped before holding out"
    assert "dropped 2 of 6 prompts" in caplog.text
    assert load(path, chat, longest_prompt=32).dropped == 0, "exactly as long as allowed is fine"
    assert load(path, chat, longest_prompt=None).dropped == 0
    with pytest.raises(DataError, match=r"all 6 prompts are longer than 5 tokens.*leaves none"):
        load(path, chat, longest_prompt=5, too_long="drop")


def test_dropped_counts_the_held_out_file_too(write, chat):
    long = {"prompt": "9" * 30}
    path, other = write(*sums(2), long), write(*sums(2, start=5), long, name="other.jsonl")
    task = load(path, chat, longest_prompt=10, too_long="drop", held_out_path=other)
    assert task.dropped == 2
