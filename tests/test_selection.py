"""Selected labels: dynamic κ, wishes of a caller, κ while training."""

import numpy as np
import pytest
import torch

from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.selection import (
    Selection,
    label_count,
    select,
    training_kappa,
    unranked,
)

K = 12
NAMES = [f"label {i}" for i in range(K - 2)] + ["twin", "twin"]
kappas = pytest.mark.parametrize("kappa", [1, 3, K, K + 17])


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
        Selection(**wishes)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"deny": [1, K]}, rf"`deny`: \[{K}\] are no labels in \[0, {K}\)"),
        ({"labels": [-1]}, r"`labels`: \[-1\]"),
        ({"allow": []}, f"leave none of {K} labels"),
        ({"allow": [1, 2], "deny": [2, 1]}, f"leave none of {K} labels"),
    ],
)
def test_wishes_must_fit_the_labels(wishes, message):
    with pytest.raises(ValueError, match=message):
        Selection(**wishes).masks(K)


def test_masks_by_hand():
    def ids(mask):
        return mask.nonzero().flatten().tolist()

    for wishes, allowed, forced in (
        (Selection(), list(range(K)), []),
        (Selection(allow=[5, 2, 7], deny=[7, 0], force=[2]), [2, 5], [2]),
        (Selection(labels={4, 1}), [1, 4], [1, 4]),
        (Selection(labels=()), [], []),
    ):
        assert [ids(mask) for mask in wishes.masks(K)] == [allowed, forced]


@pytest.mark.parametrize("kind", [list, tuple, set, iter, np.array, torch.tensor])
def test_ids_come_in_any_form(kind):
    found = Selection(allow=kind([1, 2, 3]), deny=kind([3]), force=kind([2]))
    assert found == Selection(allow=[3, 2, 1], deny=[3], force=[2])
    assert found.masks(K)[0].nonzero().flatten().tolist() == [1, 2]
    assert Selection(labels=kind([4])) == Selection(labels={4})


@pytest.mark.parametrize("wish", [torch.ones(K).bool(), np.ones(K, dtype=bool), [True] * K])
def test_masks_are_no_ids(wish):
    with pytest.raises(TypeError, match="`deny` takes label ids"):
        Selection(deny=wish)


@pytest.mark.parametrize("wish", ["sky", ["sky"], [1.5], torch.ones(2)])
def test_what_is_no_id_is_named(wish):
    with pytest.raises(TypeError, match=r"`allow` takes label ids \(integers\), not \["):
        Selection(allow=wish)


def test_names_stand_for_ids():
    found = Selection.named(NAMES, allow=None, deny=["label 3", 5], force=["label 0"])
    assert found == Selection(deny=[3, 5], force=[0])
    for name, count in (("sky", 0), ("twin", 2)):
        with pytest.raises(ValueError, match=f"{count} of {K} labels are named '{name}'$"):
            Selection.named(NAMES, deny=[name])
    with pytest.raises(ValueError, match=r"'windw'; did you mean 'wind' or 'window '\?$"):
        Selection.named(["window ", "sky", "wind"], allow=["windw"])


def test_dynamic_kappa_by_hand():
    probabilities = torch.tensor([[0.2, 0.8, 0.4, 0.6], [0.01, 0.02, 0.01, 0.96]])
    presence_logits = probabilities.logit()
    assert label_count(presence_logits).tolist() == [4, 4]
    assert label_count(presence_logits, min_score=0.5).tolist() == [2, 1]
    assert label_count(presence_logits, min_score=1.0).tolist() == [1, 1]
    assert label_count(presence_logits, mass=0.5).tolist() == [2, 1]  # of 2.0 and of 1.0
    assert label_count(presence_logits, mass=0.975).tolist() == [4, 2]
    assert label_count(torch.zeros(1, 4), mass=0.5).tolist() == [2]  # exactly half is enough
    assert label_count(presence_logits, mass=1e-9).tolist() == [1, 1]
    assert label_count(presence_logits, min_score=0.7, mass=0.975).tolist() == [1, 1]


