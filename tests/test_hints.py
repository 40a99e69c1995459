"""What a caller knows about labels: contradictions, forms, names."""

import numpy as np
import pytest
import torch

from rankseg_m2f.rankseg.hints import LabelHints

K = 12
NAMES = [f"label {i}" for i in range(K - 2)] + ["twin", "twin"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"force": [2, 3], "deny": [3]}, r"\[3\] are both forced and denied"),
        ({"force": [2, 3], "allow": [2]}, r"\[3\] are forced but not allowed"),
        ({"labels": [2], "deny": [3]}, "`labels` says all"),
        ({"labels": [], "allow": [3]}, "`labels` says all"),
    ],
)
def test_contradictions_are_refused(wishes, message):
    with pytest.raises(ValueError, match=message):
        LabelHints(**wishes)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"deny": [1, K]}, rf"`deny`: \[{K}\] are not labels in \[0, {K}\)"),
        ({"labels": [-1]}, r"`labels`: \[-1\]"),
        ({"allow": []}, f"leave none of {K} labels"),
        ({"allow": [1, 2], "deny": [2, 1]}, f"leave none of {K} labels"),
    ],
)
def test_wishes_must_fit_the_labels(wishes, message):
    with pytest.raises(ValueError, match=message):
        LabelHints(**wishes).masks(K)


def test_masks_by_hand():
    def ids(mask):
        return mask.nonzero().flatten().tolist()

    for wishes, allowed, forced in (
        (LabelHints(), list(range(K)), []),
        (LabelHints(allow=[5, 2, 7], deny=[7, 0], force=[2]), [2, 5], [2]),
        (LabelHints(labels={4, 1}), [1, 4], [1, 4]),
        (LabelHints(labels=()), [], []),
    ):
        assert [ids(mask) for mask in wishes.masks(K)] == [allowed, forced]


@pytest.mark.parametrize("kind", [list, tuple, set, iter, np.array, torch.tensor])
def test_ids_come_in_any_form(kind):
    found = LabelHints(allow=kind([1, 2, 3]), deny=kind([3]), force=kind([2]))
    assert found == LabelHints(allow=[3, 2, 1], deny=[3], force=[2])
    assert found.masks(K)[0].nonzero().flatten().tolist() == [1, 2]
    assert LabelHints(labels=kind([4])) == LabelHints(labels={4})


@pytest.mark.parametrize("wish", [torch.ones(K).bool(), np.ones(K, dtype=bool), [True] * K])
def test_masks_are_no_ids(wish):
    with pytest.raises(TypeError, match="`deny` takes label ids"):
        LabelHints(deny=wish)


@pytest.mark.parametrize("wish", ["sky", ["sky"], [1.5], torch.ones(2)])
def test_what_is_no_id_is_named(wish):
    with pytest.raises(TypeError, match=r"`allow` takes label ids \(integers\), not \["):
        LabelHints(allow=wish)


def test_names_stand_for_ids():
    found = LabelHints.named(NAMES, allow=None, deny=["label 3", 5], force=["label 0"])
    assert found == LabelHints(deny=[3, 5], force=[0])
    for name, count in (("sky", 0), ("twin", 2)):
        with pytest.raises(ValueError, match=f"{count} of {K} labels are named '{name}'$"):
            LabelHints.named(NAMES, deny=[name])
    with pytest.raises(ValueError, match=r"'windw'; did you mean 'wind' or 'window '\?$"):
        LabelHints.named(["window ", "sky", "wind"], allow=["windw"])


def test_the_oracles_hints_are_the_labels_present():
    presence = torch.tensor([False, True, False, True])
    assert LabelHints.from_presence(presence) == LabelHints(labels=[1, 3])
    assert LabelHints.from_presence(presence[:1]) == LabelHints(labels=[])
