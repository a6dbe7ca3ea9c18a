import pytest
import torch
from small_tasks import as_raw, encoder, generator, scenes
from torch.distributions import Bernoulli, Normal, kl_divergence

from ssl_core.tasks.variational_autoencoder import Answer, VariationalAutoencoder

SIDE, LATENT = 16, 5


def task_of(**fields) -> VariationalAutoencoder:
    return VariationalAutoencoder(**{"canvas": SIDE, "latent": LATENT, **fields})


def answer_of(n: int = 6, beta: float = 1.0) -> Answer:
    pixels, mean, log_variance = (
        torch.randn(n, *shape, generator=generator(i))
        for i, shape in enumerate(((3, SIDE, SIDE), (LATENT,), (LATENT,)))
    )
    return Answer(pixels, mean, log_variance, torch.tensor(beta))


def pictures(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=generator(9))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_loss_is_the_bound_of_torch_distributions(likelihood, beta):
    task, answer, x = task_of(likelihood=likelihood, deviation=0.2), answer_of(beta=beta), pictures()
    posterior = Normal(answer.mean, (answer.log_variance / 2).exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    of_pixels = (
        Bernoulli(logits=answer.pixels, validate_args=False)
        if likelihood == "bernoulli"
        else Normal(answer.pixels, task.deviation)
    )
    bound = of_pixels.log_prob(x).sum((1, 2, 3)) - beta * kl
    loss, metrics = task.loss(answer, x)
    torch.testing.assert_close(loss, -bound / (3 * SIDE**2))
    torch.testing.assert_close(metrics["kl"], kl)


def test_a_draw_follows_the_distribution_that_the_encoder_says():
    task = task_of()
    model = task.build(encoder).eval()
    torch.nn.init.normal_(model.latent.weight)
    draws = []
    model.unfold.register_forward_hook(lambda module, args, out: draws.append(args[0]))
    one = as_raw(task, pictures(1).expand(4000, -1, -1, -1))
    with torch.no_grad():
        answer = model(**task.make_batch(one, generator())[0])
    mean, deviation = answer.mean[0], (answer.log_variance[0] / 2).exp()
    assert ((draws[0].mean(0) - mean).abs() < 5 * deviation / 4000**0.5).all()
    torch.testing.assert_close(draws[0].std(0), deviation, rtol=0.1, atol=0)


def test_the_weight_of_the_divergence_rises_with_the_steps_and_a_checkpoint_carries_them():
    task = task_of(warmup=4, beta=0.5)
    model = task.build(encoder)
    inputs, _ = task.make_batch(as_raw(task, pictures()), generator())
    seen = []
    for _ in range(6):
        seen.append(model(**inputs).beta.item())
        with torch.no_grad():
            model.after_step()
    assert seen == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    resumed = task.build(encoder)
    resumed.load_state_dict(model.state_dict())
    assert resumed(**inputs).beta == 0.5
    assert task_of(beta=0.5).build(encoder)(**inputs).beta == 0.5  # the paper: from the first step


def test_units_are_active_whose_mean_varies_over_pictures():
    answer = answer_of(n=400)
    mean = torch.randn(400, LATENT, generator=generator()) * torch.tensor([1.0, 0.2, 0.05, 0.0, 0.11])
    _, metrics = task_of().loss(answer._replace(mean=mean), pictures(400))
    assert metrics["active_units"].tolist() == [3] * 400  # deviations above 0.1


@pytest.mark.parametrize(("beta", "collapses"), [(300.0, True), (0.01, False)])
def test_a_divergence_that_costs_too_much_makes_the_latent_collapse(beta, collapses):
    torch.manual_seed(0)
    task = task_of(beta=beta)
    model = task.build(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(80):
        inputs, targets = task.make_batch(scenes(task, 16, seed=step), generator(step))
        loss, metrics = task.loss(model(**inputs), targets)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert (metrics["active_units"].mean() == 0) == collapses


def test_its_last_layer_is_the_mean_of_the_latent():
    task = task_of()
    model, raw = task.build(encoder).eval(), as_raw(task, pictures())
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["latent"], model(**task.make_batch(raw, generator())[0]).mean)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"latent": 0}, "latent at least 1"),
        ({"likelihood": "laplace"}, "likelihood is 'laplace'; it can be bernoulli or gaussian"),
        ({"deviation": 0.0}, "deviation must be above 0"),
        ({"beta": -1.0}, "beta at least 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        VariationalAutoencoder(**fields)
