"""What litellm answers to its calls, as one JSON object.

A program of its own: litellm leaves event loops and sockets open, which the tests' process counts as errors.
"""

import json
import os
import time
from typing import Any

# It fetches a table of prices when it is imported, unless it is told not to.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

CHAT = "smollm2-135m-instruct"
MODEL = f"openai/{CHAT}"
WHERE = {"api_base": f"{os.environ['TANDEM_URL']}/v1", "api_key": os.environ["TANDEM_API_KEY"]}
OPENAI = {"custom_llm_provider": "openai", **WHERE}
"""For the calls that name no model."""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "function": {"name": "look_up", "parameters": CITY}}
POLL_SECONDS = 0.1
SOON = 60.0


def chat() -> dict[str, Any]:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8, **WHERE}
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    streamed = litellm.stream_chunk_builder(chunks)
    return {
        "whole": [whole.choices[0].message.content, whole.usage.total_tokens],
        "streamed": [streamed.choices[0].message.content, streamed.usage.total_tokens],
        "chunks": len(chunks),
    }


def tools() -> list[dict[str, Any]]:
    asked = {"model": MODEL, "messages": QUESTION, "tools": [LOOK], "tool_choice": "required", "max_tokens": 60}
    asked |= {"temperature": 0, **WHERE}
    whole = litellm.completion(**asked).choices[0]
    streamed = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True))).choices[0]
    return [
        {"reason": each.finish_reason, "name": call.function.name, "arguments": json.loads(call.function.arguments)}
        for each in (whole, streamed)
        for call in each.message.tool_calls
    ]


def completion() -> str:
    said = litellm.text_completion(
        model=f"text-completion-openai/{CHAT}",
        prompt="The capital of France is",
        temperature=0,
        max_tokens=4,
        **WHERE,
    )
    return said.choices[0].text


def embeddings() -> list[int]:
    answer = litellm.embedding(model="openai/all-minilm-l6-v2", input=["a cat", "a dog"], **WHERE)
    return [len(vector["embedding"]) for vector in answer.data]


def responses() -> dict[str, Any]:
    """A stream comes as it is written only for models that litellm has been told of: else it makes one afterwards."""
    entry = {"litellm_provider": "openai", "mode": "chat", "supports_native_streaming": True}
    litellm.register_model({MODEL: entry, CHAT: entry})
    asked = {"model": MODEL, "input": "Name a colour.", "temperature": 0, "max_output_tokens": 16, **WHERE}
    whole = litellm.responses(**asked)
    events = list(litellm.responses(**asked, stream=True))
    found = litellm.get_responses(response_id=whole.id, **OPENAI)
    return {
        "whole": whole.output[0].content[0].text,
        "found": found.output[0].content[0].text,
        "deltas": [event.delta for event in events if event.type == "response.output_text.delta"],
        "deleted": litellm.delete_responses(response_id=whole.id, **OPENAI).deleted,
    }


def batch() -> dict[str, Any]:
    body = {"model": CHAT, "messages": QUESTION, "max_tokens": 4}
    row = {"custom_id": "first", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = litellm.create_file(file=("rows.jsonl", json.dumps(row).encode()), purpose="batch", **OPENAI)
    made = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, **OPENAI
    )
    deadline = time.monotonic() + SOON
    while made.status != "completed" and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        made = litellm.retrieve_batch(batch_id=made.id, **OPENAI)
    answer = json.loads(litellm.file_content(file_id=made.output_file_id, **OPENAI).text)
    return {
        "file": litellm.file_retrieve(file_id=file.id, **OPENAI).filename,
        "row": [answer["custom_id"], answer["response"]["status_code"]],
        "deleted": litellm.file_delete(file_id=file.id, **OPENAI).deleted,
    }


def fine_tuning() -> dict[str, Any]:
    row = json.dumps({"messages": [*QUESTION, {"role": "assistant", "content": "Paris."}]})
    lines = "\n".join([row] * 12).encode()
    file = litellm.create_file(file=("rows.jsonl", lines, "application/jsonl"), purpose="fine-tune", **OPENAI)
    job = litellm.create_fine_tuning_job(
        model=CHAT, training_file=file.id, hyperparameters={"n_epochs": 50}, suffix="litellm", **OPENAI
    )
    listed = litellm.list_fine_tuning_jobs(limit=5, **OPENAI).data
    found = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **OPENAI)
    deadline = time.monotonic() + SOON
    while found.status != "cancelled" and time.monotonic() < deadline:
        found = litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, **OPENAI)
        time.sleep(POLL_SECONDS)
    return {"model": found.model, "listed": job.id in [each.id for each in listed], "status": found.status}


def errors() -> dict[str, str]:
    wrong = {
        "model": {"model": "openai/nothing"},
        "limit": {"max_tokens": -1},
        "key": {"api_key": "wrong"},
        "prompt": {"messages": [{"role": "user", "content": "a b c " * 9000}]},
    }
    raised = {}
    for name, changes in wrong.items():
        try:
            litellm.completion(**{"model": MODEL, "messages": QUESTION, "num_retries": 0, **WHERE, **changes})
        except Exception as error:
            raised[name] = type(error).__name__
    return raised


def main() -> None:
    litellm.suppress_debug_info = True
    calls = (chat, tools, completion, embeddings, responses, batch, fine_tuning, errors)
    # litellm prints by itself: the answers are the last line.
    print("\n" + json.dumps({call.__name__: call() for call in calls}))  # noqa: T201


if __name__ == "__main__":
    main()
