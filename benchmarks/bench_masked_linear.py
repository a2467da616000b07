"""masked_linear and a pruned BERT-base reader against dense engines and other sparse libraries.

Activations arrive and leave as ordinary row-major tensors; masks are random, what is hardest for caches. On the GPU,
where MaskedLinear multiplies densely, it is the op that is measured, against cuBLAS and cuSPARSE.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

import vleff
from vleff.bench import engines
from vleff.bench.inputs import Batch, bert_token_ids, text_samples
from vleff.lottery import extract, prunable_linears
from vleff.nn import MaskedLinear, masked_feed_forward
from vleff.ops import fused_linear, masked_linear, pack_linear_weight

CPU = torch.device("cpu")
SHAPES = {"768 to 768": (768, 768), "768 to 3072": (3072, 768), "3072 to 768": (768, 3072)}
TOKENS = (1, 384, 2048)
TARGETS = {
    torch.float32: {70: 2.2, 80: 3.0, 90: 5.2, 95: 8.5},
    torch.bfloat16: {70: 1.5, 80: 2.3, 90: 4.5, 95: 7.5},
}
ONE_TOKEN_TARGETS = {70: 1.8, 80: 1.0, 90: 4.5, 95: 1.0}
KEPT_BY_TWO_CORES = 0.9
PAIR_TARGETS = {torch.float32: 6.0, torch.bfloat16: None}
READER_TARGETS = {torch.float32: 3.0, torch.bfloat16: 2.2}
TRAINING_TARGET = 2.5
STATE_TARGET = 0.1


@pytest.fixture
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Layers:
    """A dense layer with a random share of zeros and what computes it, with an input."""

    def __init__(
        self, shape: tuple[int, int], zeros: int, tokens: int, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        torch.manual_seed(0)
        self.input = torch.randn(tokens, shape[1]).to(device, dtype)
        self.dense = nn.Linear(shape[1], shape[0]).to(dtype).requires_grad_(False).eval()
        mask = torch.rand(shape) >= zeros / 100
        self.dense.weight.mul_(mask)
        self.packed = pack_linear_weight(self.dense.weight)
        self.masked = MaskedLinear.from_dense(self.dense, mask).to(device)
        self.dense.to(device)
        self.structure = self.masked.structure

    def ours(self) -> Tensor:
        if self.input.is_cuda:
            return masked_linear(self.input, self.masked.values, self.structure, self.masked.bias)
        return self.masked(self.input)

    def torch(self) -> Tensor:
        return linear(self.input, self.dense.weight, self.dense.bias)

    def onednn(self) -> Tensor:
        return fused_linear(self.input, self.packed, self.dense.bias)

    def check(self, out: Tensor) -> None:
        exact = linear(self.input.double(), self.dense.weight.double(), self.dense.bias.double())
        error, dense_error = ((y.double() - exact).square().mean().sqrt() for y in (out, self.torch()))
        assert error <= 2 * dense_error + 1e-7 * exact.abs().max()

    def measure(self, interleaved: Callable[..., None], target: float | None, budget: float = 2.0) -> None:
        with torch.inference_mode():
            self.check(self.ours())
            baselines = {"torch": self.torch}
            if self.input.is_cpu:
                baselines["prepacked oneDNN"] = self.onednn
            interleaved(self.ours, baselines, dict.fromkeys(baselines, target), budget=budget)


@pytest.mark.benchmark(group="masked_linear, one core")
@pytest.mark.parametrize("tokens", TOKENS, ids="{} tokens".format)
@pytest.mark.parametrize("zeros", [70, 80, 90, 95], ids="{} % zeros".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_core(
    interleaved: Callable[..., None],
    one_core: None,
    shape: tuple[int, int],
    zeros: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    target = ONE_TOKEN_TARGETS[zeros] if tokens == 1 else TARGETS[dtype][zeros]
    Layers(shape, zeros, tokens, dtype, device).measure(interleaved, target)


@pytest.mark.benchmark(group="masked_linear, two cores")
@pytest.mark.parametrize("tokens", TOKENS[1:], ids="{} tokens".format)
@pytest.mark.parametrize("zeros", [70, 90], ids="{} % zeros".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_two_cores(
    interleaved: Callable[..., None], shape: tuple[int, int], zeros: int, tokens: int, dtype: torch.dtype
) -> None:
    Layers(shape, zeros, tokens, dtype).measure(interleaved, KEPT_BY_TWO_CORES * TARGETS[dtype][zeros])


class _Alone(nn.Module):
    """A layer as an engine takes a model: named inputs, a tuple of outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (self.layer(hidden),)


