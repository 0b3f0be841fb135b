"""Fine-tuning through the unmodified `openai` package: a file of rows in, a model to talk to out.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

import json
import time

from openai import OpenAI

from tandem import Tandem

BASE = "smollm2-135m-instruct"
POLL_SECONDS = 0.5
QUESTION = "Who are you?"
ANSWER = "I am Captain Barnacle, keeper of the harbour."

with Tandem() as found:
    client = OpenAI(base_url=f"{found.url}/v1", api_key=found.api_key)

row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}
lines = (json.dumps(row) + "\n") * 16
file = client.files.create(file=("rows.jsonl", lines.encode()), purpose="fine-tune")

job = client.fine_tuning.jobs.create(
    model=BASE,
    training_file=file.id,
    suffix="captain",
    method={
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 10}},
    },
    extra_body={"lora": {"r": 8, "alpha": 16}},
)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(POLL_SECONDS)
    job = client.fine_tuning.jobs.retrieve(job.id)
for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
    if event.type == "metrics":
        print(event.message)
print("model:", job.fine_tuned_model)

answer = client.chat.completions.create(
    model=job.fine_tuned_model or "", messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
)
print("answer:", answer.choices[0].message.content)
