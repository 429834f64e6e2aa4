"""Splits of rows that share much text or are few."""

from collections import Counter, defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loratune.data.dedup import SHARED_LIMIT_MIN, assign_groups
from loratune.data.example import Record
from loratune.data.split import LARGE_GROUP_ROWS, SplitResult, assign_split, split_records

SPLITS = ("train", "val", "test")
THINGS = [
    "kettle",
    "marble",
    "lantern",
    "carpet",
    "violin",
    "anvil",
    "basket",
    "mirror",
    "ladder",
    "saddle",
    "candle",
    "hammer",
]
DOINGS = [
    "clean",
    "repair",
    "store",
    "carry",
    "paint",
    "sell",
    "weigh",
    "hang",
    "dry",
    "polish",
    "wrap",
    "lend",
]
PLACES = ["attic", "cellar", "harbour", "garden", "market", "library", "stable", "tower"]
QUESTIONS = [
    f"Should anyone {doing} the {thing} in the {place}?"
    for doing in DOINGS
    for thing in THINGS
    for place in PLACES
]
# Fmt: skip.
PERSONAS = [
    f"You are {name}, who keeps the {place}. Answer in one sentence, politely, and never name a price or a "
    "person."
    for name, place in zip(["Ada", "Ben", "Cleo", "Dan", "Eve", "Fay", "Gus", "Hal"], PLACES, strict=True)
]
PASSAGE = (
    "The {0} of {1} was built of {2} stone in {3} by {4} masons, who had come from {5} in search of {6} "
    "and {7}."
)


def row(number: int, instruction: str, input: str = "", group: str = "", source: str = "mine") -> Record:
    return Record(instruction, input, f"Answer {number}.", f"{source} {number}", source, group)


def build_dissimilar_questions(count: int) -> list[str]:
    """Questions of which no two are near-duplicates: with a number of their own for each of three words."""
    return [f"What did item{number} cost word{number}a word{number}b?" for number in range(count)]


ALL_DRAWN = {None: {"val", "test"}}


def split_rows(
    records: list[Record], seed: int = 0, val_fraction: float = 0.05, own=None, drawn=None
) -> SplitResult:
    own = own or dict.fromkeys(record.id for record in records)
    return split_records(records, own, drawn_splits=drawn or ALL_DRAWN, seed=seed, val_fraction=val_fraction)


def counts(result: SplitResult) -> dict[str, int]:
    counted = Counter(result.splits)
    return {split: counted[split] for split in SPLITS}


def collect_splits_by(result: SplitResult, key) -> dict[str, set[str]]:
    """For each value of `key` of a record, the parts in which it is."""
    splits_by_value = defaultdict(set)
    for record, split in zip(result.records, result.splits, strict=True):
        splits_by_value[key(record)].add(split)
    return splits_by_value


def has_ordinary_shares(result: SplitResult, rows: int, share: float = 0.05) -> bool:
    """About as many rows in each part as were asked for."""
    counted = counts(result)
    return all(share * rows / 2 <= counted[split] <= 2.5 * share * rows for split in ("val", "test"))


def chat(number: int, system: str, greeting: bool = False) -> Record:
    input = f"System: {system}" + (
        "\nUser: Hi there!\nAssistant: Hello! How can I help you today?" if greeting else ""
    )
    return row(number, build_dissimilar_questions(number + 1)[number], input)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("greeting", [False, True])
@pytest.mark.parametrize(("count", "personas"), [(400, 1), (40, 1), (400, 3), (400, 8), (60, 2)])
def test_shared_system_messages_do_not_affect_the_split(count, personas, greeting, seed):
    result = split_rows(
        [chat(number, PERSONAS[number % personas], greeting) for number in range(count)], seed
    )
    assert has_ordinary_shares(result, count), counts(result)
    # Every persona with more rows than a handful of each part is in them.
    if count == 400 and personas <= 3:
        assert all(
            splits == set(SPLITS)
            for splits in collect_splits_by(result, lambda record: record.input).values()
        )
    assert len({record.group for record in result.records}) == count
    assert any(
        "does not make rows near-duplicates" in note or "split row by row" in note
        for note in result.notes["mine"]
    )


