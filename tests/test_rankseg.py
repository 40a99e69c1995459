"""The paper's idea: ranking, temperature, presence, multi-label head."""

import pytest
import torch
import torch.nn.functional as F

from rankseg_m2f.rankseg.head import HEADS, MultiLabelHead, build_label_head, tokens_of_map
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.rankseg.presence import presence_of_labels, presence_of_map
from rankseg_m2f.rankseg.temperature import FORMS, RankTemperature

K = 12
sizes = pytest.mark.parametrize(
    ("batch", "kappa"), [(b, k) for b in (1, 3) for k in (1, 3, K, K + 17)]
)


@sizes
def test_top_is_the_sorted_list_cut_off(batch, kappa):
    scores = torch.randn(batch, K)
    ranked = RankedLabels.top(scores, kappa)
    expected = scores.sort(dim=1, descending=True).indices[:, : min(kappa, K)]
    assert torch.equal(ranked.index, expected)
    assert ranked.kappa == min(kappa, K) and len(ranked) == batch


@pytest.mark.parametrize("kappa", [0, -3])
def test_no_rank_at_all_is_refused(kappa):
    with pytest.raises(ValueError, match=f"TOPK={kappa}.*12 labels"):
        RankedLabels.top(torch.randn(2, K), kappa)


@sizes
def test_scatter_undoes_gather_where_selected(batch, kappa):
    ranked = RankedLabels.top(torch.randn(batch, K), kappa)
    for shape, dim in (((batch, 5, K), 2), ((batch, K, 4, 6), 1), ((batch, K), -1)):
        x = torch.randn(shape)
        gathered = ranked.gather(x, dim)
        kept = ranked.scatter(torch.ones_like(gathered), dim, fill=0).bool()
        back = ranked.scatter(gathered, dim)
        assert torch.equal(back[kept], x[kept])
        assert (back[~kept] == -100).all()


def test_gather_by_hand():
    ranked = RankedLabels(torch.tensor([[2, 0]]), 4)
    assert ranked.gather(torch.tensor([[10.0, 11, 12, 13]]), 1).tolist() == [[12, 10]]
    assert ranked.scatter(torch.tensor([[7.0, 8]]), 1, fill=-1).tolist() == [[8, -1, 7, -1]]
    assert ranked.take(torch.eye(4))[0].argmax(1).tolist() == [2, 0]


def test_taking_weights_first_equals_gathering_logits():
    ranked = RankedLabels.top(torch.randn(3, K), 5)
    weight, queries = torch.randn(K, 8), torch.randn(3, 4, 8)
    before = torch.einsum("bkd,bqd->bqk", ranked.take(weight), queries)
    torch.testing.assert_close(before, ranked.gather(queries @ weight.T, 2))


def test_no_object_keeps_the_last_rank():
    ranked = RankedLabels.top(torch.randn(2, K), 3).with_void()
    assert ranked.kappa == 4 and ranked.num_labels == K + 1
    assert (ranked.index[:, -1] == K).all()
    assert (ranked.rank_of(torch.full((2, 1), K), -1) == 3).all()


def test_rank_of_labels_and_of_ignored_ones():
    ranked = RankedLabels(torch.tensor([[2, 0], [1, 3]]), 4)
    labels = torch.tensor([[0, 1, 2, 255], [3, 1, -1, 4]])
    assert ranked.rank_of(labels, missing=-1).tolist() == [[1, -1, 0, -1], [1, 0, -1, -1]]
    ignored = torch.full((2, 3, 3), 255, dtype=torch.uint8)
    assert (ranked.rank_of(ignored, missing=255) == 255).all()
    assert ranked[1].rank_of(torch.tensor([[3]]), -1).tolist() == [[1]]