@kappas
def test_without_wishes_the_top_ranks_are_open(kappa):
    presence_logits = torch.randn(1, K)
    found = select(presence_logits, kappa, Selection())
    assert torch.equal(found.ids, RankedLabels.top(presence_logits, kappa).index[0])
    assert found.open.all() and torch.equal(found.ranking, found.ids)


@kappas
def test_denied_labels_rank_last_and_are_closed(kappa):
    presence_logits = torch.arange(K).float()[None]
    found = select(presence_logits, kappa, Selection(deny=[K - 1, K - 2]))
    assert found.ranking.tolist() == list(range(K - 3, -1, -1))[:kappa]
    assert len(found.ids) == min(kappa, K)
    assert found.open.sum() == min(kappa, K - 2)
    # Few labels allowed: they are selected however low their scores, and the other ranks closed.
    few = select(presence_logits, kappa, Selection(allow=[0, 1]))
    assert few.ranking.tolist() == [1, 0][:kappa]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_allowed_labels_of_score_zero_rank_before_denied_ones(dtype):
    presence_logits = torch.tensor([[1.0, 0.8, 0.7, 0.0, 0.6]], dtype=dtype).logit()
    for wishes, kappa, ranking in (
        (Selection(allow=[3]), 1, [3]),
        (Selection(deny=[0, 1, 2]), 2, [4, 3]),
        (Selection(allow=[3, 0]), 4, [0, 3]),
    ):
        assert select(presence_logits, kappa, wishes).ranking.tolist() == ranking


@kappas
def test_forced_labels_displace_the_last_ranked(kappa):
    presence_logits = torch.arange(K).float()[None]
    found = select(presence_logits, kappa, Selection(force=[0, 1]))
    kappa = max(2, min(kappa, K))
    assert found.ranking.tolist() == [*range(K - 1, K + 1 - kappa, -1), 1, 0]
    assert found.open.all()
    # Forced labels stay where dynamic κ ends before them.
    found = select(presence_logits, kappa, Selection(force=[0, 1]), min_score=1.0)
    assert found.ranking.tolist() == ([K - 1, 1, 0] if kappa > 2 else [1, 0])


@kappas
def test_an_exact_set_is_selected_whole(kappa):
    found = select(torch.arange(K).float()[None], kappa, Selection(labels=[3, 1, 8, 0]), 0.9999)
    assert found.ranking.tolist() == [8, 3, 1, 0]
    assert len(found.ids) == max(4, min(kappa, K))


def test_an_empty_set_leaves_no_object_alone():
    presence_logits = torch.randn(1, K)
    for found in (
        select(presence_logits, 3, Selection(labels=()), mass=0.5),
        unranked(K, presence_logits.device, Selection(labels=()), presence_logits),
    ):
        assert len(found.ranking) == 0 and not found.open.any()
        logits = found.close(torch.randn(5, len(found.ids) + 1))
        assert logits.softmax(-1).tolist() == [[0] * len(found.ids) + [1]] * 5


def test_labels_without_ranks_keep_their_order():
    presence_logits = torch.arange(K).float()[None]
    found = unranked(K, presence_logits.device, Selection(deny=[K - 1]), presence_logits)
    assert found.ids.tolist() == list(range(K)) and found.ranked is None
    assert found.ranking.tolist() == list(range(K - 2, -1, -1))
    assert unranked(K, presence_logits.device, Selection()).ranking is None


def test_kappa_shrinks_between_the_ends_of_its_schedule():
    ends = (0.2, 0.8)
    with pytest.raises(ValueError, match=r"set `model\.progress`"):
        training_kappa("schedule", 3, K, None, ends)
    assert training_kappa("schedule", K, K, None, ends) == K
    assert training_kappa("schedule", K, K, 0.5, ends) == K
    for progress in (None, 0.0, 0.5, 1.0):
        assert training_kappa("all", 3, K, progress, ends) == K
        assert training_kappa("official", 3, K, progress, ends) == 3
        assert training_kappa("keep_present", 3, K, progress, ends) == 3
    found = [training_kappa("schedule", 3, K, p / 100, ends) for p in range(101)]
    assert found[:21] == [K] * 21 and found[80:] == [3] * 21
    assert found[50] == round((K + 3) / 2)
    assert found == sorted(found, reverse=True) and set(found) == set(range(3, K + 1))
