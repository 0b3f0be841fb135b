"""Chat with a model: ask and wait, then once more word by word.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

from tandem import Tandem

MODEL = "smollm2-135m-instruct"

with Tandem() as client:
    question = [{"role": "user", "content": "What is the capital of France?"}]

    # Submit and wait in one call. `submit` alone returns at once, with a job to wait for later.
    answer = client.run("text-generation", question, model=MODEL, parameters={"max_new_tokens": 40})
    print("answer:", answer["generated_text"])
    print("tokens:", answer["prompt_tokens"], "read,", answer["completion_tokens"], "written")

    print("streamed: ", end="")
    for piece in client.stream(question, model=MODEL, parameters={"max_new_tokens": 40}):
        print(piece, end="", flush=True)
    print()
