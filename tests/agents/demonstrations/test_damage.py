"""Damaged files are named with the episode they take along; the other episodes stay readable."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from engram.agents.demonstrations import Demonstrations, DemonstrationWriter, check
from engram.agents.demonstrations.feature import beyond
from engram.kernels.errors import DataError

CAMERA = "observation.images.top"
DATA = "data/chunk-000/file-001.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-001.mp4"
INDEX = "meta/episodes/chunk-000/file-001.parquet"


@pytest.fixture
def folder(tmp_path, recorded):
    """A copy to damage: episodes 0 and 1 are in the first files, 2 and 3 in the second."""
    shutil.copytree(recorded, tmp_path / "copy")
    return tmp_path / "copy"


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def assert_lost(folder, lost, message, make):
    """Exactly these episodes are lost, reading one says why, and the rest can be used."""
    found = check(folder)
    assert sorted(found) == lost
    for number in lost:
        assert f"episode {number}: " in found[number] and message in found[number]
    rest = Demonstrations(folder, skip_damaged=True)
    assert rest.damage == found
    kept = [number for number in range(5) if number not in lost]
    assert rest.numbers.tolist() == kept and rest.count == len(kept)
    assert rest.lengths.tolist() == [4 + number % 3 for number in kept]
    for place, number in enumerate(kept):
        assert rest.task(place) == make(number).task
        np.testing.assert_array_equal(rest.read(place)[CAMERA], make(number).frames[CAMERA])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_rows_cut_short(folder, make, share):
    cut(folder / DATA, share)
    assert_lost(folder, [2, 3], "file-001.parquet is damaged", make)
    with pytest.raises(DataError, match=r"episode 3: .*file-001\.parquet is damaged"):
        Demonstrations(folder).read(3)
    np.testing.assert_array_equal(
        Demonstrations(folder).read(4)["action"], make(4).frames["action"]
    )


def test_rows_missing(folder, make):
    (folder / DATA).unlink()
    assert_lost(folder, [2, 3], "file-001.parquet does not exist", make)


def test_video_cut_in_its_first_episode(folder, make):
    cut(folder / VIDEO, 0.4)
    assert_lost(folder, [2, 3], "file-001.mp4", make)


def test_video_cut_in_its_second_episode_keeps_the_first(folder, make):
    cut(folder / VIDEO, 0.9)
    assert_lost(folder, [3], "file-001.mp4", make)


def test_video_without_its_beginning(folder, make):
    (folder / VIDEO).write_bytes(b"not a video")
    assert_lost(folder, [2, 3], "file-001.mp4 is damaged", make)


def test_video_missing(folder, make):
    (folder / VIDEO).unlink()
    assert_lost(folder, [2, 3], "file-001.mp4 does not exist", make)


def test_the_numbers_of_an_episode_without_its_video_can_be_read(folder, make):
    (folder / VIDEO).unlink()
    read = Demonstrations(folder).read(2, ["action"])
    np.testing.assert_array_equal(read["action"], make(2).frames["action"])


def test_video_of_another_size(folder, make):
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][CAMERA]["shape"] = [24, 26, 3]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"episode 0: .* is 24 x 24 pixels; allowed: 24 x 26"):
        Demonstrations(folder).read(0)


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def test_fewer_frames_than_the_index_says(folder, make):
    rewrite(folder / DATA, lambda table: table.slice(0, len(table) - 1))
    assert_lost(folder, [3], "holds 3 frames; allowed: frames 0 to 3", make)


def test_frames_missing_in_the_middle(folder, make):
    rewrite(folder / DATA, lambda t: pa.concat_tables([t.slice(0, 2), t.slice(3)]))
    assert_lost(folder, [2], "holds 5 frames; allowed: frames 0 to 5", make)


def test_frames_out_of_order(folder, make):
    rewrite(folder / DATA, lambda table: table.take([1, 0, *range(2, len(table))]))
    assert_lost(folder, [2], "frames out of order", make)


def with_action(folder, value):
    """Change a number of an action of episode 3, in its frame 2."""

    def spoil(table):
        actions = np.array(table["action"].to_pylist(), np.float32)
        actions[8, 1] = value  # episode 2 has 6 frames
        column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 2)
        return table.set_column(table.column_names.index("action"), "action", column)

    rewrite(folder / DATA, spoil)


def test_actions_beyond_the_limits_that_are_given(folder, make):
    actions = [make(number).frames["action"] for number in range(5)]
    most = float(max(action.max() for action in actions))
    limits = {"action": (float(min(action.min() for action in actions)), most)}
    assert Demonstrations(folder, skip_damaged=True, limits=limits).damage == {}
    with_action(folder, most + 1)
    rest = Demonstrations(folder, skip_damaged=True, limits=limits)
    assert rest.numbers.tolist() == [0, 1, 2, 4]
    assert "action at frame 2 is [" in rest.damage[3] and rest.damage[3].endswith(f" to {most:g}")
    with pytest.raises(DataError, match=r"episode 3: .*action at frame 2 is "):
        Demonstrations(folder, limits=limits).read(3)
    assert check(folder) == {}  # limits are not the data set's


def test_limits_of_a_column_that_holds_no_numbers_say_nothing():
    assert beyond(np.array([["left"], ["right"]]), -1.0, 1.0) is None
    assert beyond(np.array([[0], [2], [3]]), -1.0, 1.0) == 1


def test_an_episode_of_several_instructions_has_not_the_first_of_them(folder):
    tasks = ["press the red button", "press the green button"]

    def change(table):
        place = table.schema.get_field_index("tasks")
        column = pa.array([tasks, *table["tasks"].to_pylist()[1:]], pa.list_(pa.string()))
        return table.set_column(place, "tasks", column)

    rewrite(folder / INDEX, change)
    with pytest.raises(DataError, match=r"episode 2: .* the instructions \[.*\]; allowed: one"):
        Demonstrations(folder).task(2)
    assert Demonstrations(folder).task(3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_no_numbers(folder, make, value):
    with_action(folder, value)
    assert_lost(folder, [3], "action at frame 2 is [", make)
    assert check(folder)[3].endswith("; allowed: finite numbers")


@pytest.mark.parametrize(
    "key, message",
    [
        ("timestamp", "timestamp is string, 0 entries missing; allowed: numbers"),
        ("frame_index", "frame_index is string, 0 entries missing; allowed: whole numbers"),
        ("episode_index", "episode_index is string, 0 entries missing; allowed: whole numbers"),
        ("success", "success: its entries are string; allowed: numbers (bool)"),
    ],
)
def test_text_in_place_of_numbers(folder, make, key, message):
    def spoil(table):
        column = pa.array(["soon"] * len(table))
        return table.set_column(table.column_names.index(key), key, column)

    rewrite(folder / DATA, spoil)
    assert_lost(folder, [2, 3], message, make)


def test_frames_without_their_number(folder, make):
    def spoil(table):
        column = pc.if_else(pc.equal(table["frame_index"], 1), None, table["frame_index"])
        return table.set_column(table.column_names.index("frame_index"), "frame_index", column)

    rewrite(folder / DATA, spoil)
    assert_lost(folder, [2, 3], "frame_index is int64, 2 entries missing; allowed: whole", make)


def test_entries_missing(folder, make):
    def spoil(table):
        column = pc.if_else(pc.equal(table["frame_index"], 5), None, table["success"])
        return table.set_column(table.column_names.index("success"), "success", column)

    rewrite(folder / DATA, spoil)
    assert_lost(folder, [2], "success: 1 entries are missing", make)


def test_a_column_missing(folder, make):
    rewrite(folder / DATA, lambda table: table.drop_columns(["action"]))
    assert_lost(folder, [2, 3], "lacks the column action", make)


def test_vectors_of_another_length(folder, make):
    def spoil(table):
        column = pa.array([[1.0]] * len(table), pa.list_(pa.float32()))
        return table.set_column(table.column_names.index("action"), "action", column)

    rewrite(folder / DATA, spoil)
    assert_lost(folder, [2, 3], "action: ", make)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_an_index_cut_short(folder, make, share):
    cut(folder / INDEX, share)
    with pytest.raises(DataError, match=r"episode 2: .*file-001\.parquet is damaged"):
        Demonstrations(folder)
    assert_lost(folder, [2, 3], "file-001.parquet is damaged", make)


@pytest.mark.parametrize(
    "name, value",
    [
        ("length", 2**60),
        ("length", None),
        ("tasks", 3),
        ("tasks", [None]),
        ("data/chunk_index", None),
        ("data/file_index", "one"),
        (f"videos/{CAMERA}/file_index", -1),
        (f"videos/{CAMERA}/from_timestamp", "soon"),
        (f"videos/{CAMERA}/from_timestamp", None),
        (f"videos/{CAMERA}/from_timestamp", float("nan")),
    ],
)
def test_an_entry_of_the_index_that_cannot_be(folder, make, features, name, value):
    whole = pq.read_table(folder / INDEX)
    place = whole.schema.get_field_index(name)
    lost = [2, 3]
    try:  # in one row, where its column has a place for it
        column = pa.array([value, whole[name][1].as_py()], whole.schema.field(name).type)
        lost = [2]
    except (pa.ArrowException, TypeError):
        column = pa.array([value] * 2)
    rewrite(folder / INDEX, lambda table: table.set_column(place, name, column))
    assert_lost(folder, lost, f"{name} is {value!r}; allowed: ", make)
    for opening in (Demonstrations, lambda f: DemonstrationWriter(f, features=features)):
        with pytest.raises(DataError, match=f"{name} is "):
            opening(folder)


def test_an_index_that_says_half_of_where_a_file_is(folder, make):
    name = f"videos/{CAMERA}/file_index"
    rewrite(folder / INDEX, lambda table: table.drop_columns([name]))
    assert_lost(folder, [2, 3], f"file-001.parquet is damaged: it lacks {name}", make)


@pytest.mark.parametrize("time", [1e6, 2.0**60])
def test_a_time_that_no_video_has(folder, make, time):
    name = f"videos/{CAMERA}/from_timestamp"
    place = pq.read_table(folder / INDEX).schema.get_field_index(name)
    column = pa.array([time, 0.6])  # episode 2 has 6 frames
    rewrite(folder / INDEX, lambda table: table.set_column(place, name, column))
    assert_lost(folder, [2], "file-001.mp4 has no frame at 1", make)


def test_an_index_missing(folder, make):
    (folder / INDEX).unlink()
    assert_lost(folder, [2, 3], "does not list it", make)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "info.json does not exist"),
        ("{", "info.json is damaged"),
        ("[]", "holds no JSON object"),
        ('{"codebase_version": "v2.1"}', "'v2.1'; allowed: 'v3.0'"),
        ('{"codebase_version": "v4.0"}', "'v4.0'; allowed: 'v3.0'"),
        ("{}", "None; allowed: 'v3.0'"),
    ],
)
def test_info_that_cannot_be_used(folder, content, message):
    (folder / "meta/info.json").unlink()
    if content is not None:
        (folder / "meta/info.json").write_text(content)
    for opening in (Demonstrations, check):
        with pytest.raises(DataError, match=message):
            opening(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.pop("fps"), "fps is None"),
        (lambda i: i.update(fps=0), "fps is 0"),
        (lambda i: i.update(chunks_size=0), "chunks_size is 0"),
        (lambda i: i.update(total_episodes="5"), "total_episodes is '5'"),
        (lambda i: i.update(features=None), "damaged features"),
        (lambda i: i["features"]["action"].update(dtype="quaternion"), "dtype of action is"),
        (lambda i: i["features"]["action"].pop("shape"), "damaged features"),
    ],
)
def test_info_with_damaged_entries(folder, change, message):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=message):
        Demonstrations(folder)


@pytest.mark.parametrize("template", ["/etc/{chunk_index}", "../{file_index}", "{nothing}", None])
def test_paths_that_lead_elsewhere(folder, template):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text()) | {"data_path": template}
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"episode 0: .*path"):
        Demonstrations(folder).read(0)


def test_more_episodes_than_the_index_lists(folder, make):
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_episodes": 6}))
    with pytest.raises(DataError, match=r"episode 5: .* does not list it"):
        Demonstrations(folder)
    assert Demonstrations(folder, skip_damaged=True).count == 5