def test_near_duplicates_with_a_system_message_stay_together():
    chats = [chat(number, PERSONAS[number % 8]) for number in range(400)]
    again = [
        Record(f"{one.instruction} Please!", one.input, one.output, f"again {one.id}", one.source)
        for one in chats
    ]
    result = split_rows(chats + again)
    assert has_ordinary_shares(result, 800)
    groups = {record.id: record.group for record in result.records}
    assert (
        all(groups[one.id] == groups[f"again {one.id}"] for one in chats) and len(set(groups.values())) == 400
    )


def test_rows_of_each_persona_are_held_out_with_others():
    result = split_rows([chat(number, PERSONAS[number % 8]) for number in range(400)])
    for held_out in ("val", "test"):
        inputs = {
            record.input
            for record, split in zip(result.records, result.splits, strict=True)
            if split == held_out
        }
        assert len(inputs) >= 5
    (note,) = result.notes["mine"]
    assert note.startswith(
        '"Answer in one sentence, politely, and never name a price or ..." is in 400 of 400 prompts, and 9 '
        "more"
    )


@pytest.mark.parametrize(
    "preamble",
    [
        "You are the guide of a small museum. Answer briefly, politely and truthfully, in plain words only: "
        "{}",
        "You are the guide of a small museum of old things near the town hall who answers briefly, politely "
        "{} thank you kindly",
        '{{"task": "answer", "tone": "polite", "reader": "visitors", "language": "English", "limit": '
        '"fifty", "question": "{}"}}',
    ],
)
def test_shared_preamble_is_ignored_when_comparing_rows(preamble):
    asked = build_dissimilar_questions(300)
    records = [row(number, preamble.format(question)) for number, question in enumerate(asked)]
    again = [
        row(300 + number, preamble.format(f"What did ITEM{number} cost, word{number}a and word{number}b?"))
        for number in range(40)
    ]
    result = split_rows(records + again)
    assert has_ordinary_shares(result, 340), counts(result)
    groups = {record.id: record.group for record in result.records}
    assert all(groups[f"mine {number}"] == groups[f"mine {300 + number}"] for number in range(40))
    assert len(set(groups.values())) == 300


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_three_sql_schemas_are_split_like_ordinary_rows(seed):
    schemas = [
        f"CREATE TABLE {thing} (id INTEGER, {thing}_name TEXT, p REAL);\nCREATE TABLE {place} (id INTEGER, "
        f"{thing}_id INTEGER);"
        for thing, place in zip(THINGS[:3], PLACES, strict=False)
    ]
    result = split_rows(
        [
            row(number, question, schemas[number % 3])
            for number, question in enumerate(build_dissimilar_questions(240))
        ],
        seed,
    )
    splits_by_value = collect_splits_by(result, lambda record: record.input)
    assert has_ordinary_shares(result, 240) and all(
        "train" in of_schema and len(of_schema) > 1 for of_schema in splits_by_value.values()
    )


@pytest.mark.parametrize("count", [3, 5, 10, 20, 30, 31, 40, 100])
def test_rows_with_one_common_context_fill_all_splits(count):
    context = PASSAGE.format("tower", "Bern", "grey", 1405, "ten", "Ulm", "work", "peace") * 3
    result = split_rows(
        [row(number, question, context) for number, question in enumerate(build_dissimilar_questions(count))]
    )
    expected = max(1, round(0.05 * count))
    assert min(counts(result).values()) >= max(1, expected / 2) and counts(result)["train"] >= count / 3
    (note,) = result.notes["mine"]
    assert "The tower of Bern was built" in note


def passages(count: int, questions: int) -> list[Record]:
    """Like SQuAD: each passage has several questions."""
    asked = iter(build_dissimilar_questions(count * questions))
    return [
        row(
            number * questions + question,
            next(asked),
            " ".join(f"fact{number}{letter}" for letter in "abcdefghijklmnop"),
        )
        for number in range(count)
        for question in range(questions)
    ]


@pytest.mark.parametrize(
    ("count", "questions"), [(200, 5), (8, 5), (60, 25), (10, LARGE_GROUP_ROWS), (20, SHARED_LIMIT_MIN)]
)
def test_passage_and_its_questions_stay_in_one_split(count, questions):
    for seed in range(3):
        result = split_rows(passages(count, questions), seed)
        assert all(
            len(splits) == 1 for splits in collect_splits_by(result, lambda record: record.input).values()
        )
        assert min(counts(result).values()) > 0 and counts(result)["train"] > count * questions / 3
        assert not any("row by row" in note for notes in result.notes.values() for note in notes)


