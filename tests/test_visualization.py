"""Feature visualisation on a small conv network with random weights, on colours and gradients worked out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vesalius.dictionaries import Feature, direction, neurons
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.preprocessing import Preprocessing
from vesalius.visualization import (
    Objective,
    Transforms,
    centre,
    cosine,
    diversity,
    mean,
    natural_spectrum,
    spatial,
    visualise,
)
from vesalius.visualization.colour import decorrelate, measured, recorrelate, usual
from vesalius.visualization.parametrisation import fourier, frequencies, maco, pixel
from vesalius.visualization.redirection import redirected
from vesalius.visualization.response_norm import BandedNorm
from vesalius.visualization.transforms import PRESETS, preset, transformed


@pytest.fixture(autouse=True)
def one_thread_and_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(channels: int = 3, *, size: int = 32) -> Model:
    """Two convolutions with a pool between, weights from a seed; `3` is before the last ReLU, `4` after."""
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    pixels = Preprocessing(size=(size, size), mean=(0.5,) * channels, sd=(0.25,) * channels)
    return Model(net, preprocessing=pixels, name="small")


# ---------------------------------------------------------------------------------------------------------- objectives


def test_objectives_are_what_they_say_and_add_up():
    acts = {"a": torch.arange(2.0 * 3 * 4 * 4).reshape(2, 3, 4, 4), "b": torch.ones(2, 5)}
    one, other = Feature("a", 1), Feature("b", 2)
    assert torch.equal(mean(one).value(acts), acts["a"][:, 1].mean((1, 2)))
    assert torch.equal(centre(one).value(acts), acts["a"][:, 1, 2, 2])
    assert torch.equal(spatial(one, row=0, column=3).value(acts), acts["a"][:, 1, 0, 3])
    both = 2 * mean(one) - centre(other)
    assert torch.equal(both.value(acts), 2 * acts["a"][:, 1].mean((1, 2)) - 1)
    assert (str(both), both.sites) == ("2 × mean of a[1] − centre of b[2]", ("a", "b"))
    assert str(-both) == "−(2 × mean of a[1] − centre of b[2])"
    vector = direction("a", torch.tensor([3.0, 0.0, 4.0]))
    assert torch.allclose(mean(vector).value(acts), (3 * acts["a"][:, 0] + 4 * acts["a"][:, 2]).mean((1, 2)))


def test_a_cosine_is_largest_along_the_direction_and_small_against_it():
    vector = direction("a", torch.tensor([1.0, 0.0]))
    acts = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])[:, :, None, None].expand(-1, -1, 2, 2)
    along, beside, against = cosine(vector, power=2.0).value({"a": acts}).tolist()
    assert along == pytest.approx(1, abs=1e-4)
    assert beside == pytest.approx(0.5, abs=1e-4)
    assert against == pytest.approx(-0.01, abs=1e-4)


def test_diversity_is_minus_one_of_equal_textures_and_zero_of_a_picture_alone():
    acts = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(diversity("a").value({"a": acts.expand(3, -1, -1, -1)}), torch.full((3,), -1.0))
    assert diversity("a").value({"a": acts}).abs().item() < 1e-6


def test_keys_tell_vectors_apart_that_have_one_label():
    one, other = (direction("a", torch.tensor([1.0, x]), label="mine") for x in (0.0, 1.0))
    assert str(mean(one)) == str(mean(other))
    assert mean(one).key != mean(other).key


# ------------------------------------------------------------------------------------------------------------- colour


def test_the_published_matrix_has_a_longest_column_of_one():
    assert usual(3).norm(dim=0).max().item() == pytest.approx(1)
    assert torch.equal(usual(5), torch.eye(5))


def test_a_measured_matrix_gives_back_the_covariance_it_was_measured_on():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor(
        [[1.0, 0.0, 0.0, 0.2], [0.8, 0.3, 0.0, 0.0], [0.5, 0.1, 0.2, 0.0], [0.0, 0.0, 0.1, 0.4]]
    )
    pictures = recorrelate(torch.randn(20, 4, 16, 16, generator=generator), mixing)
    matrix = measured(pictures.split(6))
    covariance = torch.cov(pictures.permute(1, 0, 2, 3).flatten(1))
    found = matrix @ matrix.T
    assert torch.allclose(found / found.trace(), covariance / covariance.trace(), atol=1e-4)
    flat = torch.cov(decorrelate(pictures, matrix).permute(1, 0, 2, 3).flatten(1))
    assert torch.allclose(flat / flat[0, 0], torch.eye(4), atol=1e-2)


def test_colours_are_not_measured_on_nothing():
    with pytest.raises(VesaliusError, match="no pictures"):
        measured([])
    with pytest.raises(VesaliusError, match="one single colour"):
        measured([torch.full((2, 3, 4, 4), 0.5)])


# --------------------------------------------------------------------------------------------------- parametrisations


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (12, 9)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_parametrisation_gives_pixels_of_the_size_asked_for(size, channels):
    for made in (fourier, pixel, maco):
        writing = made(size, usual(channels))
        picture = writing.picture(writing.start(torch.Generator().manual_seed(0))[None])
        assert picture.shape == (1, channels, *size)
        assert bool((picture > 0).all() and (picture < 1).all())


def test_fourier_amplitudes_fall_with_frequency():
    writing = fourier((64, 64), torch.eye(1))
    start = torch.stack([writing.start(torch.Generator().manual_seed(seed)) for seed in range(20)])
    power = torch.fft.rfft2(writing.picture(start).logit()).abs().square().mean((0, 1))
    frequency = frequencies((64, 64))
    low = (power * frequency.square())[(frequency > 0.05) & (frequency < 0.1)].mean()
    high = (power * frequency.square())[(frequency > 0.3) & (frequency < 0.4)].mean()
    assert 0.7 < (low / high).item() < 1.4


def test_maco_keeps_magnitudes_whatever_is_optimised():
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(6, 3, 24, 24, generator=generator)
    spectrum = natural_spectrum([pictures], usual(3))
    writing = maco((24, 24), usual(3), spectrum=spectrum)
    phases = writing.start(torch.Generator().manual_seed(0))[None].requires_grad_()
    optimiser = torch.optim.Adam([phases], lr=0.2)

    def magnitudes(phases):
        return torch.fft.rfft2(decorrelate(writing.picture(phases).logit(), usual(3))).abs()

    before, start = magnitudes(phases).detach(), phases.detach().clone()
    for _ in range(20):
        optimiser.zero_grad()
        (-writing.picture(phases)[:, :, 8:16, 8:16].mean()).backward()
        optimiser.step()
    after = magnitudes(phases).detach()
    assert (phases - start).abs().max() > 1
    assert torch.allclose(after, before, atol=2e-3 * before.max().item())
    wanted = spectrum.clone()
    wanted[:, 0, 0] = 0
    assert torch.corrcoef(torch.stack([after[0].flatten(), wanted.flatten()]))[0, 1] > 0.98


# ---------------------------------------------------------------------------------------------------------- transforms


def test_presets_have_a_name_and_wrong_ones_the_nearest():
    assert preset("oriented").rotations == (0.0,)
    with pytest.raises(VesaliusError, match="standard"):
        preset("standart")


def test_a_transform_is_the_shift_the_scale_and_the_rotation_it_says():
    picture = torch.rand(1, 2, 12, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    shifted = transformed(picture, Transforms(jitter=(8,)).draw(1, size=(12, 16), generator=generator))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(9, (1, 2), generator=generator) - 4)[0].tolist()
    rolled = F.pad(picture - 0.5, (8, 8, 8, 8))[:, :, 8 + y : 20 + y, 8 + x : 24 + x] + 0.5
    assert (x, y) != (0, 0)
    assert torch.allclose(shifted, rolled, atol=1e-5)
    turn = Transforms(rotations=(90.0,)).draw(1, size=(12, 12), generator=generator)
    square = picture[:, :, :, 2:14]
    assert any(torch.allclose(transformed(square, turn), square.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3))
    half = Transforms(scales=(0.5,)).draw(1, size=(12, 12), generator=generator)
    shrunk = transformed(square, half)
    assert torch.allclose(shrunk[:, :, :2], torch.full((1, 2, 2, 12), 0.5))
    assert torch.allclose(shrunk[:, :, 3:9, 3:9], F.avg_pool2d(square, 2), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_transforms_are_seeded_differentiable_and_leave_no_hook(name):
    net = model()
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.module.modules()]
    first, again = (visualise(net, "3[0]", steps=3, transforms=name, cached=False) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.history, again.history)
    assert not torch.equal(first.history[0], first.history[-1])
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.module.modules()]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.module.parameters())


# --------------------------------------------------------------------------------------------------------- redirection


def test_a_silent_sample_gets_the_redirected_gradient_and_others_their_own():
    x = torch.tensor([[-1.0, -2.0], [1.0, -2.0], [-1.0, -2.0]], requires_grad=True)
    loss = torch.tensor([[-3.0, 5.0], [-3.0, -5.0], [-3.0, 5.0]])
    with redirected(torch.tensor([True, True, False])):
        y = torch.relu(x)
    assert torch.equal(y, F.relu(x))
    (grad,) = torch.autograd.grad(y, x, loss)
    # all off: what raises an input passes, what lowers it does not; one on: as usual; not chosen: as usual
    assert grad.tolist() == [[-3.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.Tensor.relu])
def test_every_way_to_call_a_relu_is_redirected(rectifier):
    x = torch.full((1, 2), -1.0, requires_grad=True)
    with redirected(torch.tensor([True])):
        y = rectifier(x * 1)
    assert torch.autograd.grad(-y.sum(), x)[0].tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize("rectifier", [nn.ReLU6(), nn.Hardtanh(0.0, 6.0), F.relu6])
def test_relu6_blocks_what_pushes_further_at_either_end(rectifier):
    x = torch.tensor([[-1.0, 7.0, -1.0, 7.0]], requires_grad=True)
    with redirected(torch.tensor([True])):
        y = rectifier(x * 1)
    assert y.tolist() == [[0.0, 6.0, 0.0, 6.0]]
    (grad,) = torch.autograd.grad(y, x, torch.tensor([[-1.0, -1.0, 1.0, 1.0]]))
    assert grad.tolist() == [[-1.0, 0.0, 0.0, 1.0]]


def test_a_unit_that_is_off_at_first_is_turned_on():
    net = model()
    with torch.no_grad():
        net.module[3].bias.fill_(-1.0)
    seen = visualise(
        net, [Feature("4", unit) for unit in range(6)], steps=48, transforms="none", cached=False
    )
    assert (seen.history[0] == 0).any()
    assert ((seen.history[0] == 0) <= (seen.history[-1] > 0)).all()


def test_a_banded_norm_is_the_local_response_norm():
    x = torch.randn(2, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    for size, beta in ((5, 0.75), (4, 0.5), (1, 1.0)):
        norm = nn.LocalResponseNorm(size, alpha=0.3, beta=beta, k=2.0)
        with BandedNorm():
            fast = norm(x)
        assert torch.allclose(fast, norm(x), atol=1e-6)


# --------------------------------------------------------------------------------------------------------- the whole


def test_the_objective_rises_or_falls():
    net = model()
    up = visualise(net, ["3[0]", "3[1]", "4[2]"], steps=32)
    down = visualise(net, ["3[0]", "3[1]"], steps=32, negative=True)
    assert (up.history[-1] > up.history[0]).all()
    assert (down.history[-1] < down.history[0]).all()
    assert (up.activation[:2] > down.activation + 0.5).all()
    assert up.images.dtype == torch.uint8 and up.images.shape == (3, 3, 32, 32)
    assert up.labels == ["mean of 3[0]", "mean of 3[1]", "mean of 4[2]"]


def test_the_activation_is_that_of_the_picture_shown():
    net = model()
    seen = visualise(net, "3[1]", steps=8)
    assert net.module[:4](net.preprocessing.normalise(seen.images / 255))[
        0, 1
    ].mean().item() == pytest.approx(seen.activation.item(), rel=1e-5)


def test_a_picture_does_not_depend_on_what_is_optimised_beside_it():
    net = model()
    names = [f"3[{unit}]" for unit in range(6)] + ["1[3]"]
    together = visualise(net, names, steps=12, cached=False)
    for batch in (1, 3):
        apart = visualise(net, list(reversed(names)), steps=12, batch=batch, cached=False)
        assert torch.equal(together.images, apart.images.flip(0))
        assert torch.equal(together.history, apart.history.flip(1))
    alone = visualise(net, "3[4]", steps=12, cached=False)
    assert torch.equal(alone.history[:, 0], together.history[:, 4])


def test_seeds_differ_and_copies_are_made_to_differ():
    net = model()
    one, two = (visualise(net, "3[1]", steps=8, seed=seed).images for seed in (0, 1))
    assert not torch.equal(one, two)

    def alike(variety):
        seen = visualise(net, "4[1]", copies=3, steps=64, variety=variety, transforms="none")
        with torch.no_grad():
            acts = net.module[:5](net.preprocessing.normalise(seen.images / 255))
        return -diversity("4").value({"4": acts}).mean().item(), seen.activation

    (plain, activation), (varied, _) = alike(0.0), alike(2.0)
    assert varied < plain
    assert len(activation) == 3 and activation.unique().numel() == 3


class Interrupted(Exception):
    pass


def interrupted_after(steps: int):
    def track(passed):
        for step in passed:
            if step == steps:
                raise Interrupted
            yield step

    return track


def test_an_interrupted_run_goes_on_to_the_same_bits():
    net, settings = model(), {"steps": 24, "copies": 2, "variety": 0.5, "transforms": "crops"}
    straight = visualise(net, ["3[0]", "3[2]"], cached=False, **settings)
    with pytest.raises(Interrupted):
        visualise(net, ["3[0]", "3[2]"], track=interrupted_after(17), **settings)
    seen = []

    def watched(passed):
        for step in passed:
            seen.append(step)
            yield step

    resumed = visualise(net, ["3[0]", "3[2]"], track=watched, **settings)
    assert seen == list(range(17, 24))
    assert torch.equal(resumed.images, straight.images)
    assert torch.equal(resumed.history, straight.history)


def test_a_finished_unit_comes_from_the_cache_whatever_it_is_asked_with(tmp_path):
    net = model()
    first = visualise(net, "3[0]", steps=8)
    assert len(list((tmp_path / "visualization").iterdir())) == 1

    def refused(passed):
        raise AssertionError("optimised again")

    again = visualise(model(), neurons("3")[0], steps=8, track=refused)
    assert torch.equal(again.images, first.images) and torch.equal(again.activation, first.activation)
    both = visualise(net, ["3[1]", "3[0]"], steps=8)
    assert torch.equal(both.images[1], first.images[0])
    with torch.no_grad():
        net.module[0].bias.add_(1.0)
    with pytest.raises(AssertionError, match="again"):
        visualise(Model(net.module, preprocessing=net.preprocessing), "3[0]", steps=8, track=refused)


def test_a_damaged_file_in_the_cache_is_made_again(tmp_path):
    net = model()
    first = visualise(net, "3[0]", steps=4)
    (file,) = (tmp_path / "visualization").iterdir()
    file.write_bytes(b"nothing")
    assert torch.equal(visualise(net, "3[0]", steps=4).images, first.images)


def test_an_objective_that_becomes_nan_stops_alone_and_keeps_its_last_good_picture():
    net = model()
    good, calls = mean(Feature("3", 0)), []

    def turns_nan(acts):
        calls.append(1)
        return good.value(acts) * (float("nan") if len(calls) > 5 else 1.0)

    bad = Objective(turns_nan, ("3",), "turns to nothing", good.key)
    seen = visualise(net, [mean(Feature("3", 1)), bad], steps=16)
    assert seen.skipped == {"turns to nothing": "its objective became NaN at step 5"}
    assert seen.history[:5, 1].isfinite().all() and seen.history[5:, 1].isnan().all()
    assert seen.history[:, 0].isfinite().all()
    assert torch.equal(seen.images[0], visualise(net, mean(Feature("3", 1)), steps=16).images[0])
    until = visualise(net, good, steps=16, track=lambda steps: list(steps)[:4], cached=False)
    assert torch.equal(seen.images[1], until.images[0])


def test_weights_that_are_nan_are_one_sentence(tmp_path):
    net = model()
    with torch.no_grad():
        net.module[3].bias[1] = torch.nan
    with pytest.raises(VesaliusError, match=r"3\[1\].*NaN at step 0"):
        visualise(net, "3[1]", steps=4)
    seen = visualise(net, ["3[1]", "3[2]"], steps=4)
    assert list(seen.skipped) == ["mean of 3[1]"]
    assert seen.history[:, 1].isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("parametrisation", ["fourier", "maco"])
def test_networks_of_any_number_of_channels(channels, parametrisation):
    seen = visualise(model(channels), "3[0]", steps=8, parametrisation=parametrisation, transforms="none")
    assert seen.images.shape == (1, channels, 32, 32)
    assert seen.history[-1] > seen.history[0]


def test_opacity_is_kept_low_where_nothing_is_bought_with_it():
    seen = visualise(model(), centre(Feature("3", 0)), steps=96, alpha=True, transforms="none")
    assert seen.images.shape == (1, 4, 32, 32)
    opacity = seen.images[0, 3].float() / 255
    assert opacity[12:20, 12:20].mean() > opacity[:4].mean() + 0.05


def test_wrong_settings_are_one_sentence():
    net = model()
    for wrong, what in (
        ({"parametrisation": "furier"}, "fourier"),
        ({"transforms": "crop"}, "crops"),
        ({"objective": "center"}, "centre"),
        ({"colour": torch.eye(2)}, "2 channels"),
        ({"parametrisation": "maco", "alpha": True}, "opacity"),
    ):
        with pytest.raises(VesaliusError, match=what):
            visualise(net, "3[0]", steps=1, **wrong)
    with pytest.raises(VesaliusError, match="beyond"):
        visualise(net, "3[99]", steps=1)
    with pytest.raises(VesaliusError, match="preprocessing"):
        visualise(Model(net.module), "3[0]", steps=1)
    with pytest.raises(VesaliusError, match="row 99"):
        visualise(net, spatial(Feature("3", 0), row=99, column=0), steps=1)
