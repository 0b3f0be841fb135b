"""The unmodified `openai` package against Tandem: chat, streaming, embeddings, files.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

from openai import OpenAI

from tandem import Tandem

MODEL = "smollm2-135m-instruct"
QUESTION = "Name one colour of the rainbow."

# Only to find address and key; `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="…")` does as well.
with Tandem() as found:
    client = OpenAI(base_url=f"{found.url}/v1", api_key=found.api_key)

chat = client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=32, temperature=0
)
print("answer:", chat.choices[0].message.content)

print("streamed: ", end="")
for chunk in client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=32, temperature=0, stream=True
):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

embeddings = client.embeddings.create(model="all-minilm-l6-v2", input=["a red apple", "a ripe fruit"])
print("embeddings:", len(embeddings.data), "of", len(embeddings.data[0].embedding), "numbers")

line = b'{"prompt": "Ahoy", "completion": "Ahoy, sailor!"}\n'
file = client.files.create(file=("rows.jsonl", line), purpose="fine-tune")
print("file:", file.id, client.files.content(file.id).text.strip())
client.files.delete(file.id)