@pytest.mark.benchmark(group="masked_linear and other sparse products, 768 to 3072, 384 tokens, fp32")
@pytest.mark.parametrize("zeros", [70, 90], ids="{} % zeros".format)
def test_peers(interleaved: Callable[..., None], one_core: None, zeros: int) -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is a peer")
    pytest.importorskip("openvino", reason="OpenVINO is a peer")
    layers = Layers((3072, 768), zeros, 384, torch.float32)
    csr = layers.dense.weight.to_sparse_csr()
    matrix = sparse.csr_matrix(layers.dense.weight.numpy())
    bias, columns = layers.dense.bias, layers.input.T.contiguous()
    compiled = torch.compile(layers.dense)
    inputs = {"hidden": layers.input}
    openvino = engines.openvino(_Alone(layers.dense), inputs)
    baselines = {
        "torch": layers.torch,
        "prepacked oneDNN": layers.onednn,
        "torch.compile": partial(compiled, layers.input),
        "OpenVINO": lambda: openvino(inputs)[0],
        "torch.sparse CSR": lambda: torch.sparse.mm(csr, columns).T + bias,
        "SciPy CSR": lambda: torch.from_numpy(matrix @ columns.numpy()).T + bias,
    }
    with torch.inference_mode():
        for function in (layers.ours, *baselines.values()):
            layers.check(function())
        interleaved(layers.ours, baselines, {}, budget=6)


