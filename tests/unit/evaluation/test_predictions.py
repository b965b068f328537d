"""Tables of predictions, ours and others': read as they are meant, or refused with the scan and the cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES, UNKNOWN_GROUP
from fairlung.pipeline.evaluation.predictions import PredictionsError, load_predictions


def written(folder: Path, **columns: list) -> Path:
    pd.DataFrame(columns).to_csv(folder / "p.csv", index=False)
    return folder / "p.csv"


def test_a_table_of_this_pipeline(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        scan=["x", "y", "z"],
        label=["b", "a", "b"],
        sex=["female", "", "male"],
        prediction=["b", "b", "a"],
        prob_a=[0.1, 0.4, 0.6],
        prob_b=[0.9, 0.6, 0.4],
    )
    table = load_predictions(path)
    assert table.class_names == ("a", "b")
    assert table.group_names == SEXES
    assert table.label.tolist() == [1, 0, 1] and table.prediction.tolist() == [1, 1, 0]
    assert table.group.tolist() == [1, UNKNOWN_GROUP, 0]
    assert table.confusion().nonzero()[0].tolist() == [0, 1, 2]  # the unknown one is counted apart
    known = table.known()
    assert known.scan.tolist() == ["x", "z"] and known.probabilities.shape == (2, 2)
    np.testing.assert_array_equal(
        table.confusion().sum(0), confusion_matrix(table.label, table.prediction, labels=[0, 1])
    )


def test_probabilities_alone_give_the_prediction(tmp_path: Path) -> None:
    path = written(tmp_path, label=["1", "0"], sex=["F", "M"], prob_0=[0.2, 0.5001], prob_1=[0.8, 0.4999])
    table = load_predictions(path)
    assert table.prediction.tolist() == [1, 0]
    assert table.group_names == ("F", "M")
    assert table.scan.tolist() == ["line 2", "line 3"]


def test_a_prediction_beside_probabilities_stands(tmp_path: Path) -> None:
    path = written(tmp_path, label=["0"], sex=["F"], prediction=["1"], prob_0=[0.6], prob_1=[0.4])
    assert load_predictions(path).prediction.tolist() == [1]


def test_classes_are_those_that_occur_unless_they_are_the_benchmarks(tmp_path: Path) -> None:
    ours = written(tmp_path, label=["normal", "covid19"], sex=["male", "female"], prediction=["normal", "normal"])
    assert load_predictions(ours).class_names == CLASS_NAMES
    grades = written(tmp_path, label=["grade 10", "grade 9"], sex=["male", "female"], prediction=["grade 9"] * 2)
    assert load_predictions(grades).class_names == ("grade 9", "grade 10")
    only_one = written(tmp_path, label=["x"], sex=["male"], prediction=["x"])
    with pytest.raises(PredictionsError, match=r"only one class occurs \(x\); name them all"):
        load_predictions(only_one)
    assert load_predictions(only_one, class_names=["x", "y"]).class_names == ("x", "y")


def test_several_group_columns_make_a_group_of_each_combination_that_occurs(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        label=["a", "b", "a", "b"],
        prediction=["a", "b", "b", "b"],
        sex=["female", "male", "female", "male"],
        site=["s10", "s9", "s9", ""],
    )
    table = load_predictions(path, group_by=["sex", "site"])
    assert table.group_names == ("male x s9", "female x s9", "female x s10")
    assert table.group.tolist() == [2, 0, 1, UNKNOWN_GROUP]
    assert load_predictions(path, group_by=["site"], group_names=["s10", "s9"]).group.tolist() == [0, 1, 1, -1]


def test_groups_without_a_scan_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, label=["a", "b", "a"], prediction=["a", "b", "b"], site=["c", "", "a"])
    table = load_predictions(path, group_by=["site"], group_names=["a", "b", "c"]).present_groups()
    assert table.group_names == ("a", "c")
    assert table.group.tolist() == [1, UNKNOWN_GROUP, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["a"], "prediction": ["a"]}, "no column 'sex'; it has label, prediction"),
        ({"label": ["a", "b"], "sex": ["m", "f"]}, "neither a column 'prediction' nor prob_<class> columns"),
        ({"scan": ["x"], "label": ["c"], "sex": ["m"], "prob_a": [1], "prob_b": [0]}, "x: column 'label' holds 'c'"),
        ({"label": ["a"], "sex": ["m"], "prob_a": [0.5], "prob_b": [0.2]}, "line 2: the probabilities are not"),
        ({"label": ["a"], "sex": ["m"], "prob_a": [1.5], "prob_b": [-0.5]}, "line 2: the probabilities are not"),
        ({"label": ["a"], "sex": ["m"], "prob_a": ["much"], "prob_b": [0]}, "line 2: the probabilities are not"),
        ({"label": ["a", "b"], "sex": ["m", "f"], "prediction": ["b", ""]}, "line 3: column 'prediction' is empty"),
        (
            {"scan": ["x", "x"], "label": ["a", "b"], "sex": ["m", "f"], "prediction": ["b", "a"]},
            "'x' is there twice",
        ),
        ({"label": ["a", "b"], "sex": ["", "unknown"], "prediction": ["b", "a"]}, "no scan has a group in column sex"),
        ({"label": [], "sex": [], "prediction": []}, "no prediction in it"),
    ],
)
def test_a_table_that_cannot_be_judged_says_why(tmp_path: Path, columns: dict, message: str) -> None:
    path = written(tmp_path, **columns)
    with pytest.raises(PredictionsError, match="p.csv") as raised:
        load_predictions(path)
    assert message in str(raised.value)


def test_a_data_frame_is_read_as_its_csv_is(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).dirichlet([1, 1], 6)
    frame = pd.DataFrame({"label": pd.Categorical([1, 0, 1, 0, 1, 1]), "group": [0, 1, np.nan, 0, 1, 1]})
    frame["patient"] = pd.array([1, 2, 3, 4, None, None], dtype="Int64")
    frame[["prob_0", "prob_1"]] = probabilities
    frame["notes"] = [["a", "list"], None, {}, np.nan, (), 1]  # columns that nobody asks for may hold anything
    shuffled = frame.iloc[[3, 1, 0, 2, 5, 4]]  # its index names nothing
    found = load_predictions(shuffled)
    assert found.class_names == found.group_names == ("0", "1") and found.group_by == ("group",)
    assert found.group.tolist() == [0, 1, 0, UNKNOWN_GROUP, 1, 1]
    np.testing.assert_array_equal(found.probabilities, load_predictions(frame).probabilities[[3, 1, 0, 2, 5, 4]])
    assert found.scan.tolist() == [f"row {i}" for i in range(6)]
    text = frame.assign(group=frame["group"].astype("Int64"))
    text.to_csv(tmp_path / "p.csv", index=False)
    ours, read = load_predictions(frame), load_predictions(tmp_path / "p.csv")
    for name in ("label", "prediction", "group", "patient"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(read, name), err_msg=name)
    np.testing.assert_allclose(ours.probabilities, read.probabilities, rtol=1e-12)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"label": ["a", "b"], "sex": ["m", "f"], "prediction": ["b", None]}), "row 1: .* is empty"),
        (pd.DataFrame({"label": ["a"], "sex": ["m"], "prob_a": [np.nan], "prob_b": [0.2]}), "row 0: the probabilities"),
        (pd.DataFrame({"label": ["a"], "sex": ["m"], "prob_a": [np.inf], "prob_b": [0.2]}), "row 0: .* not finite"),
        (pd.DataFrame({"label": [], "sex": [], "prediction": []}), "no prediction in it"),
        (pd.DataFrame(), "no prediction in it"),
        (pd.DataFrame([["a", "m", "a", "b"]], columns=["label", "sex", "prediction", "label"]), "two columns 'label'"),
        (pd.DataFrame({"label": ["a"], "prediction": ["a"]}), "no column 'sex'; it has label, prediction"),
    ],
)
def test_a_data_frame_that_cannot_be_judged_says_why(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(PredictionsError, match=f"(?s)the data frame.*{message}"):
        load_predictions(frame)


def test_faults_are_listed_together_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path, label=["z"] * 9 + ["a"], sex=["m"] * 10, prob_a=[1] * 10, prob_b=[0] * 10)
    with pytest.raises(PredictionsError) as raised:
        load_predictions(path)
    assert str(raised.value).count("holds 'z', which is none of a, b") == 5
    assert "and 4 more" in str(raised.value)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="no such file"):
        load_predictions(tmp_path / "absent.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(PredictionsError, match="is no table of predictions"):
        load_predictions(tmp_path / "x.csv")
    path = written(tmp_path, label=["a", "b"], sex=["male", "third"], prediction=["a", "b"])
    with pytest.raises(PredictionsError, match="which is none of male, female"):
        load_predictions(path, group_names=SEXES)


def test_a_table_of_an_evaluation_has_the_names_of_its_metrics(tmp_path: Path) -> None:
    columns = {"scan": ["x", "y"], "label": ["b", "a"], "site": ["s1", "s2"], "prediction": ["b", "b"]}
    path = written(tmp_path, **columns)
    (tmp_path / "metrics.json").write_text('{"class_names": ["b", "a", "c"], "group_names": ["s2", "s1"]}')
    table = load_predictions(path)
    assert (table.class_names, table.group_names, table.group_by) == (("b", "a", "c"), ("s2", "s1"), ("site",))
    given = load_predictions(path, class_names=["a", "b"], group_by=["site"])
    assert (given.class_names, given.group_names) == (("a", "b"), ("s1", "s2"))


def test_probabilities_that_are_none_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, label=["a"], sex=["male"], prediction=["b"], prob_a=["0.1"], prob_b=["?"])
    with pytest.raises(PredictionsError, match="are not numbers"):
        load_predictions(path)
    assert load_predictions(path, with_probabilities=False).probabilities is None


@pytest.mark.fault(
    "wrong", "a table of predictions in which one group or class is written in two ways, or NA",
    before="two groups, two classes", now="refused with both spellings",
)  # fmt: skip
@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("site", ["Rome", "rome"], "site 'rome' is written 'Rome'"),
        ("site", ["Zürich", "Zu\u0308rich"], r"site 'Zu\u0308rich' is written 'Z\xfcrich'"),
        ("site", ["1", "1.0"], "site '1.0' is written '1'"),
        ("site", ["a", "n/a"], "site 'n/a' is what many tables write where there is no value"),
        ("label", ["normal", "Normal"], "class 'Normal' is written 'normal'"),
    ],
)
def test_names_that_look_alike_are_refused(tmp_path: Path, column: str, values: list[str], said: str) -> None:
    table = {"scan": ["x", "y"], "label": ["a", "b"], "site": ["s", "t"], "prediction": ["a", "b"], column: values}
    with pytest.raises(PredictionsError) as raised:
        load_predictions(written(tmp_path, **table), group_by=["site"])
    assert said in str(raised.value)
    if column == "site":
        named = load_predictions(written(tmp_path, **table), group_by=["site"], group_names=values)
        assert named.group.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sex", "Male", "'sex' holds 'Male', which is none of male, female (did you mean 'male'?)"),
        ("sex", "femal", "(did you mean 'female'?)"),
        ("sex", "ma\u200ble", r"'sex' holds 'ma\u200ble', and the name is 'male'"),
        ("sex", "NA", "none of male, female, and is what many tables write where there is no value"),
        ("label", "Zu\u0308rich", r"'label' holds 'Zu\u0308rich', and the name is 'Z\xfcrich'"),
        ("label", "N/A", "none of Zürich, Bern, and is what many tables write"),
        ("prediction", "bern", "(did you mean 'Bern'?)"),
    ],
)
def test_a_value_that_is_none_of_the_names_is_hinted_at(tmp_path: Path, column: str, value: str, said: str) -> None:
    table = {"label": ["Zürich", "Bern"], "sex": ["male", "female"], "prediction": ["Bern", "Bern"]}
    table[column][1] = value
    with pytest.raises(PredictionsError) as raised:
        load_predictions(written(tmp_path, **table), class_names=["Zürich", "Bern"], group_names=SEXES)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sex": ["male", "Male", "female"]}, "sex 'Male' is written 'male'"),
        ({"sex": ["male", "M", "female"]}, "sex 'M' is written 'male'"),
        ({"sex": ["w", "male", "female"]}, "sex 'w' is written 'female'"),
        ({"label": ["a", "NA", "b"]}, "class 'NA' is what many tables write where there is no value: name the classes"),
        ({"prob_a": [1, 1, 1], "prob_A": [0, 0, 0]}, "class 'A' is written 'a'"),
    ],
)
def test_one_name_in_two_spellings_is_refused(tmp_path: Path, columns: dict, said: str) -> None:
    table = {"label": ["a", "b", "a"], "sex": ["male", "", "female"], "prediction": ["a", "b", "b"]}
    with pytest.raises(PredictionsError) as raised:
        load_predictions(written(tmp_path, **table | columns))
    assert said in str(raised.value)


@pytest.mark.parametrize("column", ["scan", "label", "sex", "prediction", "patient"])
def test_text_that_is_cut_at_a_nul_is_refused(column: str) -> None:
    frame = pd.DataFrame(
        {"scan": [*"xyz"], "label": [*"aba"], "sex": "male", "prediction": [*"aab"], "patient": [*"pqr"]}
    )
    frame[column] = ["n\0x", "n\0y", "m"]
    with pytest.raises(PredictionsError, match=f"row 0, column '{column}' holds a NUL character"):
        load_predictions(frame)


def test_predictions_that_are_none_of_the_labels_are_refused() -> None:
    frame = pd.DataFrame({"label": [0, 1, 1], "sex": ["male", "female", "male"], "prediction": [False, True, True]})
    with pytest.raises(PredictionsError, match=r"no prediction \(False, True\) is one of the labels \(0, 1\)"):
        load_predictions(frame)
    assert load_predictions(frame, class_names=["0", "1", "False", "True"]).confusion().sum() == 3
    always = frame.assign(label="a", prediction="b")  # a model may say one class, and always the wrong one
    assert load_predictions(always).class_names == ("a", "b")


def test_words_that_mean_something_alone_are_names(tmp_path: Path) -> None:
    short = {"label": ["none", "a"], "sex": ["m", "w"], "prob_none": [1, 0], "prob_a": [0, 1]}
    table = load_predictions(written(tmp_path, **short))
    assert (table.class_names, table.group_names) == (("none", "a"), ("m", "w"))


@pytest.mark.parametrize(("delimiter", "decimal"), [(",", "."), (";", ","), ("\t", ",")])
def test_predictions_of_a_spreadsheet_program_are_read(tmp_path: Path, delimiter: str, decimal: str) -> None:
    table = pd.DataFrame({"label": ["a", "b"], "sex": ["male", "female"], "prob_a": [0.75, 0.5], "prob_b": [0.25, 0.5]})
    table.to_csv(tmp_path / "p.csv", index=False, sep=delimiter, decimal=decimal, encoding="utf-8-sig")
    np.testing.assert_array_equal(load_predictions(tmp_path / "p.csv").probabilities, [[0.75, 0.25], [0.5, 0.5]])


def test_a_scan_in_a_message_is_cut_and_on_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, scan=["x\n\x1b[2J" + "y" * 999], label=["c"], sex=["m"], prob_a=[1], prob_b=[0])
    with pytest.raises(PredictionsError) as raised:
        load_predictions(path)
    (_, line) = str(raised.value).splitlines()
    assert line.isprintable() and len(line) < 300


@pytest.mark.fault(
    "wrong",
    "a table of predictions whose probabilities are not finite",
    before="judged as if every scan had been given the first class",
    now="refused, with the scans",
)
@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf"])
def test_a_scan_without_finite_probabilities_has_no_prediction(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, label=["a"], sex=["male"], prediction=["a"], prob_a=[value], prob_b=["0.5"])
    for with_probabilities in (True, False):
        with pytest.raises(PredictionsError, match="the network's output was not finite"):
            load_predictions(path, with_probabilities=with_probabilities)


@pytest.mark.fault(
    "wrong", "a table with training scans among the test's", before="judged together", now="a warning",
)  # fmt: skip
def test_scans_of_several_splits_draw_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"label": ["a", "b", "a"], "sex": ["male", "female", "male"], "prediction": ["a", "b", "b"]})
    load_predictions(table.assign(split="test"))
    assert not caplog.records
    load_predictions(table.assign(split=["train", "test", "test"]))
    assert "has scans of several splits (test, train): judge each by itself" in caplog.text
