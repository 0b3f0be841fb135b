"""What may be asked of the tasks on several kinds of input: huggingface_hub's and OpenAI's forms, and refusals."""

from dataclasses import asdict
from typing import Any

import pytest
from huggingface_hub import (
    DocumentQuestionAnsweringInput,
    DocumentQuestionAnsweringInputData,
    DocumentQuestionAnsweringParameters,
    ImageToTextGenerationParameters,
    ImageToTextInput,
    ImageToTextParameters,
    VisualQuestionAnsweringInput,
    VisualQuestionAnsweringInputData,
    VisualQuestionAnsweringParameters,
)
from pydantic import ValidationError

from tandem.specs import Media, job_spec_adapter, replace_media
from tandem.specs.conversation import MAX_PARTS, media_of
from tandem.specs.multimodal import MAX_MEDIA

BYTES = "aGVsbG8="
"""Any content: a spec does not decode it."""
URL = f"data:image/png;base64,{BYTES}"
FILE = f"file-{'0' * 24}"
STORED = f"artifact-{'0' * 64}"
GENERATE: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 2, "early_stopping": "never"}


def spec(task: str, inputs: Any, parameters: dict[str, Any] | None = None) -> Any:
    return job_spec_adapter.validate_python(
        {"kind": "inference", "task": task, "inputs": inputs, "parameters": parameters or {}}
    )


def refusal(task: str, inputs: Any, parameters: dict[str, Any] | None = None) -> str:
    with pytest.raises(ValidationError) as error:
        spec(task, inputs, parameters)
    return str(error.value)


def given(value: Any) -> Any:
    """As the hub's client sends it: without what is None."""
    if isinstance(value, dict):
        return {name: given(item) for name, item in value.items() if item is not None}
    return value


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


IMAGE = {"type": "image", "image": BYTES}
WORDS = [["total", [10, 20, 30, 40]], ["42", [50.5, 20, 60, 40]]]


class TestHuggingfaceHubsInputs:
    @pytest.mark.parametrize(
        ("task", "request_"),
        [
            (
                "document-question-answering",
                DocumentQuestionAnsweringInput(
                    DocumentQuestionAnsweringInputData(BYTES, "who?"),
                    DocumentQuestionAnsweringParameters(
                        doc_stride=8,
                        handle_impossible_answer=True,
                        lang="eng",
                        max_answer_len=4,
                        max_question_len=8,
                        max_seq_len=100,
                        top_k=2,
                    ),
                ),
            ),
            (
                "visual-question-answering",
                VisualQuestionAnsweringInput(
                    VisualQuestionAnsweringInputData(BYTES, "who?"), VisualQuestionAnsweringParameters(top_k=2)
                ),
            ),
            (
                "image-to-text",
                ImageToTextInput(BYTES, ImageToTextParameters(ImageToTextGenerationParameters(**GENERATE))),
            ),
            ("image-to-text", ImageToTextInput(BYTES, ImageToTextParameters(max_new_tokens=5))),
        ],
    )
    def test_are_taken_as_they_are(self, task: str, request_: Any) -> None:
        asked = given(asdict(request_))
        read = spec(task, asked["inputs"], asked["parameters"])
        inputs = read.inputs if isinstance(read.inputs, str) else given(read.inputs.model_dump())
        assert inputs == asked["inputs"]
        parameters = given(read.parameters.model_dump())
        if "generation_parameters" not in asked["parameters"]:
            assert parameters.pop("generation_parameters", {}) == {}
        assert parameters == asked["parameters"]

    def test_words_may_be_pairs_or_come_by_turns(self) -> None:
        page = {"image": BYTES, "question": "who?"}
        flat = [item for pair in WORDS for item in pair]
        pairs = spec("document-question-answering", page, {"word_boxes": WORDS}).parameters.word_boxes
        assert pairs == (("total", (10, 20, 30, 40)), ("42", (50.5, 20, 60, 40)))
        assert spec("document-question-answering", page, {"word_boxes": flat}).parameters.word_boxes == pairs