@pytest.mark.benchmark(group="masked_linear and cuSPARSE, 768 to 3072, 384 tokens")
@pytest.mark.parametrize("zeros", [70, 90], ids="{} % zeros".format)
def test_cusparse(interleaved: Callable[..., None], zeros: int, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("cuSPARSE runs on the GPU only: --device cuda")
    cupy = pytest.importorskip("cupy", reason="CuPy has cuSPARSE's product: pip install cupy-cuda13x")
    sparse = pytest.importorskip("cupyx.scipy.sparse")
    layers = Layers((3072, 768), zeros, 384, torch.float32, device)
    csr = layers.dense.weight.to_sparse_csr()
    parts = csr.values(), csr.col_indices().int(), csr.crow_indices().int()
    matrix = sparse.csr_matrix(tuple(map(cupy.from_dlpack, parts)), shape=(3072, 768))
    bias, columns = layers.dense.bias, layers.input.T.contiguous()
    baselines = {
        "torch": layers.torch,
        "torch.sparse CSR": lambda: torch.sparse.mm(csr, columns).T + bias,
        "CuPy CSR": lambda: torch.from_dlpack(matrix @ cupy.from_dlpack(columns)).T + bias,
    }
    with torch.inference_mode():
        for function in (layers.ours, *baselines.values()):
            layers.check(function())
        interleaved(layers.ours, baselines, {}, budget=6)


@pytest.mark.benchmark(group="Feed-forward of BERT-base in panels, 90 % zeros, one core")
@pytest.mark.parametrize("tokens", TOKENS[1:], ids="{} tokens".format)
def test_feed_forward(interleaved: Callable[..., None], one_core: None, tokens: int, dtype: torch.dtype) -> None:
    up, down = Layers((3072, 768), 90, tokens, dtype), Layers((768, 3072), 90, tokens, dtype)
    first = up.masked.with_activation("gelu")

    def eager() -> Tensor:
        return linear(gelu(up.torch()), down.dense.weight, down.dense.bias)

    def onednn() -> Tensor:
        hidden = fused_linear(up.input, up.packed, up.dense.bias, activation="gelu")
        return fused_linear(hidden, down.packed, down.dense.bias)

    def ours() -> Tensor:
        return masked_feed_forward(first, down.masked, up.input)

    with torch.inference_mode():
        torch.testing.assert_close(ours(), eager(), atol=2e-2, rtol=2e-2)
        targets = dict.fromkeys(("torch", "prepacked oneDNN"), PAIR_TARGETS[dtype])
        interleaved(ours, {"torch": eager, "prepacked oneDNN": onednn}, targets, budget=4)


def reader(dtype: torch.dtype, zeros: float = 0.9) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    """A BERT-base reader whose pruned weights are zero, and the masks of the others."""
    torch.manual_seed(0)
    model = transformers.BertForQuestionAnswering(transformers.BertConfig()).to(dtype)
    masks = {name: torch.rand(layer.weight.shape) >= zeros for name, layer in prunable_linears(model).items()}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.mul_(mask)
    return model, masks


def paragraphs(count: int) -> Batch:
    return text_samples(bert_token_ids(), "SQuAD paragraphs", padding=0).batches(count)[0]


@pytest.mark.benchmark(group="BERT-base reader with 90 % zeros, SQuAD paragraphs")
@pytest.mark.parametrize("batch", [1, 8, 32], ids="batch {}".format)
def test_reader(interleaved: Callable[..., None], batch: int, dtype: torch.dtype) -> None:
    model, masks = reader(dtype)
    model.eval()
    inputs = paragraphs(batch).inputs
    dense = vleff.accelerate(copy.deepcopy(model))
    ours = vleff.accelerate(extract(copy.deepcopy(model), masks))
    mask = inputs["attention_mask"].bool()

    def logits(model: nn.Module) -> Tensor:
        return model(**inputs).start_logits[mask]

    with torch.inference_mode():
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(logits(ours), logits(model), atol=tolerance, rtol=tolerance)
        baselines = {"eager": partial(logits, model), "accelerated dense": partial(logits, dense)}
        target = READER_TARGETS[dtype] if batch == 8 else 1.0
        interleaved(partial(logits, ours), baselines, {"accelerated dense": target}, budget=15)


@pytest.mark.benchmark(group="Training step of a BERT-base reader with 90 % zeros, 8 SQuAD paragraphs, fp32, AdamW")
def test_training_step(interleaved: Callable[..., None], benchmark) -> None:
    model, masks = reader(torch.float32)
    inputs = paragraphs(8).inputs
    gold = {"start_positions": torch.arange(8), "end_positions": torch.arange(8) + 2}
    contenders = {
        "eager": copy.deepcopy(model),
        "accelerated dense": vleff.accelerate(copy.deepcopy(model)),
        "vleff": vleff.accelerate(extract(copy.deepcopy(model), masks)),
    }
    steps, sizes = {}, {}
    for name, contender in contenders.items():
        trained = [parameter for parameter in contender.train().parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6)
        steps[name] = partial(_step, contender, optimizer, inputs | gold)
        steps[name]()
        sizes[name] = sum(x.numel() for state in optimizer.state.values() for x in state.values())
    share = sizes["vleff"] / sizes["eager"]
    assert share <= STATE_TARGET, f"optimizer state: {share:.1%} of dense"
    benchmark.extra_info["optimizer_state"] = share
    ours = steps.pop("vleff")
    interleaved(ours, steps, dict.fromkeys(steps, TRAINING_TARGET), budget=30)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Tensor]) -> float:
    optimizer.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    return float(loss)