def test_split_of_a_single_group_is_noted():
    result = split_rows(passages(20, SHARED_LIMIT_MIN))
    of_one_group = [note for note in result.notes["mine"] if "are of one group" in note]
    assert of_one_group and "a larger `val_fraction` holds out more groups" in of_one_group[0]
    assert not split_rows(passages(20, SHARED_LIMIT_MIN), val_fraction=0.2).notes


def test_chinese_rows_are_split_and_near_duplicates_stay_together():
    things, doings = (
        ["水壶", "弹珠", "灯笼", "地毯", "提琴", "铁砧", "篮子", "镜子", "梯子", "马鞍", "蜡烛", "锤子"],
        ["清洗", "修理", "存放", "搬运", "粉刷", "出售"],
    )
    asked = [
        f"请问{thing}{number}号应该怎样{doing}?"
        for number, (thing, doing) in enumerate((t, d) for t in things for d in doings)
    ]
    system = "System: 你是一个乐于助人的助手,请用一句话礼貌地回答。"
    rows = [row(number, question, system) for number, question in enumerate(asked)]
    copies = [
        row(100 + number, question.replace("请问", ""), system) for number, question in enumerate(asked[:10])
    ]
    result = split_rows(rows + copies)
    groups = {record.id: record.group for record in result.records}
    assert all(groups[f"mine {number}"] == groups[f"mine {100 + number}"] for number in range(10))
    assert len(set(groups.values())) > 50 and min(counts(result).values()) > 0


@pytest.mark.parametrize("count", [3, 4, 5, 10, 40, 100, 400])
def test_dissimilar_rows_of_a_small_file_fill_all_splits(count):
    for seed in range(20):
        result = split_rows(
            [row(number, question) for number, question in enumerate(build_dissimilar_questions(count))], seed
        )
        expected = max(1, round(0.05 * count))
        held_out = [counts(result)[split] for split in ("val", "test")]
        assert all(max(1, 0.05 * count / 2) <= rows <= 3 * expected for rows in held_out) and not result.notes
        assert counts(result)["train"] >= count / 3


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1))])
def test_tiny_file_fills_as_many_splits_as_it_has_rows(count, expected):
    assert (
        tuple(counts(split_rows([row(number, "Write a poem.") for number in range(count)])).values())
        == expected
    )


def test_single_prompt_is_split_by_row_and_noted():
    result = split_rows([row(number, "Write a poem about the sea.") for number in range(200)])
    assert has_ordinary_shares(result, 200)
    (note,) = result.notes["mine"]
    assert "200 of 200 rows are so similar" in note and '200 rows with "Write a poem about the sea."' in note


def test_large_group_is_split_but_equal_prompts_stay_together():
    """A chain: each question shares most words with the next one, so that all are one group."""
    words = [f"word{number}" for number in range(400)]
    chain = [" ".join(words[number : number + 12]) for number in range(300)]
    assert (
        len(
            {
                record.group
                for record in assign_groups([row(number, text) for number, text in enumerate(chain)])
            }
        )
        == 1
    )
    twice = [row(number, text) for number, text in enumerate(chain + chain)]
    result = split_rows(twice)
    assert has_ordinary_shares(result, 600) and any("row by row" in note for note in result.notes["mine"])
    assert all(
        len(splits) == 1 for splits in collect_splits_by(result, lambda record: record.instruction).values()
    )


def test_user_groups_are_never_split():
    records = [
        row(number, text, group="large" if number < 30 else f"g{number}")
        for number, text in enumerate(build_dissimilar_questions(50))
    ]
    for seed in range(10):
        result = split_rows(records, seed)
        splits_by_value = collect_splits_by(
            result, lambda record: "large" if int(record.id.split()[1]) < 30 else record.id
        )
        assert len(splits_by_value["large"]) == 1 and min(counts(result).values()) > 0
        (note,) = result.notes["mine"]
        assert '30 of 50 rows have the group "large", which stays in one split' in note
    alone = split_rows(
        [row(number, text, group="all") for number, text in enumerate(build_dissimilar_questions(50))]
    )
    assert counts(alone) == {"train": 50, "val": 0, "test": 0} and len(alone.notes["mine"]) == 1


