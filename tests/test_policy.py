"""What the policy decides: labels of training and of evaluation, dynamic κ, schedule, oracle."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.policy import TRAIN_SELECTIONS, RankPolicy, label_count

K = 12
kappas = pytest.mark.parametrize("kappa", [1, 3, K, K + 17])
ENDS = (0.2, 0.8)


def choose(presence_logits, kappa, hints, min_score=0.0, mass=1.0):
    num_labels = presence_logits.shape[1]
    policy = RankPolicy(num_labels, kappa, min_score=min_score, mass=mass)
    return policy.choose(presence_logits, hints)


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
    found = choose(presence_logits, kappa, LabelHints())
    assert torch.equal(found.ids, RankedLabels.top(presence_logits, kappa).index[0])
    assert found.allowed.all() and torch.equal(found.ranking, found.ids)


@kappas
def test_denied_labels_rank_last_and_are_closed(kappa):
    presence_logits = torch.arange(K).float()[None]
    found = choose(presence_logits, kappa, LabelHints(deny=[K - 1, K - 2]))
    assert found.ranking.tolist() == list(range(K - 3, -1, -1))[:kappa]
    assert len(found.ids) == min(kappa, K)
    assert found.allowed.sum() == min(kappa, K - 2)
    # Few labels allowed: they are selected however low their scores, and the other ranks closed.
    few = choose(presence_logits, kappa, LabelHints(allow=[0, 1]))
    assert few.ranking.tolist() == [1, 0][:kappa]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_allowed_labels_of_score_zero_rank_before_denied_ones(dtype):
    presence_logits = torch.tensor([[1.0, 0.8, 0.7, 0.0, 0.6]], dtype=dtype).logit()
    for wishes, kappa, ranking in (
        (LabelHints(allow=[3]), 1, [3]),
        (LabelHints(deny=[0, 1, 2]), 2, [4, 3]),
        (LabelHints(allow=[3, 0]), 4, [0, 3]),
    ):
        assert choose(presence_logits, kappa, wishes).ranking.tolist() == ranking


@kappas
def test_forced_labels_displace_the_last_ranked(kappa):
    presence_logits = torch.arange(K).float()[None]
    found = choose(presence_logits, kappa, LabelHints(force=[0, 1]))
    kappa = max(2, min(kappa, K))
    assert found.ranking.tolist() == [*range(K - 1, K + 1 - kappa, -1), 1, 0]
    assert found.allowed.all()
    # Forced labels stay where dynamic κ ends before them.
    found = choose(presence_logits, kappa, LabelHints(force=[0, 1]), min_score=1.0)
    assert found.ranking.tolist() == ([K - 1, 1, 0] if kappa > 2 else [1, 0])


@kappas
def test_an_exact_set_is_selected_whole(kappa):
    found = choose(torch.arange(K).float()[None], kappa, LabelHints(labels=[3, 1, 8, 0]), 0.9999)
    assert found.ranking.tolist() == [8, 3, 1, 0]
    assert len(found.ids) == max(4, min(kappa, K))


def test_an_empty_set_leaves_no_object_alone():
    presence_logits = torch.randn(1, K)
    for found in (
        choose(presence_logits, 3, LabelHints(labels=()), mass=0.5),
        RankPolicy(K, 3, selection=False).choose(presence_logits, LabelHints(labels=())),
    ):
        assert len(found.ranking) == 0 and not found.allowed.any()
        logits = found.mask_disallowed(torch.randn(5, len(found.ids) + 1))
        assert logits.softmax(-1).tolist() == [[0] * len(found.ids) + [1]] * 5


def test_labels_without_ranks_keep_their_order():
    presence_logits = torch.arange(K).float()[None]
    policy = RankPolicy(K, 3, selection=False)
    found = policy.choose(presence_logits, LabelHints(deny=[K - 1]))
    assert found.ids.tolist() == list(range(K)) and found.ranked is None and not found.scaled
    assert found.ranking.tolist() == list(range(K - 2, -1, -1))
    assert policy.choose(None).ranking is None
    assert policy.train(None) is policy.train(presence_logits) is None


def test_disallowed_labels_are_masked_along_any_dimension():
    found = choose(torch.arange(K).float()[None], 3, LabelHints(labels=[K - 1, K - 3]))
    queries = found.mask_disallowed(torch.randn(2, 5, 4))
    assert torch.isinf(queries).flatten(0, 1).all(0).tolist() == [False, False, True, False]
    pixels = found.mask_disallowed(torch.randn(3, 4, 6), dim=0)
    assert torch.isinf(pixels).flatten(1).all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("batch", [1, 3])
@kappas
@pytest.mark.parametrize("selection", TRAIN_SELECTIONS)
def test_labels_of_training(selection, kappa, batch):
    policy = RankPolicy(K, kappa, train_selection=selection, schedule=ENDS)
    scores = torch.randn(batch, K)
    presence = torch.zeros(batch, K, dtype=torch.bool)
    presence.scatter_(1, scores.argmin(1, keepdim=True), True)
    kappa = min(kappa, K)
    for progress, scheduled in ((0.0, K), (ENDS[0], K), (ENDS[1], kappa), (1.0, kappa)):
        ranked = policy.train(scores, presence, progress)
        wanted = {"all": K, "schedule": scheduled}.get(selection, kappa)
        assert ranked.index.shape == (batch, wanted) and wanted <= policy.ranks
        seen = (ranked.index == scores.argmin(1, keepdim=True)).any(1)
        assert (seen == (selection == "keep_present" or wanted == K)).all()
        if selection != "keep_present":
            assert torch.equal(ranked.index, scores.topk(wanted).indices)
        # Clips do not see each other.
        alone = [
            policy.train(scores[i : i + 1], presence[i : i + 1], progress).index
            for i in range(batch)
        ]
        assert torch.equal(torch.cat(alone), ranked.index)
    assert policy.ranks == (K if selection in ("schedule", "all") else kappa)


@kappas
def test_kappa_at_evaluation(kappa):
    scores = torch.randn(1, K)
    for policy in (RankPolicy(K, 5, kappa), RankPolicy(K, kappa), RankPolicy(K, kappa, K + 3)):
        wanted = K if policy.kappa_eval == K else min(kappa, K)
        found = policy.choose(scores)
        assert torch.equal(found.ids, scores.topk(wanted).indices[0]) and found.scaled
    plain = replace(RankPolicy(K, 5), temperature=False).choose(scores)
    assert plain.ranked.kappa == 5 and not plain.scaled


def test_policies_are_values():
    policy = RankPolicy(K, K + 17)
    assert policy == RankPolicy(K, K) and hash(policy) == hash(RankPolicy(K, K))
    with pytest.raises(FrozenInstanceError):
        policy.kappa = 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kappa": 0}, f"TOPK=0: selection needs at least one of {K} labels"),
        ({"kappa": -3}, "TOPK=-3"),
        ({"kappa_eval": -1}, "TOPK_EVAL=-1 must be 0 or more"),
        (
            {"train_selection": "none"},
            "TRAIN_SELECTION='none' must be one of official",
        ),
        ({"schedule": (0.5, 0.5)}, "TRAIN_SCHEDULE="),
        ({"schedule": (0.5,)}, "TRAIN_SCHEDULE="),
        ({"min_score": 1.5}, r"EVAL_MIN_SCORE=1\.5"),
        ({"mass": 0.0}, r"EVAL_MASS=0\.0"),
    ],
)
def test_values_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RankPolicy(K, **{"kappa": 3} | settings)
    RankPolicy(K, 0, selection=False)  # labels are not selected: nothing is wrong with κ = 0


def test_kappa_shrinks_between_the_ends_of_its_schedule():
    def kappa(selection, kappa, progress):
        policy = RankPolicy(K, kappa, train_selection=selection, schedule=ENDS)
        return policy.training_kappa(progress)

    with pytest.raises(ValueError, match=r"set `model\.progress`"):
        kappa("schedule", 3, None)
    assert kappa("schedule", K, None) == kappa("schedule", K, 0.5) == K
    for progress in (None, 0.0, 0.5, 1.0):
        assert kappa("all", 3, progress) == K
        assert kappa("official", 3, progress) == kappa("keep_present", 3, progress) == 3
    found = [kappa("schedule", 3, p / 100) for p in range(101)]
    assert found[:21] == [K] * 21 and found[80:] == [3] * 21
    assert found[50] == round((K + 3) / 2)
    assert found == sorted(found, reverse=True) and set(found) == set(range(3, K + 1))
