"""A batch through the unmodified `openai` package: a file of requests in, a file of answers out.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

import json
import time

from openai import OpenAI

from tandem import Tandem

POLL_SECONDS = 0.5
"""An example's batch takes seconds; a real one is asked for every minute, or told by a webhook."""

with Tandem() as found:
    client = OpenAI(base_url=f"{found.url}/v1", api_key=found.api_key)

rows = [
    {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": f"What is the capital of {country}?"}],
            "max_tokens": 24,
            "temperature": 0 if country != "Atlantis" else 99,  # this row is broken, and the others are answered
        },
    }
    for number, country in enumerate(("France", "Italy", "Atlantis", "Japan"))
]
lines = "".join(json.dumps(row) + "\n" for row in rows)
file = client.files.create(file=("rows.jsonl", lines.encode()), purpose="batch")

batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(POLL_SECONDS)
    batch = client.batches.retrieve(batch.id)
counts = batch.request_counts
assert counts is not None
print("batch:", batch.status, counts.completed, "answered,", counts.failed, "failed")

for file_id in (batch.output_file_id, batch.error_file_id):
    for line in client.files.content(file_id or "").text.splitlines():
        row = json.loads(line)
        body = row["response"]["body"]
        said = body["choices"][0]["message"]["content"] if "choices" in body else body["error"]["message"]
        print(f"{row['custom_id']}: {said.splitlines()[0]}")
