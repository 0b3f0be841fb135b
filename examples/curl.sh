#!/bin/sh
# Tandem's HTTP API with curl alone: submit a job, wait for it, read its result; then OpenAI's door.
#
# Run it beside a running `tandem up`, with TANDEM_API_KEY set (and TANDEM_URL, if it is elsewhere).
set -eu

url=${TANDEM_URL:-http://127.0.0.1:8000}

call() {
    path=$1
    shift
    curl --silent --show-error --fail-with-body --header "Authorization: Bearer $TANDEM_API_KEY" \
        --header 'Content-Type: application/json' "$@" "$url$path"
}

field() { # of a JSON object on standard input: a string by its name
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1
}

job=$(call /v1/jobs --data '{
    "kind": "inference", "task": "text-classification", "model": "minilm-topics", "inputs": ["Who wrote Hamlet?"]
}' | field id)
echo "job: $job"
call "/v1/jobs/$job/events" > /dev/null # ends when the job has ended
echo "result: $(call "/v1/jobs/$job/result")"

echo "chat: $(call /v1/chat/completions --data '{
    "model": "smollm2-135m-instruct", "max_tokens": 24, "temperature": 0,
    "messages": [{"role": "user", "content": "What is the capital of France?"}]
}')"

echo "streamed:"
call /v1/chat/completions --no-buffer --data '{
    "model": "smollm2-135m-instruct", "max_tokens": 8, "temperature": 0, "stream": true,
    "messages": [{"role": "user", "content": "Count to three."}]
}'