class TestConversations:
    def test_a_list_of_messages_is_one_input(self) -> None:
        read = spec("image-text-to-text", [user(IMAGE), {"role": "assistant", "content": "yes"}])
        assert [message.role for message in read.inputs.messages] == ["user", "assistant"]

    def test_a_list_of_lists_of_messages_is_many(self) -> None:
        read = spec("any-to-any", [[user(IMAGE)], [user(IMAGE)], {"text": "yes", "audio": [BYTES]}])
        assert isinstance(read.inputs, tuple)
        assert [len(value.messages) for value in read.inputs[:2]] == [1, 1]
        assert read.inputs[2].audio == (BYTES,)

    @pytest.mark.parametrize(
        ("part", "kind", "path"),
        [
            (IMAGE, "image", "image"),
            ({"type": "image", "url": URL}, "image", "image"),
            ({"type": "image", "base64": BYTES}, "image", "image"),
            ({"type": "image_url", "image_url": {"url": URL, "detail": "high"}}, "image", "image_url.url"),
            ({"type": "image_url", "image_url": URL}, "image", "image_url"),
            ({"type": "audio", "audio": FILE}, "audio", "audio"),
            ({"type": "audio", "url": FILE}, "audio", "audio"),
            ({"type": "input_audio", "input_audio": {"data": BYTES, "format": "wav"}}, "audio", "input_audio.data"),
            ({"type": "video", "video": STORED}, "video", "video"),
        ],
        ids=str,
    )
    def test_parts_of_both_libraries_are_media_in_their_place(
        self, part: dict[str, Any], kind: str, path: str
    ) -> None:
        """Submission stores what it finds of them; the worker reads it back."""
        read = spec("any-to-any", [user({"type": "text", "text": "yes"}, part)])
        found = media_of(read.inputs.messages[0].content[1])
        assert found is not None
        assert (found[0], found[2]) == (kind, path)
        places = []

        def stored(media: Media, place: str) -> Media:
            assert isinstance(media, Media)
            places.append(place)
            return Media(STORED)

        replaced = read.model_copy(update={"inputs": replace_media(read.inputs, stored, "inputs")})
        assert places == [f"inputs.messages[0].content[1].{path}"]
        again: Any = job_spec_adapter.validate_json(replaced.model_dump_json())
        assert media_of(again.inputs.messages[0].content[1]) == (kind, STORED, path)

    def test_a_text_is_no_media(self) -> None:
        read = spec("any-to-any", [user({"type": "text", "text": "yes"})])
        assert media_of(read.inputs.messages[0].content[0]) is None

    def test_prompts_take_one_image_or_several(self) -> None:
        for name, value, expected in [
            ("image", BYTES, BYTES),
            ("images", [BYTES, URL], (BYTES, URL)),
            ("images", [], ()),
        ]:
            assert spec("image-text-to-text", {name: value, "text": "yes"}).inputs.images == expected

    @pytest.mark.parametrize(
        ("task", "inputs", "said"),
        [
            (
                "image-text-to-text",
                [user({"type": "image", "url": "https://example.org/a.png"})],
                "URLs are not fetched",
            ),
            (
                "image-text-to-text",
                [user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})],
                "URLs are not fetched",
            ),
            ("image-text-to-text", [user({"type": "image", "path": "/etc/passwd"})], "path"),
            ("image-text-to-text", [user({"type": "audio", "audio": BYTES})], "'text', 'image', 'image_url'"),
            ("image-text-to-text", [user(*[IMAGE] * (MAX_PARTS + 1))], f"at most {MAX_PARTS} items"),
            ("image-text-to-text", [{"role": "owner", "content": "yes"}], "role"),
            ("image-text-to-text", [], "at least 1 item"),
            (
                "image-text-to-text",
                [user(IMAGE), {"role": "assistant", "content": [IMAGE]}],
                "must end with a text",
            ),
            ("any-to-any", {"text": "yes", "images": [BYTES] * (MAX_MEDIA + 1)}, f"at most {MAX_MEDIA} items"),
            ("any-to-any", {"images": [BYTES]}, "text\n  Field required"),
        ],
        ids=str,
    )
    def test_what_is_no_conversation_is_refused(self, task: str, inputs: Any, said: str) -> None:
        assert said in refusal(task, inputs)


class TestParameters:
    @pytest.mark.parametrize(
        ("task", "inputs", "parameters", "said"),
        [
            ("visual-question-answering", {"image": BYTES, "question": "who?"}, {"topk": 2}, "parameters.topk"),
            (
                "image-to-text",
                BYTES,
                {"max_new_tokens": 3, "generation_parameters": {"max_new_tokens": 3}},
                "`max_new_tokens` stands here and in `generation_parameters`: give one",
            ),
            ("image-to-text", BYTES, {"max_new_tokens": 0}, "parameters.max_new_tokens"),
            ("image-text-to-text", {"text": "yes"}, {"stop_sequence": ["a"] * 17}, "at most 16 items"),
            ("image-text-to-text", {"text": "yes"}, {"generation_mode": "text"}, "parameters.generation_mode"),
            ("any-to-any", {"text": "yes"}, {"generation_mode": "video"}, "parameters.generation_mode"),
            (
                "any-to-any",
                {"text": "yes"},
                {"generation_mode": "image", "return_full_text": True},
                "`return_full_text` has no meaning when `generation_mode` is image",
            ),
        ],
        ids=str,
    )
    def test_a_wrong_one_is_refused_by_name(
        self, task: str, inputs: Any, parameters: dict[str, Any], said: str
    ) -> None:
        assert said in refusal(task, inputs, parameters)

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [
            ({"lang": "../../eng"}, "parameters.lang"),
            ({"tesseract_config": "-c debug_file=/tmp/log"}, "may set `--psm`, `--oem` and `--dpi`"),
            ({"tesseract_config": "--psm 6 /etc/passwd"}, "may set `--psm`, `--oem` and `--dpi`"),
            ({"word_boxes": [["a", [0, 0, 1001, 5]]]}, "less than or equal to 1000"),
            ({"word_boxes": [["a", [0, 0, 5]]]}, "parameters.word_boxes"),
            ({"word_boxes": ["a", [0, 0, 5, 5], "b"]}, "parameters.word_boxes"),
            ({"word_boxes": []}, "at least 1 item"),
            ({"top_k": 0}, "parameters.top_k"),
        ],
        ids=str,
    )
    def test_documents_take_harmless_ones(self, parameters: dict[str, Any], said: str) -> None:
        assert said in refusal("document-question-answering", {"image": BYTES, "question": "who?"}, parameters)

    def test_tesseracts_layout_may_be_said(self) -> None:
        config = "--psm 6 --oem=1  --dpi 300"
        page = {"image": BYTES, "question": "who?"}
        read = spec("document-question-answering", page, {"tesseract_config": config})
        assert read.parameters.tesseract_config == config

    def test_every_question_needs_a_page(self) -> None:
        said = refusal("document-question-answering", [{"image": BYTES, "question": "who?"}, {"question": "what?"}])
        assert "every question needs a page: `image`, `word_boxes` or both" in said
        assert spec("document-question-answering", {"question": "what?", "word_boxes": WORDS})
