"""prune(): the model passed in is untouched, and the new one is like it but for its widths."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

import d2prune
from d2prune.errors import PruneError
from d2prune.pruning import prune
from d2prune.rebuild import rebuild
from tests.each import each


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def conv(inp, out, norm, stride=1):
    activation = nn.functional.relu
    return Conv2d(inp, out, 3, stride, 1, bias=norm is None, norm=norm, activation=activation)


class Net(nn.Module):
    """Fused convolutions with frozen and trainable norms, a frozen stem and a head."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16, FrozenBatchNorm2d(16), 2)
        self.one = conv(16, 16, nn.BatchNorm2d(16))
        self.two = conv(16, 24, nn.GroupNorm(6, 24))
        self.plain = conv(24, 16, None)
        self.head = nn.Conv2d(16, 4, 1)
        for parameter in self.stem.parameters():
            parameter.requires_grad_(False)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.plain(self.two(x + self.one(x))))


def net(dtype=torch.float32):
    model = Net()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.to(dtype)


def images(dtype=torch.float32):
    return torch.rand(1, 3, 32, 32).to(dtype)


def snapshot(model):
    """Everything of a model that a prune might disturb."""
    return {
        name: (
            type(module),
            module.training,
            set(vars(module)),
            list(module._modules),
            {k: (id(p), p.clone(), p.requires_grad) for k, p in own(module._parameters)},
            {k: (id(b), b.clone()) for k, b in own(module._buffers)},
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    }


def own(tensors):
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None]