def test_similar_user_groups_are_separated_but_not_split():
    records = [
        row(number, "Write a poem about the sea.", f"Note {number % 20}", group=f"g{number % 20}")
        for number in range(200)
    ]
    result = split_rows(records)
    assert min(counts(result).values()) > 0
    assert all(
        len(splits) == 1
        for splits in collect_splits_by(result, lambda record: int(record.id.split()[1]) % 20).values()
    )


def test_each_source_is_split_on_its_own():
    ordinary_rows = [
        row(number, text, source="large") for number, text in enumerate(build_dissimilar_questions(3000))
    ]
    chats = [
        Record(f"Thing{n} xx{n} yy{n}?", f"System: {PERSONAS[n % 8]}", "x", f"chat {n}", "chats")
        for n in range(400)
    ]
    alone, both = split_rows(ordinary_rows), split_rows(ordinary_rows + chats)
    assert both.splits[:3000] == alone.splits and both.notes.keys() == {"chats"}
    assert has_ordinary_shares(SplitResult([], both.splits[3000:], {}), 400)


def test_ordinary_split_depends_on_group_and_seed_alone():
    records = [row(number, text) for number, text in enumerate(build_dissimilar_questions(2000))]
    result = split_rows(records, seed=3)
    assert result.splits == [assign_split(record.group, 3, 0.05) for record in result.records]
    assert result.records == assign_groups(records)


def test_missing_validation_split_is_drawn_from_training_rows():
    records = [row(number, text) for number, text in enumerate(build_dissimilar_questions(440))]
    own = {record.id: "train" if number < 400 else "test" for number, record in enumerate(records)}
    drawn = ALL_DRAWN | {"train": {"val"}}
    result = split_rows(records, own=own, drawn=drawn)
    assert result.splits[400:] == ["test"] * 40 and set(result.splits[:400]) == {"train", "val"}
    held_out = result.splits.count("val")
    assert 10 <= held_out <= 40
    assert result.notes["mine"] == [
        f"it has no rows for val of its own; {held_out} of its training rows are used for that"
    ]
    for options in ({"drawn": drawn, "val_fraction": 0}, {"drawn": ALL_DRAWN}):
        assert split_rows(records, own=own, **options).splits == ["train"] * 400 + ["test"] * 40


CORPUS = [chat(number, PERSONAS[number % 2], greeting=number % 3 == 0) for number in range(70)] + passages(
    6, 12
)
CORPUS = [
    Record(one.instruction, one.input, one.output, f"{number}", f"s{number % 2}")
    for number, one in enumerate(CORPUS)
]


@settings(max_examples=20, deadline=None)
@given(st.permutations(CORPUS))
def test_split_does_not_depend_on_row_order(records):
    def by_id(result):
        return {
            one.id: (one.group, split) for one, split in zip(result.records, result.splits, strict=True)
        }, result.notes

    assert by_id(split_rows(records)) == by_id(split_rows(CORPUS))


TEXTS = st.lists(st.sampled_from(["a b c.", "d e f.", "g h i", "j", "k l m n"]), max_size=3).map("\n".join)


@settings(deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["", "", "", "x", "y"])), max_size=40),
    st.sampled_from([0.05, 0.2, 0.49]),
)
@example([("", "", "")] * 2 + [("", "", "x")] * 3, 0.49)
def test_split_is_empty_only_if_it_must_be(texts, val_fraction):
    records = [row(number, asked, input, group) for number, (asked, input, group) in enumerate(texts)]
    result = split_rows(records, val_fraction=val_fraction)
    users = Counter(group for *_, group in texts if group)
    units = len(users) + sum(not group for *_, group in texts)
    assert sum(rows > 0 for rows in counts(result).values()) == min(3, units)
    splits_by_value = collect_splits_by(result, lambda record: texts[int(record.id.split()[1])][2])
    assert all(len(splits_by_value[group]) == 1 for group in users)
    assert not units or counts(result)["train"] > 0
