// A batch through the unmodified `openai` package: a file of requests in, a file of answers out.
//
// `npm ci`, then `TANDEM_URL=… TANDEM_API_KEY=… node batch.js` beside a running `tandem up`.

import { setTimeout } from "node:timers/promises";

import OpenAI, { toFile } from "openai";

const POLL_MS = 500; // an example's batch takes seconds; a real one is asked for every minute

const client = new OpenAI({
  baseURL: `${process.env.TANDEM_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.TANDEM_API_KEY,
});

const rows = ["France", "Italy", "Japan"].map((country, index) => ({
  custom_id: `row-${index}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: {
    model: "smollm2-135m-instruct",
    messages: [{ role: "user", content: `What is the capital of ${country}?` }],
    max_tokens: 24,
    temperature: 0,
  },
}));
const lines = rows.map((row) => JSON.stringify(row)).join("\n");
const file = await client.files.create({ file: await toFile(Buffer.from(lines), "rows.jsonl"), purpose: "batch" });

let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await setTimeout(POLL_MS);
  batch = await client.batches.retrieve(batch.id);
}
console.log("batch:", batch.status, batch.request_counts.completed, "of", batch.request_counts.total);

const output = await (await client.files.content(batch.output_file_id)).text();
for (const line of output.trim().split("\n")) {
  const { custom_id, response } = JSON.parse(line);
  console.log(`${custom_id}:`, response.body.choices[0].message.content.split("\n")[0]);
}
