"""Duplicates, near-duplicate groups, and leakage between splits."""

from itertools import combinations, cycle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.compared_texts import get_compared_texts, hash_content
from loratune.data.conversation import build_conversation_record
from loratune.data.dedup import (
    SHARED_LIMIT_MIN,
    TASK_INPUTS,
    WordSets,
    assign_groups,
    build_word_set,
    extract_questions,
    find_components,
    find_shared_sentences,
    find_similar_labels,
    find_similar_pairs,
    link_similar,
    remove_duplicates,
)
from loratune.data.example import Record, build_text_record
from loratune.data.leakage import LIKE_HELD_OUT, LIKE_TRAINING, remove_leaks, remove_near_duplicates
from loratune.data.split import assign_split

word_sets = st.lists(
    st.frozensets(st.sampled_from("abcdefghij"), min_size=1), unique=True, min_size=1, max_size=12
)


def record(instruction: str, input: str = "", output: str = "x", **more) -> Record:
    return Record(
        instruction, input, output, **{"id": content_id_of(instruction, input, output), "source": "s", **more}
    )


def content_id_of(*texts: str) -> str:
    return "|".join(texts)


def collect_groups(records: list[Record]) -> set[frozenset[str]]:
    members: dict[str, set[str]] = {}
    for one in assign_groups(records):
        members.setdefault(one.group, set()).add(one.id)
    return {frozenset(ids) for ids in members.values()}


@given(word_sets, st.sampled_from([0.5, 0.7, 0.8, 1.0]))
def test_similar_pairs_equal_brute_force(sets, similarity):
    expected = {
        (one, other)
        for one, other in combinations(range(len(sets)), 2)
        if len(sets[one] & sets[other]) >= similarity * len(sets[one] | sets[other]) - 1e-9
    }
    assert {tuple(sorted(pair)) for pair in find_similar_pairs(sets, similarity).tolist()} == expected


@given(word_sets)
def test_similar_pairs_do_not_depend_on_the_size_of_a_chunk(sets):
    whole = find_similar_pairs(sets, 0.5).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loratune.data.dedup.PAIRS_PER_CHUNK", 1)
        assert find_similar_pairs(sets, 0.5).tolist() == whole


@given(word_sets, word_sets, st.sampled_from([0.5, 0.7, 1.0]))
def test_similar_labels_equal_brute_force(ones, others, similarity):
    # Doubled, because some single letters are stop words.
    ones, others = (
        ["", *(" ".join(sorted(letter * 2 for letter in found)) for found in side)] for side in (ones, others)
    )
    expected = [
        {
            f"label {number % 3}"
            for number, other in enumerate(others)
            if (both := set(one.split()) & set(other.split()))
            and len(both) >= similarity * len(set(one.split()) | set(other.split())) - 1e-9
        }
        for one in ones
    ]
    ones, others = (
        [WordSets(build_word_set(text), build_word_set(text)) for text in side] for side in (ones, others)
    )
    assert (
        find_similar_labels(
            ones, [(other, f"label {number % 3}") for number, other in enumerate(others)], similarity
        )
        == expected
    )
    assert (
        find_similar_labels(ones, [], similarity) == [set() for _ in ones]
        and find_similar_labels([], [(others[0], "")], similarity) == []
    )


@given(
    st.lists(
        st.tuples(st.frozensets(st.sampled_from("abcdef")), st.frozensets(st.sampled_from("abcdef"))),
        max_size=9,
    )
)
def test_texts_must_be_similar_with_and_without_shared_text(pairs):
    """So that leaving out what is shared never joins rows."""
    texts = [WordSets(every, every & own) for every, own in pairs]
    found = find_components(link_similar(texts, 0.7), len(texts))

    def near(one, other):
        return bool(one and other) and len(one & other) >= 0.7 * len(one | other) - 1e-9

    edges = [
        (one, other)
        for one, other in combinations(range(len(texts)), 2)
        if near(texts[one].all, texts[other].all) and near(texts[one].own, texts[other].own)
    ]
    expected = find_components(np.array(edges, dtype=np.int64).reshape(-1, 2), len(texts))
    assert [found.index(label) for label in found] == [expected.index(label) for label in expected]


def test_repeated_prompt_counts_once_for_shared_text():
    rows = [
        record("How high is it?", "Mount Everest. It stands in Nepal.", output=str(number))
        for number in range(3 * SHARED_LIMIT_MIN)
    ]
    assert find_shared_sentences([row.input for row in rows], [row.input for row in rows]) == {}
    assert len(collect_groups(rows)) == 1


def test_near_duplicates_share_a_group_and_others_do_not():
    records = [
        record("Why is the sky blue?"),
        record("why is the SKY blue"),
        record("Please tell me why the sky is blue."),
        record("Why is the sea blue?"),
        record("Name a fruit."),
    ]
    together = frozenset(one.id for one in records[:3])
    assert collect_groups(records) == {together, frozenset([records[3].id]), frozenset([records[4].id])}


