"""One job for each of many inputs: a bounded number in flight, results in order, errors kept in their rows.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

from tandem import Tandem, TandemError

questions = [f"What is {number} plus {number}?" for number in range(1, 9)]
prompts = [[{"role": "user", "content": question}] for question in questions]
prompts[3] = []  # a chat needs a message: this row is going to fail

with Tandem() as client:
    # Inputs may be any iterable, also one that reads a large file; the bar goes to the terminal.
    answers = client.map(
        "text-generation",
        prompts,
        model="smollm2-135m-instruct",
        parameters={"max_new_tokens": 24},
        window=4,
        on_error="return",
    )
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, TandemError):
            print(f"{question}  error {answer.code}: {answer.message}")
        else:
            print(f"{question}  {answer['generated_text']}")
