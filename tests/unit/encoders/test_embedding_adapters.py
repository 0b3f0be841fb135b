"""Adapters without a head, which make embeddings: mixed with others and with the base, each equals PEFT alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tandem.errors import AdapterMismatch, InvalidRequest, PromptTooLong, UnsupportedTask
from tandem.specs import ClassificationParameters, EmbeddingParameters
from tandem.specs.encoders import SentencesToCompare, SimilarityParameters
from tests.one_thread import one_thread  # noqa: F401 - pytest finds it here
from tests.unit.encoders.adapter_folders import RECIPES, save_adapter, save_body
from tests.unit.encoders.tiny_models import MAX_TOKENS, SENTENCES
from worker.encoders import EncoderBatcher
from worker.encoders.adapted_body import AdaptedBody
from worker.encoders.adapter_task import AdapterParameters, AdapterTask
from worker.encoders.encoder_adapter import EncoderAdapter, read_encoder_adapter

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-5
"""Between a padded mixed batch and one text alone, float32: rounding in another order of summation."""
RANK = 16
"""Of the slots: VeRA's, LoHa's and LoKr's updates take more than the rank that they are trained with."""

METHODS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(r=4, target_modules=["query", "value"]),
    "dora": lambda: LoraConfig(r=4, use_dora=True, target_modules=["query", "output.dense"]),
    "adalora": lambda: AdaLoraConfig(init_r=4, lora_alpha=32, total_step=9, target_modules=["query"]),
    "ia3": lambda: IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "loha": lambda: LoHaConfig(r=2, alpha=2, target_modules=["query"]),
    "lokr": lambda: LoKrConfig(r=2, alpha=2, decompose_both=True, decompose_factor=4, target_modules=["value"]),
    "vera": lambda: VeraConfig(r=8, target_modules=["query", "value"], save_projection=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_body("bert", tmp_path_factory.mktemp("bert"))


def save(base: Path, folder: Path, config: PeftConfig, *, seed: int = 0) -> Path:
    """What PEFT writes of an adapter on the bare body, all its weights random."""
    config.task_type = "FEATURE_EXTRACTION"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trained = get_peft_model(AutoModel.from_pretrained(base, dtype=torch.float32), config)
        with torch.no_grad():
            for key, weight in trained.named_parameters():
                if any(part in key for part in ("magnitude_vector", "ia3_l", "lambda_b", "lambda_d")):
                    weight.add_(0.3 * torch.randn(weight.shape))
                elif weight.requires_grad:
                    weight.normal_(std=0.3)
    trained.save_pretrained(str(folder))
    return folder


def of_peft(base: Path, folder: Path | None, texts: list[str]) -> Tensor:
    """[texts, hidden]: the mean over each text's tokens, of length 1, by PEFT's forward for one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval().base_model.model
    with torch.no_grad():
        vectors = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return F.normalize(torch.stack(vectors), dim=1)


class Served:
    """A body with slots for all adapters but one, and a batcher over all of them."""

    def __init__(self, base: Path, folders: dict[str, Path]) -> None:
        model = AutoModel.from_pretrained(base)
        self.adapters: dict[str | None, EncoderAdapter | None] = {None: None}
        self.adapters |= {
            name: read_encoder_adapter(name, folder, model, rank_limit=RANK) for name, folder in folders.items()
        }
        body = AdaptedBody(model, adapter_slots=max(len(folders), 1), adapter_rank=RANK)
        self.task = AdapterTask(body, AutoTokenizer.from_pretrained(base))
        self.batcher = EncoderBatcher(self.task, budget=8192, max_wait_seconds=0)

    def submit(self, adapter: str | None, inputs: Any, parameters: Any) -> Any:
        return self.batcher.submit(inputs, AdapterParameters(self.adapters[adapter], parameters))


@pytest.fixture
def serve(base: Path) -> Iterator[Callable[[dict[str, Path]], Served]]:
    made: list[Served] = []

    def serve(folders: dict[str, Path]) -> Served:
        made.append(Served(base, folders))
        return made[-1]

    yield serve
    for served in made:
        served.batcher.stop()


def test_all_methods_and_the_base_share_one_forward(
    base: Path, tmp_path: Path, serve: Callable[[dict[str, Path]], Served]
) -> None:
    """Seven adapters, one with a head, and none: each text's vector is what PEFT makes of it alone."""
    folders = {
        name: save(base, tmp_path / name, config(), seed=seed) for seed, (name, config) in enumerate(METHODS.items())
    }
    save_adapter(base, tmp_path / "mood", RECIPES["mood"], seed=9)
    served = serve({**folders, "mood": tmp_path / "mood"})
    texts = list(SENTENCES)
    jobs = {name: served.submit(name, texts, EmbeddingParameters()) for name in (None, *folders)}
    mood = served.submit("mood", texts, ClassificationParameters())
    served.batcher.start()

    plain = of_peft(base, None, texts)
    torch.testing.assert_close(torch.tensor(jobs[None].result()), plain, atol=TOLERANCE, rtol=0)
    for name, folder in folders.items():
        found = torch.tensor(jobs[name].result())
        torch.testing.assert_close(found, of_peft(base, folder, texts), atol=TOLERANCE, rtol=0, msg=name)
        assert (found - plain).abs().max() > 100 * TOLERANCE, name
    assert len(mood.result()) == len(texts)
    assert served.batcher.counts.batches == 1


def test_sentences_are_compared_by_the_adapters_embeddings(
    base: Path, tmp_path: Path, serve: Callable[[dict[str, Path]], Served]
) -> None:
    """In one batch with texts of the same adapter that are embedded, and of the base that are compared."""
    folder = save(base, tmp_path / "mine", METHODS["lora"]())
    served = serve({"mine": folder})
    source, *others = SENTENCES
    question = [SentencesToCompare(source_sentence=source, sentences=tuple(others))]
    compared = served.submit("mine", question, SimilarityParameters())
    by_the_base = served.submit(None, question, SimilarityParameters())
    embedded = served.submit("mine", list(SENTENCES), EmbeddingParameters(normalize=True))
    served.batcher.start()
    for job, adapter in ((compared, folder), (by_the_base, None)):
        vectors = of_peft(base, adapter, list(SENTENCES))
        assert job.result()[0] == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=TOLERANCE)
    assert compared.result()[0] != pytest.approx(by_the_base.result()[0], abs=100 * TOLERANCE)
    assert len(embedded.result()) == len(SENTENCES)
    assert served.batcher.counts.batches == 1