def test_equal_inputs_and_user_groups_join_records():
    passage = (
        "Mount Everest is the highest mountain of the world above the level of the sea, in the Himalayas."
    )
    records = [
        record("How high is it?", passage),
        record("Where does it stand?", passage.upper() + "  "),
        record("Name a fruit.", group="mine"),
        record("Colour of grass?", group="mine"),
    ]
    assert collect_groups(records) == {
        frozenset(one.id for one in records[:2]),
        frozenset(one.id for one in records[2:]),
    }


def test_task_instruction_does_not_join_its_rows():
    reviews = [
        record("Classify this review.", f"{word} film number {word}")
        for word in map(str, range(TASK_INPUTS + 1))
    ]
    assert len(collect_groups(reviews)) == len(reviews)
    assert len(collect_groups(reviews[:TASK_INPUTS])) == 1


@pytest.mark.parametrize(
    ("instruction", "question"),
    [
        ("How much?\nAnswer with a program.", "How much?"),
        ("How much?\n\n  ANSWER  with the result \n", "How much?\n"),
        ("Answer with a program.", "Answer with a program."),
        ("How much?\nAnswer it.", "How much?\nAnswer it."),
        ("Answer with care.\nHow much?", "Answer with care.\nHow much?"),
    ],
)
def test_answer_format_line_is_not_part_of_the_question(instruction, question):
    assert extract_questions([record(instruction)]) == [question]


def test_question_with_one_input_is_not_a_task():
    rows = [
        record("How high is it?", "Mount Everest", output=str(number)) for number in range(TASK_INPUTS + 1)
    ]
    assert len(collect_groups([*rows, record("How high is it?", "A page about the Himalayas")])) == 1


@given(
    st.permutations(
        [
            record(text)
            for text in ("sky blue", "blue sky", "red sun", "the red sun", "grass", "sky blue grass")
        ]
    )
)
def test_groups_do_not_depend_on_row_order(records):
    in_order = {one.id: one.group for one in assign_groups(sorted(records, key=lambda one: one.id))}
    assert {one.id: one.group for one in assign_groups(records)} == in_order


def test_duplicates_are_removed_and_ids_become_unique():
    records = [
        record("A  b", id="1"),
        record("a b ", id="2"),
        record("a b", output="y", id="1"),
        record("a b", output="z", id="1"),
    ]
    assert [one.id for one in remove_duplicates(records)] == ["1", "1#2", "1#3"]
    assert hash_content(records[0]) == hash_content(records[1]) != hash_content(records[2])
    clash = [record("a", id="1"), record("b", id="1"), record("c", id="1#2"), record("d", id="1")]
    assert [one.id for one in remove_duplicates(clash)] == ["1", "1#2", "1#2#2", "1#3"]


def test_duplicates_within_a_held_out_list_may_stay():
    official = [record("a", id="1"), record("A", id="2"), record("b", id="3")]
    others = [record("b", id="0"), record("a ", id="4"), record("c", id="5"), record("C", id="6")]

    def remaining_ids(records, all_of):
        return [one.id for one in remove_duplicates(records, all_of)]

    assert remaining_ids(official + others, [official]) == ["1", "2", "3", "5"]
    assert remaining_ids(others + official, [official]) == ["0", "4", "5"]
    assert remaining_ids(official + others, [official[:1], official[1:]]) == ["1", "3", "5"]


def test_many_equal_instructions_are_fast():
    """All pairs of 20,000 would be 200 million."""
    assert len(collect_groups([record("Write a poem.", output=str(number)) for number in range(20_000)])) == 1


def test_assigned_split_has_the_requested_share_and_depends_on_group_and_seed_alone():
    groups = [f"group {number}" for number in range(20_000)]
    splits = [assign_split(group, 0, 0.1) for group in groups]
    assert (
        splits
        == [assign_split(group, 0, 0.1) for group in groups]
        != [assign_split(group, 1, 0.1) for group in groups]
    )
    # 2,000 expected of each; five standard deviations are 212.
    assert all(abs(splits.count(split) - 2000) < 212 for split in ("val", "test"))
    assert {assign_split(group, 0, 0.0) for group in groups} == {"train"}


def test_larger_fraction_only_adds_held_out_groups():
    """val grows into what was test, and test into what was train: nothing held out becomes training data."""
    for number in range(2000):
        if assign_split(str(number), 0, 0.05) != "train":
            assert assign_split(str(number), 0, 0.1) != "train"


