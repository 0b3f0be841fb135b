"""Turn texts into vectors, and find the most similar ones.

Run it beside a running `tandem up`, or with TANDEM_URL and TANDEM_API_KEY set.
"""

from tandem import Tandem

TEXTS = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell today."]


def cosine(left: list[float], right: list[float]) -> float:
    # The service scales each vector to length 1, so the dot product is the cosine of the angle between them.
    return sum(a * b for a, b in zip(left, right, strict=True))


with Tandem() as client:
    # One job for all texts: its result has one row for each, in their order.
    vectors = client.run("feature-extraction", TEXTS, model="all-minilm-l6-v2")["rows"]

print(len(vectors), "vectors of", len(vectors[0]), "numbers")
for text, vector in zip(TEXTS[1:], vectors[1:], strict=True):
    print(f"{cosine(vectors[0], vector):.2f}  {TEXTS[0]} / {text}")
