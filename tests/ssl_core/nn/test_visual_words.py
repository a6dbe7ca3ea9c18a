import math
from collections import Counter

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from ssl_core.nn import visual_words
from ssl_core.nn.visual_words import Bags, RecentWords, WordHead, WordsToWeights, match_bags, surroundings


def bags(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).pow(3).log().softmax(-1)


def test_the_head_takes_only_the_direction_of_its_weights():
    head, x = WordHead(5, 7), torch.randn(4, 5)
    with torch.no_grad():
        head.scale.fill_(3.0)
        expected = [[3 * float(x[i] @ w / w.norm()) for w in head.weight] for i in range(4)]
        assert torch.allclose(head(x), torch.tensor(expected), atol=1e-5)
        before = head(x)
        head.weight.mul_(torch.rand(7, 1) + 0.5)  # as an optimizer's steps do: normalised in forward, not once
        assert torch.allclose(head(x), before, atol=1e-5)


def test_a_histogram_counts_the_words_of_each_image():
    found = torch.randint(6, (5, 9), generator=torch.Generator().manual_seed(0))
    shares = visual_words.histogram(found, 6)
    for row, counted in zip(shares, map(Counter, found.tolist())):
        assert torch.allclose(row, torch.tensor([counted[word] / 9 for word in range(6)]))
    assert torch.allclose(shares.sum(1), torch.ones(5))


def test_soft_words_are_the_softmax_of_squared_distances():
    x, vocabulary = torch.randn(6, 4), torch.randn(9, 4)
    shares, least = visual_words.soft_words(x, vocabulary, torch.tensor(2.0))
    for i in range(6):
        distances = [float((x[i] - word).square().sum()) for word in vocabulary]
        weights = [math.exp(-2 * distance) for distance in distances]
        assert torch.allclose(shares[i], torch.tensor([weight / sum(weights) for weight in weights]), atol=1e-5)
        assert least[i].item() == pytest.approx(min(distances), abs=1e-4)


def test_weights_are_made_from_the_direction_of_each_word_and_have_one_length():
    head, vocabulary = WordsToWeights(5, 3, 4.0), torch.randn(7, 5)
    weights = head(vocabulary)
    first, norm, _, last = head.mlp
    hidden = [first.weight @ (word / word.norm()) for word in vocabulary]
    mean, deviation = torch.stack(hidden).mean(0), torch.stack(hidden).var(0, unbiased=False).add(norm.eps).sqrt()
    for word, found in zip(hidden, weights):
        out = last.weight @ ((word - mean) / deviation).relu() + last.bias
        torch.testing.assert_close(found, 4 * out / out.norm(), atol=1e-5, rtol=1e-4)
    assert torch.allclose(weights.norm(dim=1), torch.tensor(4.0))
    assert torch.allclose(head.eval()(vocabulary), head(3 * vocabulary), atol=1e-5)


@pytest.mark.parametrize("scores", [2**22, 1])
def test_a_late_bag_is_each_word_at_its_strongest_place(scores, monkeypatch):
    monkeypatch.setattr(visual_words, "SCORES", scores)  # all images at once, or one by one
    late, maps = RecentWords(6, 4, sharpness=3.0, decay=0.9), torch.randn(5, 3, 2, 4)
    late.spread.fill_(2.0)
    bags = late.bags(maps, torch.rand(5))
    for bag, places in zip(bags, maps.flatten(1, 2)):
        distances = torch.stack([(late.queue.keys - place).square().sum(1) for place in places])
        strongest = (-3.0 / 2.0 * distances).softmax(1).amax(0)
        assert torch.allclose(bag, strongest / strongest.sum(), atol=1e-5)


def test_late_words_are_places_that_were_seen_and_their_spread_a_mean_that_forgets():
    late, seen, expected = RecentWords(7, 4, sharpness=3.0, decay=0.75), [], 0.0
    naive = list(late.queue.keys.clone())
    for step in range(8):
        maps, pick = torch.randn(3, 5, 4, 4), torch.rand(3)
        seen.append(torch.cdist(maps.flatten(0, 2), late.queue.keys).square().amin(1).mean().item())
        late.bags(maps, pick)
        late.after_step()
        naive = (naive + list(surroundings(maps, pick)))[-7:]
        rows = torch.arange(7).roll(-int(late.queue.place))
        assert torch.equal(late.queue.keys[rows], torch.stack(naive))
        expected += (seen[-1] - expected) * max(0.25, 1 / (step + 1))
        assert late.spread.item() == pytest.approx(expected, rel=1e-4)


def test_surroundings_are_means_around_every_inner_place_alike():
    maps = torch.rand(1, 4, 5, 2).expand(6000, -1, -1, -1)
    found = surroundings(maps, torch.rand(6000, generator=torch.Generator().manual_seed(0)))
    means = [maps[0, i : i + 3, j : j + 3].mean((0, 1)) for i in range(2) for j in range(3)]
    distance, place = torch.cdist(found, torch.stack(means)).min(1)
    assert distance.max() < 1e-3 and place.bincount().min() > 900
    small = torch.rand(2, 1, 2, 3)
    assert torch.allclose(surroundings(small, torch.tensor([0.0, 0.999])), small.mean((1, 2)))


def test_the_loss_is_the_divergence_from_the_bag_and_its_entropy():
    logits, true = torch.randn(5, 8), bags(5, 8)
    loss, _ = match_bags(Bags(logits, true))
    divergence = kl_divergence(Categorical(true), Categorical(logits=logits))
    assert torch.allclose(loss, divergence + Categorical(true).entropy(), atol=1e-5)


def test_places_are_averaged_and_keep_their_own_words():
    logits, true = torch.randn(3, 4, 8), bags(3, 4, 8)
    loss, metrics = match_bags(Bags(logits, true))
    each = [match_bags(Bags(logits[:, i], true[:, i]))[0] for i in range(4)]
    assert torch.allclose(loss, torch.stack(each).mean(0), atol=1e-6)
    assert all(value.shape == (3,) for value in metrics.values())


def test_metrics_tell_a_right_answer_and_a_collapsed_vocabulary():
    true = bags(6, 8)
    _, right = match_bags(Bags(true.log(), true))
    assert right["r2"].mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(right["perplexity"], Categorical(true).entropy().exp())
    assert torch.allclose(right["batch_perplexity"], Categorical(true.mean(0)).entropy().exp())
    _, mean = match_bags(Bags(true.mean(0).log().expand(6, 8), true))
    assert mean["r2"].mean().item() == pytest.approx(0, abs=1e-5)
    one = torch.eye(8)[[3] * 6]
    _, collapsed = match_bags(Bags(torch.randn(6, 8), one))
    assert torch.allclose(collapsed["batch_perplexity"], torch.ones(6))


def test_the_border_is_cut_and_a_small_map_keeps_its_middle():
    maps = torch.arange(49.0).view(1, 1, 7, 7)
    assert (
        visual_words.without_border(maps, 1).shape == (1, 5, 5, 1)
        and visual_words.without_border(maps, 1)[0, 0, 0] == 8
    )
    assert visual_words.without_border(maps, 9).flatten().tolist() == [24]
    assert visual_words.without_border(maps[..., :2, :2], 1).shape == (1, 2, 2, 1)
