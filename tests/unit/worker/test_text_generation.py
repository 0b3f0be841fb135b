"""Text-generation jobs through their runner: a real engine, a real tokenizer, a tiny model with random weights."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tandem.catalogue import CatalogueEntry
from tandem.errors import Cancelled, InvalidRequest, UnsupportedTask
from tandem.specs import GenerationParameters, TextGenerationSpec, job_spec_adapter
from tests.one_thread import one_thread  # noqa: F401 - pytest finds it here
from tests.tiny_models import build, samples
from tests.unit.worker.unqueued_attempt import UnqueuedAttempt
from worker.attempt import Attempt
from worker.batchers import Batchers
from worker.encoders import EncoderBatcher
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.resident_model import ResidentModel
from worker.runners.text_generation import TextGenerationRunner, choice_parameters
from worker.tasks.text_generation import TextGenerationByGenerate
from worker.tasks.token_logprobs import token_bytes

PROMPT = samples.SENTENCES[5]
NO_STORE: Any = None
"""Adapters and media are no matter of these tests; a generation attempt writes nothing but events."""
DRAWN = {"temperature": 1.5, "seed": 7, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("tiny-llama", tmp_path_factory.mktemp("tiny-llama"))


def resident(folder: Path, *, by_engine: bool) -> ResidentModel:
    """The tiny model in memory, served in one of the two ways."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loop = None
    if by_engine:
        sizes = {"sequence_slots": 4, "slot_tokens": 128, "step_tokens": 32, "adapter_slots": 0, "adapter_rank": 0}
        loop = EngineLoop(Engine(model, tokenizer, **sizes))
        loop.start()

    def batcher(_task: str) -> EncoderBatcher:
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device=torch.device("cpu"))
        made = EncoderBatcher(TextGenerationByGenerate(pipe), budget=10_000, max_wait_seconds=0.05)
        made.start()
        return made

    entry = CatalogueEntry.model_validate({"name": "tiny", "tasks": ["text-generation"], "folder": folder})
    return ResidentModel(entry, "text-generation", model, tokenizer, loop, Batchers(batcher), 0, 0.0, lambda: None)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[ResidentModel]:
    made = resident(folder, by_engine=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def library(folder: Path) -> Iterator[ResidentModel]:
    made = resident(folder, by_engine=False)
    yield made
    made.close()


class Events(UnqueuedAttempt):
    """An attempt whose events stay with it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: defaultdict[int | None, str] = defaultdict(str)
        """The streamed text, by the number of the choice."""

    def report(self, event: str, data: dict[str, Any]) -> None:
        assert event == "tokens"
        self.texts[data.get("index")] += data["text"]


def run(
    where: ResidentModel, *, attempt: Attempt | None = None, stream: bool = False, **parameters
) -> dict[str, Any]:
    """The result of one job, by the parameters of its spec."""
    spec: Any = job_spec_adapter.validate_python(
        {
            "kind": "inference",
            "task": "text-generation",
            "inputs": PROMPT,
            "parameters": parameters,
            "stream": stream,
        }
    )
    assert isinstance(spec, TextGenerationSpec)
    return TextGenerationRunner(NO_STORE).run(attempt or Events(), spec, where, NO_STORE)


def test_one_text_is_the_result_itself(engine: ResidentModel) -> None:
    result = run(engine, max_new_tokens=5)

    counts = {"prompt_tokens", "reused_tokens", "completion_tokens"}
    assert set(result) == {"generated_text", "finish_reason", "path"} | counts
    assert (result["completion_tokens"], result["path"]) == (5, "engine")


@pytest.mark.parametrize("where", ["engine", "library"])
def test_choices_differ_and_each_is_repeatable(where: str, request: pytest.FixtureRequest) -> None:
    """The first choice is the text of the same job with `n` 1."""
    served = request.getfixturevalue(where)
    result = run(served, n=3, **DRAWN)
    texts = [choice["generated_text"] for choice in result["choices"]]

    assert len(set(texts)) == 3
    assert texts[0] == run(served, **DRAWN)["generated_text"]
    assert run(served, n=3, **DRAWN)["choices"] == result["choices"]
    # The library keeps nothing from prompt to prompt.
    reused = {"reused_tokens"} if where == "engine" else set()
    assert set(result) == {"choices", "prompt_tokens", "completion_tokens", "path"} | reused
    assert [set(choice) for choice in result["choices"]] == [
        {"generated_text", "finish_reason", "completion_tokens"}
    ] * 3
    assert result["completion_tokens"] == sum(choice["completion_tokens"] for choice in result["choices"])


def test_company_changes_no_text(engine: ResidentModel) -> None:
    """Ten jobs at once over four slots: each gets what it gets alone."""
    jobs = [{**DRAWN, "seed": seed, "top_p": 0.9, "frequency_penalty": 0.5} for seed in range(10)]
    alone = [run(engine, **job)["generated_text"] for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as threads:
        together = list(threads.map(lambda job: run(engine, **job)["generated_text"], jobs))

    assert together == alone
    assert len(set(alone)) > 5


def test_neighbouring_seeds_share_no_choice() -> None:
    seeds = [
        choice_parameters(GenerationParameters(temperature=1.0, n=16, seed=seed), choice).seed
        for seed in range(20)
        for choice in range(16)
    ]

    assert len(set(seeds)) == len(seeds)
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    free = GenerationParameters(temperature=1.0, n=2)
    assert choice_parameters(free, 1).seed is None


def test_streamed_pieces_name_their_choice(engine: ResidentModel) -> None:
    attempt = Events()
    result = run(engine, attempt=attempt, stream=True, n=3, **DRAWN)

    assert [attempt.texts[choice] for choice in range(3)] == [
        choice["generated_text"] for choice in result["choices"]
    ]
    single = Events()
    assert run(engine, attempt=single, stream=True, **DRAWN)["generated_text"] == single.texts[None]


def test_the_failure_of_one_choice_ends_the_others(engine: ResidentModel) -> None:
    class FailsOnce(Events):
        def report(self, event: str, data: dict[str, Any]) -> None:
            if data["index"] == 1:
                raise RuntimeError("the second listener is gone")

    with pytest.raises(RuntimeError, match="second listener"):
        run(engine, attempt=FailsOnce(), stream=True, n=3, temperature=1.5, seed=7, max_new_tokens=100)
    run(engine, max_new_tokens=1)  # a later step: those that were cancelled have left before it
    assert engine.engine is not None
    assert engine.engine.engine.occupancy.running == 0


def test_a_cancelled_job_ends_all_its_choices(engine: ResidentModel) -> None:
    class CancelledAtOnce(Events):
        def report(self, event: str, data: dict[str, Any]) -> None:
            self.stop(Cancelled())

    with pytest.raises(Cancelled):
        run(engine, attempt=CancelledAtOnce(), stream=True, n=3, temperature=1.5, seed=7, max_new_tokens=100)


@pytest.mark.parametrize("where", ["engine", "library"])
def test_logprobs_are_the_models_in_openais_form(where: str, request: pytest.FixtureRequest, folder: Path) -> None:
    """By another forward of the model over prompt and text; of a drawn text, and changed by no penalty."""
    served = request.getfixturevalue(where)
    result = run(served, logprobs=True, top_logprobs=4, presence_penalty=1.0, **DRAWN)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), served.tokenizer
    prompt, places = tokenizer(PROMPT).input_ids, result["logprobs"]
    ids = [place["id"] for place in places]
    with torch.no_grad():
        expected = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    assert len(places) == result["completion_tokens"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == result["generated_text"]
    for row, place in zip(expected, places, strict=True):
        assert place["logprob"] == pytest.approx(row[place["id"]].item(), abs=1e-4)
        top = row.topk(4)
        assert [other["id"] for other in place["top_logprobs"]] == top.indices.tolist()
        assert [other["logprob"] for other in place["top_logprobs"]] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert bytes(place["bytes"]).decode(errors="replace") == place["token"]
    assert "logprobs" not in run(served, **DRAWN)


@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1.4},
        {"presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"logit_bias": {11: 4.0, 12: -100.0}},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 3},
        {"temperature": 1.2, "seed": 3, "n": 2, "logprobs": True},
    ],
    ids=lambda parameters: "-".join(parameters),
)
def test_both_paths_write_the_same(engine: ResidentModel, library: ResidentModel, parameters: dict) -> None:
    """What the engine cannot hold, the library runs, with the same meaning of every parameter, seeds too."""
    ours, theirs = (run(where, max_new_tokens=12, **parameters) for where in (engine, library))

    def texts(result: dict[str, Any]) -> list[Any]:
        return [choice["generated_text"] for choice in result.get("choices", [result])]

    assert texts(ours) == texts(theirs)
    assert texts(ours)[0] != run(engine, max_new_tokens=12)["generated_text"]
    assert (ours["path"], theirs["path"]) == ("engine", "generate")


@pytest.mark.parametrize("where", ["engine", "library"])
def test_stop_tokens_end_a_text_and_min_new_tokens_puts_that_off(where: str, request: pytest.FixtureRequest) -> None:
    served = request.getfixturevalue(where)
    whole = run(served, max_new_tokens=12, logprobs=True)
    ids = [place["id"] for place in whole["logprobs"]]
    stop = ids[3]
    first = ids.index(stop)
    ended = run(served, max_new_tokens=12, stop_token_ids=[stop], logprobs=True)
    later = run(served, max_new_tokens=12, stop_token_ids=[stop], min_new_tokens=8, logprobs=True)

    assert [place["id"] for place in ended["logprobs"]] == ids[: first + 1]
    assert ended["finish_reason"] == "stop"
    assert ended["generated_text"] == served.tokenizer.decode(ids[:first], skip_special_tokens=True)
    assert later["completion_tokens"] >= 8
    assert stop not in [place["id"] for place in later["logprobs"]][:8]


@pytest.mark.parametrize("where", ["engine", "library"])
def test_ignore_eos_goes_on_to_the_limit(where: str, request: pytest.FixtureRequest) -> None:
    """A bias makes the model end at once, unless its ends are ignored."""
    served = request.getfixturevalue(where)
    end = served.model.generation_config.eos_token_id
    bias = {"logit_bias": {end: 100.0}, "max_new_tokens": 6}

    assert (run(served, **bias)["completion_tokens"], run(served, **bias)["finish_reason"]) == (1, "stop")
    ignored = run(served, ignore_eos=True, **bias)
    assert (ignored["completion_tokens"], ignored["finish_reason"]) == (6, "length")


@pytest.mark.parametrize("where", ["engine", "library"])
def test_a_token_that_the_model_does_not_have_is_refused(where: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(
        InvalidRequest, match="`logit_bias` names token 1000000; the model's tokens are 0 to"
    ) as refused:
        run(request.getfixturevalue(where), logit_bias={1_000_000: 1.0})
    assert refused.value.param == "parameters.logit_bias"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"adapter": "ft:tiny"}, "adapter"),
        ({"parameters": {"response_format": {"type": "json_object"}}}, "parameters.response_format"),
        ({"inputs": [{"role": "user", "content": PROMPT}], "truncation": "auto"}, "truncation"),
    ],
    ids=["adapter", "response_format", "truncation"],
)
def test_what_the_library_cannot_do_is_refused_by_name(library: ResidentModel, asked: dict, param: str) -> None:
    spec = TextGenerationSpec.model_validate({"task": "text-generation", "inputs": PROMPT, **asked})
    with pytest.raises(UnsupportedTask, match=r"served by the library's generate\(\), which") as refused:
        TextGenerationRunner(NO_STORE).run(Events(), spec, library, NO_STORE)
    assert refused.value.param == param


def test_a_tokens_bytes_are_its_own_where_a_character_spans_several(engine: ResidentModel) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    for text in ("Zürich 東京 🙈", " the sea", PROMPT):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(token_bytes(tokenizer, token) for token in tokens) == text.encode()
    assert token_bytes(tokenizer, len(tokenizer) + 5) == b""
