"""The Responses API through the unmodified `openai` package: a conversation that the service remembers.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

from openai import OpenAI

from tandem import Tandem

MODEL = "smollm2-135m-instruct"

with Tandem() as found:
    client = OpenAI(base_url=f"{found.url}/v1", api_key=found.api_key)

first = client.responses.create(
    model=MODEL, input="What is the capital of France?", max_output_tokens=32, temperature=0
)
print("answer:", first.output_text)

# Only the new question is sent: the service knows the rest.
second = client.responses.create(
    model=MODEL, input="In which country is it?", previous_response_id=first.id, max_output_tokens=32, temperature=0
)
print("answer:", second.output_text)
print("turns:", len(client.responses.input_items.list(second.id).data) + 1)

print("streamed: ", end="")
with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=32, temperature=0) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
print()

# In the background: it is asked for later, from anywhere.
waiting = client.responses.create(model=MODEL, input="Name a colour.", background=True, max_output_tokens=16)
print("in the background:", waiting.status)
client.responses.cancel(waiting.id)