@sizes
def test_present_labels_displace_the_last_ranked(batch, kappa):
    scores = torch.randn(batch, K)
    keep = torch.zeros(batch, K, dtype=torch.bool)
    keep.scatter_(1, scores.topk(2, largest=False).indices, True)
    ranked = RankedLabels.top(scores, kappa, keep)
    kappa = ranked.kappa
    kept = keep.gather(1, ranked.index).sum(1)
    assert (kept == min(2, kappa)).all()
    chosen = scores.gather(1, ranked.index)
    assert (chosen[:, 1:] <= chosen[:, :-1]).all()
    if kappa > 2:  # the others are the best of the rest
        for best, ids in zip(scores.topk(kappa - 2).indices, ranked.index, strict=True):
            assert set(best.tolist()) <= set(ids.tolist())


def test_keeping_nothing_is_the_plain_ranking():
    scores = torch.randn(4, K)
    none = torch.zeros(4, K, dtype=torch.bool)
    assert torch.equal(RankedLabels.top(scores, 5, none).index, RankedLabels.top(scores, 5).index)


def test_ranking_passes_no_gradient():
    scores = torch.randn(2, K, requires_grad=True)
    assert not RankedLabels.top(scores, 3, torch.ones(2, K, dtype=torch.bool)).index.requires_grad


def test_layernorm_form_is_a_layer_norm_with_its_keys():
    module, reference = RankTemperature(6), torch.nn.LayerNorm(6)
    with torch.no_grad():
        module.weight.copy_(torch.rand(6)), module.bias.copy_(torch.rand(6))
    reference.load_state_dict(module.state_dict())
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(module(x), reference(x))
    maps = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(module(maps, dim=1), reference(maps.movedim(1, 3)).movedim(3, 1))


def test_plain_temperatures():
    rank, shared = RankTemperature(3, "rank", 2.0), RankTemperature(3, "shared", 10.0)
    x = torch.tensor([[1.0, 2, 3]])
    with torch.no_grad():
        rank.weight[2] = 0.5
    assert rank(x).tolist() == [[2, 4, 1.5]]
    assert shared(x).tolist() == [[10, 20, 30]]
    assert rank.weight.shape == (3,) and shared.weight.shape == (1,)
    for form in FORMS:
        module = RankTemperature(3, form)
        module(torch.randn(4, 3)).square().sum().backward()
        assert module.weight.grad.abs().sum() > 0


def test_temperature_refuses_what_it_does_not_fit():
    with pytest.raises(ValueError, match="4 ranks met logits with 3"):
        RankTemperature(4)(torch.randn(2, 3))
    with pytest.raises(ValueError, match="one of layernorm, rank, shared"):
        RankTemperature(4, "hot")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("void", [True, False])
def test_temperature_of_fewer_and_more_ranks(form, void):
    module, strict = RankTemperature(5, form, void=void), RankTemperature(5, form)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.arange(len(parameter)) + 1.0)
    strict.load_state_dict(module.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(module(x), strict(x))
    # Ranks past the last have the last label's values; no-object keeps its own.
    labels = [1.0, 2, 3, 4] if void else [1.0, 2, 3, 4, 5]
    for ranks in (1 + void, 3, 8):
        kept = (labels + labels[-1:] * 5)[: ranks - void] + [5.0] * void
        values = torch.tensor(kept if form != "shared" else [1.0])
        x = torch.randn(2, 4, ranks)
        expected = F.layer_norm(x, (ranks,), values, values) if form == "layernorm" else x * values
        torch.testing.assert_close(module(x), expected)
        torch.testing.assert_close(module(x.mT, dim=1).mT, expected)


def test_ranks_out_of_use_get_no_gradient():
    module = RankTemperature(6, "rank", void=True)
    module(torch.rand(3, 3) + 1).sum().backward()
    assert (module.weight.grad > 0).tolist() == [True, True, False, False, False, True]


def test_presence_ignores_what_is_no_label():
    maps = torch.tensor([[[0, 2], [255, 2]], [[255, 255], [255, 255]]])
    assert presence_of_map(maps, 3).tolist() == [[True, False, True], [False] * 3]
    labels = [torch.tensor([1, 1, -1, 255]), torch.empty(0, dtype=torch.int64)]
    assert presence_of_labels(labels, 3).tolist() == [[False, True, False], [False] * 3]


def test_label_loss_by_hand():
    # One label present with score 0.5, one absent with score 0.5: ln 2, and (0.45)^2 * -ln 0.55.
    loss = asymmetric_loss(torch.zeros(1, 2), torch.tensor([[True, False]]))
    expected = (0.693147 + 0.45**2 * 0.597837) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", HEADS)
@pytest.mark.parametrize("shared", [None, 16, 24, 32])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_form_of_head(form, shared, batch):
    settings = {"hidden_dim": 32, "dropout": 0.0, "shared_channels": shared}
    head = build_label_head(form, K, 24, **settings)
    embeddings = None if shared is None else torch.randn(K, shared, requires_grad=True)
    features = torch.randn(batch, 7, 24, requires_grad=True)
    logits = head(features, embeddings)
    assert logits.shape == (batch, K)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert features.grad.abs().sum(2).gt(0).all()  # each token counts
    assert shared is None or embeddings.grad.abs().sum(1).gt(0).all()
    # Tokens have no order, and clips do not see each other.
    torch.testing.assert_close(head(features.flip(1), embeddings), logits)
    torch.testing.assert_close(head(features[:1], embeddings), logits[:1])


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match="HEAD='guess' must be one of encoder, decoder, pooled"):
        build_label_head("guess", K, 24)


