from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from loratune.data.groups import TASK_ROWS, content_key, grouped, similar_pairs, without_duplicates
from loratune.data.records import Record
from loratune.data.split import split_of, without_leaks

word_sets = st.lists(st.frozensets(st.sampled_from("abcdefghij"), min_size=1), unique=True, min_size=1, max_size=12)


def record(instruction: str, input: str = "", output: str = "x", **more) -> Record:
    return Record(instruction, input, output, **{"id": content_id_of(instruction, input, output), "source": "s", **more})


def content_id_of(*texts: str) -> str:
    return "|".join(texts)


def groups_of(records: list[Record]) -> set[frozenset[str]]:
    members: dict[str, set[str]] = {}
    for one in grouped(records):
        members.setdefault(one.group, set()).add(one.id)
    return {frozenset(ids) for ids in members.values()}


@given(word_sets, st.sampled_from([0.5, 0.7, 0.8, 1.0]))
def test_similar_pairs_are_those_of_comparing_all(sets, similarity):
    expected = {
        (one, other)
        for one, other in combinations(range(len(sets)), 2)
        if len(sets[one] & sets[other]) >= similarity * len(sets[one] | sets[other]) - 1e-9
    }
    assert {tuple(sorted(pair)) for pair in similar_pairs(sets, similarity).tolist()} == expected


def test_near_duplicates_share_a_group_and_others_do_not():
    records = [
        record("Why is the sky blue?"),
        record("why is the SKY blue"),
        record("Please tell me why the sky is blue."),
        record("Why is the sea blue?"),
        record("Name a fruit."),
    ]
    together = frozenset(one.id for one in records[:3])
    assert groups_of(records) == {together, frozenset([records[3].id]), frozenset([records[4].id])}


def test_the_same_input_and_a_group_of_the_users_tie_records_together():
    passage = "Mount Everest is the highest mountain of the world above the level of the sea, in the Himalayas."
    records = [
        record("How high is it?", passage),
        record("Where does it stand?", passage.upper() + "  "),
        record("Name a fruit.", group="mine"),
        record("Colour of grass?", group="mine"),
    ]
    assert groups_of(records) == {frozenset(one.id for one in records[:2]), frozenset(one.id for one in records[2:])}


def test_an_instruction_that_only_names_a_task_does_not_tie_its_rows_together():
    reviews = [record("Classify this review.", f"{word} film number {word}") for word in map(str, range(TASK_ROWS + 1))]
    assert len(groups_of(reviews)) == len(reviews)
    assert len(groups_of(reviews[:TASK_ROWS])) == 1


@given(st.permutations([record(text) for text in ("sky blue", "blue sky", "red sun", "the red sun", "grass", "sky blue grass")]))
def test_groups_do_not_depend_on_the_order(records):
    in_order = {one.id: one.group for one in grouped(sorted(records, key=lambda one: one.id))}
    assert {one.id: one.group for one in grouped(records)} == in_order


def test_duplicates_go_whatever_their_case_and_spaces_and_ids_become_unique():
    records = [
        record("A  b", id="1"),
        record("a b ", id="2"),
        record("a b", output="y", id="1"),
        record("a b", output="z", id="1"),
    ]
    assert [one.id for one in without_duplicates(records)] == ["1", "1#2", "1#3"]
    assert content_key(records[0]) == content_key(records[1]) != content_key(records[2])


def test_many_equal_instructions_are_no_burden():
    """All pairs of 20,000 would be 200 million."""
    assert len(groups_of([record("Write a poem.", output=str(number)) for number in range(20_000)])) == 1


def test_the_split_has_the_asked_shares_and_depends_on_group_and_seed_alone():
    groups = [f"group {number}" for number in range(20_000)]
    splits = [split_of(group, 0, 0.1) for group in groups]
    assert splits == [split_of(group, 0, 0.1) for group in groups] != [split_of(group, 1, 0.1) for group in groups]
    # 2,000 expected of each; five standard deviations are 212.
    assert all(abs(splits.count(split) - 2000) < 212 for split in ("val", "test"))
    assert {split_of(group, 0, 0.0) for group in groups} == {"train"}


def test_a_larger_share_only_adds_held_out_groups():
    """val grows into what was test, and test into what was train: nothing held out becomes training data."""
    for number in range(2000):
        if split_of(str(number), 0, 0.05) != "train":
            assert split_of(str(number), 0, 0.1) != "train"


def test_held_out_groups_leave_the_earlier_parts():
    parts = {
        "train": [record("a", group="1"), record("b", group="2"), record("c", group="3")],
        "val": [record("d", group="2"), record("e", group="3")],
        "test": [record("f", group="3")],
    }
    kept, removed = without_leaks(parts)
    assert {split: [one.instruction for one in part] for split, part in kept.items()} == {
        "train": ["a"],
        "val": ["d"],
        "test": ["f"],
    }
    assert removed == {"s": 3}