def alike(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(alike(one[k], two[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(alike, one, two))
    return one == two


@pytest.mark.parametrize("training", [True, False])
def test_the_model_passed_in_is_untouched(training):
    model = net().train(training)
    before = snapshot(model)
    result = prune(model, 0.4, example_inputs=images())
    assert alike(before, snapshot(model)) and result.model is not model
    shared = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert not shared & {id(t) for t in (*result.model.parameters(), *result.model.buffers())}


def test_the_model_is_untouched_when_pruning_fails():
    model = net()
    before = snapshot(model)
    for bad in ({"amount": 0.99}, {"protect": ("nothing.*",)}, {"forward_fn": lambda m, x: x * 2}):
        with pytest.raises(PruneError):
            prune(model, **{"amount": 0.4, "example_inputs": images(), **bad})
        assert alike(before, snapshot(model))


def test_grad_mode_and_gradients_are_left_alone():
    model = net()
    model(images()).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        result = prune(model, 0.4, example_inputs=images())
        assert not torch.is_grad_enabled()
    assert result.proof.exact
    assert all(
        torch.equal(p.grad, gradients[n])
        for n, p in each((n, p) for n, p in model.named_parameters() if n in gradients)
    )
    assert all(p.grad is None or p.grad.shape == p.shape for p in result.model.parameters())


def test_random_numbers_are_not_drawn():
    model, x = net(), images()
    state = torch.get_rng_state()
    prune(model, 0.4, example_inputs=x)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("training", [True, False])
def test_the_result_is_like_the_model_passed_in(training):
    model = net().train(training)
    model.one.eval()
    result = prune(model, 0.4, allocation="uniform", example_inputs=images())
    pairs = list(zip(model.named_modules(), result.model.named_modules(), strict=True))
    assert all((n, type(old), old.training) == (m, type(new), new.training) for (n, old), (m, new) in pairs)
    for (n, old), (m, new) in zip(model.named_parameters(), result.model.named_parameters(), strict=True):
        assert (n, old.requires_grad, old.dtype, old.device, old.dim()) == (
            m, new.requires_grad, new.dtype, new.device, new.dim()
        )  # fmt: skip
    assert list(model.state_dict()) == list(result.model.state_dict())


def test_frozen_layers_are_pruned_and_stay_frozen():
    result = prune(net(), 0.4, allocation="uniform", example_inputs=images())
    stem = result.model.stem
    assert isinstance(stem.norm, FrozenBatchNorm2d) and not stem.weight.requires_grad
    assert stem.out_channels == stem.norm.num_features == stem.norm.running_var.shape[0] < 16
    assert {row.name: row.status for row in result.coverage}["stem.norm"] == "pruned"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_keep_theirs(dtype):
    model, x = net(dtype), images(dtype)
    result = prune(model, 0.4, example_inputs=x)
    assert result.proof.exact and result.proof.dtype == "float64"
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.model.eval()(x).dtype == dtype


def test_autocast_around_the_call_changes_nothing():
    model, x = net(), images()
    want = prune(model, 0.4, example_inputs=x)
    with torch.autocast(x.device.type, torch.bfloat16):
        got = prune(model, 0.4, example_inputs=x)
    assert got.spec == want.spec and got.proof.exact


def test_no_verify_no_proof():
    assert prune(net(), 0.4, example_inputs=images(), verify=False).proof is None


def test_before_and_after_are_counted():
    model = net()
    result = prune(model, 0.4, "params", example_inputs=images())
    for totals, one in ((result.before, model), (result.after, result.model)):
        assert totals.params == sum(p.numel() for p in one.parameters())
    assert result.reached == pytest.approx(1 - result.after.params / result.before.params)


@pytest.mark.parametrize("name", ["one.weight", "stem.norm.running_mean", "one.norm.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(name, value):
    model = net()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[3] = value
    with pytest.raises(PruneError) as info:
        prune(model, 0.4, example_inputs=images())
    assert str(info.value) == f"{name} is not finite; refusing to prune"


def test_a_model_without_an_adapter_needs_inputs():
    with pytest.raises(PruneError, match="no adapter for Net: pass example_inputs="):
        prune(net(), 0.4)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"x": x}])
def test_inputs_are_a_tensor_a_tuple_or_a_dict(wrap):
    assert prune(net(), 0.4, example_inputs=wrap(images())).proof.exact


def test_a_forward_function_chooses_what_is_kept():
    def features(model, x):
        return {"stem": model.stem(x), "plain": model.plain(model.two(model.stem(x)))}

    result = prune(net(), 0.3, example_inputs=images(), forward_fn=features)
    rows = {row.name: row for row in result.coverage}
    assert result.proof.compared == ("output.stem", "output.plain")
    assert rows["stem"].reason == "is the model's output 'output.stem'"
    assert rows["head"].reason == rows["one"].reason == "was not reached by the trace"


def test_layers_that_were_not_run_are_left_alone_and_named(caplog):

    def without_one(model, x):
        return model.head(model.plain(model.two(model.stem(x))))

    result = prune(net(), 0.3, example_inputs=images(), forward_fn=without_one)
    assert result.proof.exact and "one" not in result.spec.layers
    assert "2 layers were not run by the forward pass that was traced: one, one.norm" in caplog.text


def test_inference_mode_around_the_call_changes_nothing():
    model, x = net(), images()
    with torch.inference_mode():
        result = prune(model, 0.4, example_inputs=x)
    assert result.proof.exact and not any(p.is_inference() for p in result.model.parameters())
    result.model.train()(x).sum().backward()


def test_one_pattern_needs_no_list():
    result = prune(net(), 0.3, protect="two", example_inputs=images())
    assert result.model.two.out_channels == 24 and result.request.protect == ("two",)


class Repeats(Net):
    """Names the width of "plain" in a view, and that of "stem" nowhere that counts."""

    def forward(self, x):
        x = self.stem(x)
        x = self.plain(self.two(x.view(*x.shape))).view(-1, 16, 16, 16)
        return self.head(x)


def test_a_width_that_the_code_repeats_is_changed(tmp_path):
    result = prune(Repeats(), 0.2, allocation="uniform", example_inputs=images())
    (row,) = (row for row in result.coverage if row.name == "plain")
    assert result.proof.exact and row.status == "pruned"
    ((change,),) = result.spec.calls.values()
    assert change.numbers == ((1, row.after),) and change.text.endswith(".view(-1, 16, 16, 16)")
    d2prune.save(result, tmp_path / "p.pth")
    loaded, x = d2prune.load(tmp_path / "p.pth", Repeats()), images()
    assert torch.equal(loaded.eval()(x), result.model.eval()(x))


def test_changed_calls_follow_a_second_prune():
    first = prune(Repeats(), 0.2, allocation="uniform", example_inputs=images())
    second = prune(first.model, 0.2, allocation="uniform", example_inputs=images())
    ((change,),) = second.spec.calls.values()
    assert change.numbers == ((1, second.model.plain.out_channels),)
    assert second.proof.exact and rebuild(Repeats(), second.spec)(images()).shape == (1, 4, 16, 16)


def test_pruning_in_a_copy_of_a_copy_is_independent():
    first = prune(net(), 0.3, example_inputs=images())
    twin = copy.deepcopy(first.model)
    second = prune(first.model, 0.3, example_inputs=images())
    assert twin.prune_spec == first.spec != second.spec
    assert second.step != second.spec


@pytest.mark.parametrize("inputs", [torch.rand(1, 5, 8, 8), {"y": torch.rand(1, 3, 8, 8)}, ()])
def test_inputs_that_the_model_does_not_take_are_an_error(inputs):
    with pytest.raises(PruneError, match="Net does not run on example_inputs"):
        prune(net(), 0.3, example_inputs=inputs)


def test_a_model_without_parameters_is_an_error():
    with pytest.raises(PruneError, match="ReLU has no parameters"):
        prune(nn.ReLU(), 0.3, example_inputs=images())