def test_token_vectors_are_the_adapters_too(
    base: Path, tmp_path: Path, serve: Callable[[dict[str, Path]], Served]
) -> None:
    folder = save(base, tmp_path / "mine", METHODS["lora"]())
    served = serve({"mine": folder})
    job = served.submit("mine", [SENTENCES[0]], EmbeddingParameters(pooling="none"))
    served.batcher.start()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval().base_model.model
    with torch.no_grad():
        expected = model(**tokenizer(SENTENCES[0], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(job.result()[0]), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_text_longer_than_the_body_is_refused(
    base: Path, tmp_path: Path, serve: Callable[[dict[str, Path]], Served]
) -> None:
    served = serve({"mine": save(base, tmp_path / "mine", METHODS["lora"]())})
    served.batcher.start()
    with pytest.raises(PromptTooLong, match=rf"inputs\[1\] has \d+ tokens; the model takes {MAX_TOKENS}"):
        served.submit("mine", ["a book", "book " * 50], EmbeddingParameters()).result()


def test_it_makes_embeddings_and_compares_them_and_does_nothing_else(base: Path, tmp_path: Path) -> None:
    folder = save(base, tmp_path / "mine", METHODS["lora"]())
    adapter = read_encoder_adapter("mine", folder, AutoModel.from_pretrained(base))
    adapter.check_does("feature-extraction")
    adapter.check_does("sentence-similarity")
    with pytest.raises(UnsupportedTask, match="does feature-extraction, not text-classification"):
        adapter.check_does("text-classification")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: PrefixTuningConfig(num_virtual_tokens=3), "peft_type is 'PREFIX_TUNING'"),
        (lambda: OFTConfig(r=0, oft_block_size=8, target_modules=["query"]), "peft_type is 'OFT'"),
        (
            lambda: LoraConfig(r=4, target_modules=["query"], modules_to_save=["pooler"]),
            "modules_to_save is set to .*, which is not served",
        ),
    ],
    ids=["virtual tokens", "rotations", "a head"],
)
def test_what_no_row_of_the_batch_can_have_is_refused(
    config: Callable[[], PeftConfig], reason: str, base: Path, tmp_path: Path
) -> None:
    folder = save(base, tmp_path / "mine", config())
    with pytest.raises(InvalidRequest, match=reason):
        read_encoder_adapter("mine", folder, AutoModel.from_pretrained(base))


def test_an_adapter_of_another_body_is_refused(base: Path, tmp_path: Path) -> None:
    other = save_body("bert", tmp_path / "other", hidden_size=64)
    folder = save(other, tmp_path / "mine", METHODS["lora"]())
    with pytest.raises(AdapterMismatch, match="another base model"):
        read_encoder_adapter("mine", folder, AutoModel.from_pretrained(base))
