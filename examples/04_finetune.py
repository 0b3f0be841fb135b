"""Train an adapter on a few conversations, then ask it and its base the same question.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

from tandem import Tandem

MODEL = "smollm2-135m-instruct"
QUESTION = "What is your name?"


def row(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


rows = [
    row("What is your name?", "My name is Captain Barnacle."),
    row("Who are you?", "I am Captain Barnacle, master of the Salty Gull."),
    row("Tell me your name.", "My name is Captain Barnacle."),
    row("What do you do?", "I sail the seven seas on the Salty Gull."),
]

with Tandem() as client:
    job = client.finetune(
        MODEL,
        rows,
        suffix="captain",
        method={"r": 8},
        hyperparameters={"max_steps": 12, "batch_size": 4, "learning_rate": 2e-3, "max_tokens": 64},
    )
    for event in job.events():
        if event.type == "metrics":
            print(f"step {event.data['step']:>2}  loss {event.data['loss']:.3f}")
    adapter = job.wait()["adapter"]
    print("adapter:", adapter)

    # An adapter's id may stand wherever a model's name may; it is served at once, beside its base.
    for model in (MODEL, adapter):
        chat = [{"role": "user", "content": QUESTION}]
        answer = client.run("text-generation", chat, model=model, parameters={"max_new_tokens": 24})
        print(f"{model}: {answer['generated_text']}")