def test_pooled_head_is_a_mean_and_a_linear_layer():
    head = build_label_head("pooled", K, 24)
    features = torch.randn(2, 7, 24)
    expected = features.mean(1) @ head.cls_emb[0].T + head.bias
    torch.testing.assert_close(head(features), expected)


def test_feature_maps_become_tokens_of_their_clip():
    maps = torch.randn(6, 5, 2, 3)  # two clips of three frames
    tokens = tokens_of_map(maps, num_frames=3)
    assert tokens.shape == (2, 18, 5)
    assert torch.equal(tokens[1, 6 + 2], maps[4, :, 0, 2])


@pytest.mark.parametrize("hidden", [32, 64, 192])
def test_head_shapes_and_gradients(hidden):
    head = MultiLabelHead(K, in_channels=24, hidden_dim=hidden)
    logits = head(torch.randn(3, 7, 24))
    assert logits.shape == (3, K)
    logits.sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    assert head.fc.W.shape == (1, K, hidden) and head.cls_emb.shape == (1, K, hidden)


@pytest.mark.parametrize("shared", [24, 64])
def test_head_with_the_segmentors_embeddings(shared):
    head = MultiLabelHead(K, in_channels=24, hidden_dim=64, shared_channels=shared)
    embeddings = torch.randn(K, shared, requires_grad=True)
    head(torch.randn(2, 7, 24), embeddings).sum().backward()
    assert embeddings.grad.abs().sum() > 0
    assert not any("cls_emb" in name for name in head.state_dict())


def test_ten_lines_in_a_pixel_segmentor():
    """ARCHITECTURE.md's example: RankSeg with logits of shape (B, K, h, w)."""
    logits = torch.randn(2, K, 5, 5, requires_grad=True)
    target = torch.randint(0, K, (2, 5, 5))
    target[:, 0] = 255
    ranked = RankedLabels.top(torch.randn(2, K), 4)
    temperature = RankTemperature(4, "rank")
    selected = temperature(ranked.gather(logits, dim=1), dim=1)
    ranks = ranked.rank_of(target, missing=255)
    loss = F.cross_entropy(selected, ranks, ignore_index=255)
    loss.backward()
    assert torch.isfinite(loss) and temperature.weight.grad.abs().sum() > 0
    full = ranked.scatter(selected, dim=1)
    assert full.shape == logits.shape
    best = ranked.gather(full, dim=1).argmax(1, keepdim=True).flatten(1)
    assert torch.equal(ranked.index.gather(1, best), full.argmax(1).flatten(1))