def test_near_duplicates_of_fixed_rows_in_other_splits_are_removed():
    fixed = {
        "train": [record("What was the net income of 2007?\nAnswer with a program.", group="p1")],
        "val": [record("What was the net income of 2007?\nAnswer with a program.", "other page", group="p2")],
        "test": [
            record("What was the revenue of 2008?\nAnswer with a program.", "a b c d e f g h k l", group="p3")
        ],
    }
    mine = {
        "train": ["the net income of 2007", "the revenue of 2008", "the tax of 2009"],
        "val": ["the net income of 2007?", "the revenue of 2008?", "the tax of 2010"],
        "test": ["The net income of 2007", "The revenue of 2008", "the tax of 2011"],
    }
    others = {
        split: [record(text, source="mine", group=text) for text in texts] for split, texts in mine.items()
    }
    by_input = {split: record("Sum up", "b c d e f g h k l", id=split, source="mine") for split in mine}
    splits = {split: [*fixed[split], *others[split], by_input[split]] for split in fixed}
    remaining, removed = remove_near_duplicates(splits, [one for rows in fixed.values() for one in rows])
    assert {split: [one.id for one in rows] for split, rows in remaining.items()} == {
        "train": [fixed["train"][0].id, "the tax of 2009||x"],
        "val": [fixed["val"][0].id, "the tax of 2010||x"],
        "test": [fixed["test"][0].id, "The revenue of 2008||x", "the tax of 2011||x", "test"],
    }
    # FinQA itself asks the same in two parts; a row that is like both of them can only be nowhere.
    assert removed == {("mine", LIKE_HELD_OUT): 6, ("mine", LIKE_TRAINING): 1}


def test_between_fixed_sources_the_earlier_split_loses_near_duplicates():
    splits = {
        "train": [
            record("net income of 2007", source="a", group="1"),
            record("tax of 2009", source="b", group="2"),
        ],
        "val": [],
        "test": [
            record("net income of 2007?", source="b", group="3"),
            record("tax of 2010", source="a", group="4"),
        ],
    }
    remaining, removed = remove_near_duplicates(splits, [*splits["train"], *splits["test"]])
    assert remaining == {"train": splits["train"][1:], "val": [], "test": splits["test"]}
    assert removed == {("a", LIKE_HELD_OUT): 1}


def test_held_out_near_duplicate_of_a_fixed_training_row_is_removed():
    standing, free = (
        record("net income of 2007", group="1"),
        record("Net income of 2007?", source="mine", group="2"),
    )
    remaining, removed = remove_near_duplicates({"train": [standing], "val": [], "test": [free]}, [standing])
    assert remaining == {"train": [standing], "val": [], "test": []} and removed == {
        ("mine", LIKE_TRAINING): 1
    }


def test_groups_held_out_later_are_removed_from_earlier_splits():
    splits = {
        "train": [record("a", group="1"), record("b", group="2"), record("c", group="3")],
        "val": [record("d", group="2"), record("e", group="3")],
        "test": [record("f", group="3")],
    }
    remaining, removed = remove_leaks(splits)
    assert {split: [one.instruction for one in rows] for split, rows in remaining.items()} == {
        "train": ["a"],
        "val": ["d"],
        "test": ["f"],
    }
    assert removed == {("s", LIKE_HELD_OUT): 3}


# Conversations and plain text


def chat(*texts: str, system: str = "", weight: int = 1, **more) -> Record:
    """A conversation whose user and assistant take turns."""
    messages: list[dict] = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": role, "content": text}
        for role, text in zip(cycle(["user", "assistant"]), texts, strict=False)
    ]
    if not weight:
        messages[-3]["weight"] = 0
    record_id = content_id_of(system, *texts)
    return build_conversation_record(messages, source="s", record_id=record_id, **more)


def test_duplicate_conversations_have_the_same_roles_texts_and_calls():
    one = chat("Hi", "Hello", "Where is it?", "There.")
    same = [
        chat(" hi ", "HELLO", "Where  is it?", "there."),
        chat("Hi", "Hello", "Where is it?", "There.", weight=0),
        chat("Hi", "Hello", "Where is it?", "There.", tools=[{"name": "look"}]),
    ]
    other = [
        chat("Hi", "Hello", "Where is it?", "Here."),
        chat("Hi", "Hey", "Where is it?", "There."),
        chat("Hi", "Hello", "Where is it?", "There.", system="Be brief."),
        record("Where is it?", "User: Hi\nAssistant: Hello", "There."),
    ]
    assert {hash_content(record) for record in same} == {hash_content(one)}
    assert len({hash_content(record) for record in [one, *other]}) == 5


def test_a_conversation_is_compared_without_roles_and_system_message():
    compared = get_compared_texts(chat("Hi", "Hello", "Where is it?", "There.", system="Be brief."))
    assert compared == ("Hi", "Hello\nWhere is it?")


