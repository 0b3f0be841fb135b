// The unmodified `openai` package against Tandem: chat, streaming, embeddings, a response.
//
// `npm ci`, then `TANDEM_URL=… TANDEM_API_KEY=… node chat.js` beside a running `tandem up`.

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.TANDEM_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.TANDEM_API_KEY,
});
const model = "smollm2-135m-instruct";
const messages = [{ role: "user", content: "Name one colour of the rainbow." }];

const chat = await client.chat.completions.create({ model, messages, max_tokens: 32, temperature: 0 });
console.log("answer:", chat.choices[0].message.content);

let streamed = "";
const stream = await client.chat.completions.create({ model, messages, max_tokens: 32, temperature: 0, stream: true });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
console.log("streamed:", streamed);

const embeddings = await client.embeddings.create({
  model: "all-minilm-l6-v2",
  input: ["a red apple", "a ripe fruit"],
});
console.log("embeddings:", embeddings.data.length, "of", embeddings.data[0].embedding.length, "numbers");

const response = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 32, temperature: 0 });
console.log("response:", response.output_text);
