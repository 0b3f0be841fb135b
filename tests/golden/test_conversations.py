"""Conversations with images and sounds: the forms they come in, and what is refused of them."""

import io
import shutil
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from tandem.errors import InvalidRequest
from tests.golden.media_jobs import Asked, same, sent
from tests.golden.media_jobs import MediaJobs as MediaJobs
from tests.golden.multimodal_inputs import CHATS, SOUND_CHATS, WIDE, WRITE, as_sent, by_the_library, user
from worker.tasks.result_files import ResultFiles

Loaded = Callable[[str, str], MediaJobs]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Callable[[str], Path]) -> Loaded:
    """Each task on each model, once."""
    return cache(lambda task, model: MediaJobs(task, tiny_folder(model)))


class TestConversations:
    def test_openais_parts_are_the_same_conversation(self, loaded: Loaded) -> None:
        jobs = loaded("image-text-to-text", "tiny-llava")
        url = f"data:image/png;base64,{sent(WIDE)}"
        said = [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]},
            {"role": "user", "content": "who?"},
        ]
        hugs = [{"role": "user", "content": [{"type": "image", "url": url}]}, {"role": "user", "content": "who?"}]
        quiet = {**WRITE, "return_full_text": False}
        [[openai], [hugging]] = jobs.run(Asked(said, quiet), Asked(hugs, quiet))
        assert openai[0]["generated_text"] == hugging[0]["generated_text"]
        assert openai[0]["input_text"] == said, "a row says what was sent"

    def test_an_assistants_text_is_gone_on_with(self, loaded: Loaded) -> None:
        """The library fails where it is not a list of parts."""
        jobs = loaded("image-text-to-text", "tiny-llava")
        chat = as_sent([user(WIDE, "who?"), {"role": "assistant", "content": "the sea"}])
        [[row]] = jobs.run(Asked(chat, WRITE))
        [part] = row[0]["generated_text"][-1]["content"]
        assert part["text"].startswith("the sea")
        assert len(part["text"]) > len("the sea")

    def test_a_sound_in_openais_form_is_heard(self, loaded: Loaded) -> None:
        jobs = loaded("any-to-any", "tiny-qwen2-audio")
        [message] = SOUND_CHATS[0]
        data = as_sent(message)["content"][0]["audio"]
        audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        quiet = {**WRITE, "return_full_text": False}
        [[row]] = jobs.run(Asked([{"role": "user", "content": [audio, message["content"][1]]}], quiet))
        expected = by_the_library(jobs, SOUND_CHATS[0], quiet)
        assert row[0]["generated_text"] == expected[0]["generated_text"]

    def test_the_side_that_the_tokenizer_was_saved_with_does_not_matter(
        self, loaded: Loaded, tiny_folder: Callable[[str], Path], tmp_path: Path
    ) -> None:
        """A text goes on from the right end of its row; many tokenizers are saved so that they would pad there."""
        folder = shutil.copytree(tiny_folder("tiny-llava"), tmp_path / "right")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.padding_side = "right"
        tokenizer.save_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).padding_side == "right"
        jobs = MediaJobs("image-text-to-text", folder)
        rows = jobs.run(*(Asked(as_sent(chat), WRITE) for chat in CHATS[:3]))
        assert jobs.forwards == 1
        left = loaded("image-text-to-text", "tiny-llava")
        same(rows, [[by_the_library(left, chat, WRITE)] for chat in CHATS[:3]])

    def test_what_is_no_text_is_stored_as_a_file(self, loaded: Loaded) -> None:
        """No model small enough to be built here makes images or sounds: these are as the library would give them."""
        jobs = loaded("any-to-any", "tiny-qwen2-audio")
        sound = np.array([[0.0, 0.5, -0.5]], dtype=np.float32)
        stored: list[bytes] = []

        def put(content: bytes) -> str:
            stored.append(content)
            return "0" * 64

        made = [{"input_text": "a", "generated_audio": sound}, {"input_text": "b", "generated_image": WIDE}]
        heard, seen = jobs.task.present(made, ResultFiles(put))
        with wave.open(io.BytesIO(stored[0])) as file:
            assert (file.getframerate(), file.getnframes()) == (24_000, 3)
        assert heard["sampling_rate"] == 24_000
        assert heard["generated_audio"]["media_type"] == "audio/wav"
        assert Image.open(io.BytesIO(stored[1])).size == WIDE.size
        assert seen["generated_image"]["media_type"] == "image/png"

    def test_sampled_texts_run_alone(self, loaded: Loaded) -> None:
        jobs = loaded("image-text-to-text", "tiny-llava")
        drawn = {"generation_parameters": {"do_sample": True, "temperature": 0.9}, **WRITE}
        jobs.run(*[Asked(as_sent(CHATS[0]), drawn)] * 2)
        assert jobs.forwards == 2

    def test_so_do_those_of_a_model_that_is_made_to_sample(self, loaded: Loaded) -> None:
        jobs = loaded("image-text-to-text", "tiny-llava")
        config = jobs.pipeline.model.generation_config
        config.do_sample = True
        try:
            jobs.run(*[Asked(as_sent(CHATS[0]), WRITE)] * 2)
        finally:
            config.do_sample = False
        assert jobs.forwards == 2

    def test_what_the_model_does_not_take_is_refused_by_its_place(self, loaded: Loaded) -> None:
        seeing, hearing = loaded("image-text-to-text", "tiny-llava"), loaded("any-to-any", "tiny-qwen2-audio")
        chat = as_sent([user("yes", WIDE)])
        [error] = hearing.run(Asked(chat, WRITE))
        assert isinstance(error, InvalidRequest)
        assert error.param == "inputs[0].messages[0].content[1].image"
        assert "the model takes no image (it takes: audio, text)" in error.message
        [error] = hearing.run(Asked(as_sent(SOUND_CHATS[0]), {"generation_mode": "image"}))
        with pytest.raises(InvalidRequest, match="`generation_mode=image` is not supported"):
            raise error
        [[row]] = seeing.run(Asked(chat, WRITE))
        assert row

    def test_a_bad_image_fails_alone(self, loaded: Loaded) -> None:
        jobs = loaded("image-text-to-text", "tiny-llava")
        good, broken = as_sent(CHATS[0]), [user(WIDE)]
        broken[0]["content"][0]["image"] = sent(b"no image")
        kept, lost, stranger = jobs.run(
            Asked([as_sent(broken), good], WRITE, on_row_error="keep"),
            Asked([good, as_sent(broken)], WRITE),
            Asked(good, WRITE),
        )
        row = by_the_library(jobs, CHATS[0], WRITE)
        assert [type(kept[0]), type(lost)] == [InvalidRequest] * 2
        assert kept[0].param == "inputs[0].messages[0].content[0].image"
        assert lost.param == "inputs[1].messages[0].content[0].image"
        same([kept[1], stranger[0]], [row, row])