@pytest.mark.parametrize("arguments", [{"thing": "boot"}, {}])
def test_a_different_call_is_no_duplicate(arguments):
    def ask(arguments: dict) -> Record:
        call = {"function": {"name": "look", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return build_conversation_record([{"role": "user", "content": "Where?"}, answer], source="s")

    assert hash_content(ask({"thing": "kettle"})) == hash_content(ask({"thing": "KETTLE"}))
    assert hash_content(ask({"thing": "kettle"})) != hash_content(ask(arguments))


THINGS = [
    f"{size} {thing}"
    for size in ("huge", "tiny", "blue", "torn", "flat")
    for thing in ("kettle", "marble", "ladder", "whistle", "oven")
]


def expand(texts: list[str], system: str = "") -> list[Record]:
    """The beginnings of a chat, each up to one of its answers."""
    return [chat(*texts[:end], system=system) for end in range(2, len(texts) + 1, 2)]


def write_words(thing: str, number: int) -> str:
    """Words that no other thing or number has."""
    return f"{thing.replace(' ', '')}{number} {THINGS.index(thing) * 1000 + number}"


def write_turns(opening: str, thing: str, count: int) -> list[str]:
    """A chat about a thing, whose turns have few words in common."""
    asked = [write_words(thing, number) for number in range(count)]
    return [opening, "How can I help?", *(text for one in asked for text in (f"{one}?", f"Yes, {one}."))]


@pytest.mark.parametrize("system", ["", "You are Mila, the caretaker of old things."])
@pytest.mark.parametrize("turns", [3, TASK_INPUTS + 10])
def test_beginnings_of_one_chat_are_one_group(turns, system):
    chats = [write_turns(f"Something on my {thing}.", thing, turns) for thing in THINGS]
    expected = {frozenset(one.id for one in expand(texts, system)) for texts in chats}
    assert collect_groups([one for texts in chats for one in expand(texts, system)]) == expected


def test_a_row_of_one_turn_belongs_to_the_chats_that_open_with_it():
    chats = [chat("Fix this.\n\nA torn sail.", "Sew it.", "And then?", "Dry it."), chat("Why?", "Because.")]
    rows = [record("Fix this.", "A torn sail."), record("Sew", "A sail")]
    groups = collect_groups([*chats, *rows])
    (together,) = (group for group in groups if chats[0].id in group)
    assert rows[0].id in together and chats[1].id not in together and rows[1].id not in together


def test_chats_that_open_with_a_greeting_are_grouped_by_what_follows():
    """More than TASK_INPUTS different second questions make the first one a greeting."""
    chats = [expand(write_turns("Hi", thing, 3)) for thing in THINGS]
    assert len(THINGS) > TASK_INPUTS
    groups = collect_groups([one for beginnings in chats for one in beginnings[1:]])
    assert groups == {frozenset(one.id for one in beginnings[1:]) for beginnings in chats}
    few = [one for beginnings in chats[:TASK_INPUTS] for one in beginnings[1:]]
    assert len(collect_groups(few)) == 1


@pytest.mark.parametrize("count", [5, 25, 100])
def test_a_common_system_message_does_not_join_chats(count):
    system = "You are Mila, the patient caretaker of a town's store of old things."
    chats = [
        chat(
            f"{write_words(thing, number)}?",
            f"So, {write_words(thing, number + 10)}.",
            f"{write_words(thing, number + 20)}?",
            "Yes.",
            system=system,
        )
        for number in range(4)
        for thing in THINGS
    ][:count]
    assert len(collect_groups(chats)) == count


def test_a_common_last_question_does_not_join_chats():
    chats = [
        chat(f"Where is my {thing}?", f"Near the {thing}.", "Thank you!", "Bye.") for thing in THINGS[:9]
    ]
    assert len(collect_groups(chats)) == 9


def test_plain_texts_are_compared_as_a_whole():
    texts = [f"The {thing}, {write_words(thing, 1)} {write_words(thing, 2)}, fell." for thing in THINGS]
    records = [build_text_record(text, source="s") for text in texts]
    near = build_text_record(texts[0].replace("fell", "broke"), source="s")
    groups = collect_groups([*records, near])
    assert groups == {frozenset([records[0].id, near.id]), *(frozenset([one.id]) for one in records[1:])}
    same = build_text_record(texts[0].upper(), source="s")
    assert remove_duplicates([*records, same]) == records


@given(
    st.permutations(
        [chat(*texts[:end]) for texts in (["a", "b", "c", "d"], ["a", "b", "e", "f"]) for end in (2, 4)]
        + [record("a"), record("c"), record("a", "c"), build_text_record("a", source="s")]
    )
)
def test_groups_of_conversations_do_not_depend_on_row_order(records):
    in_order = {one.id: one.group for one in assign_groups(sorted(records, key=lambda one: one.id))}
    assert {one.id: one.group for one in assign_groups(records)} == in_order
