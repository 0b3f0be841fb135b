"""Examples of bodies for the OpenAPI document, put together from those of their fields.

A model that says its own example (`json_schema_extra`) is shown with that one. All others are made of the values of
FIELDS by the names of their fields, or of a field's default, first choice or smallest value.
A page names the one item that it shows.
"""

from typing import Any

Json = dict[str, Any]

NUMBER = "0123456789abcdef01234567"
TIME = 1_767_225_600
"""1 January 2026, in seconds since the epoch."""
MODEL = "smollm2-135m-instruct"
ADAPTER = f"ft:{MODEL}:default:support:0123abcd"
MAX_DEPTH = 12
"""A schema that holds itself ends somewhere."""

IDS = {
    "BatchView": f"batch_{NUMBER}",
    "FileView": f"file-{NUMBER}",
    "UploadView": f"upload_{NUMBER}",
    "PartView": f"part_{NUMBER}",
    "JobView": f"job_{NUMBER}",
    "JobDetail": f"job_{NUMBER}",
    "Deleted": f"file-{NUMBER}",
    "ModelView": MODEL,
    "AdapterView": ADAPTER,
    "ChatCompletion": f"chatcmpl-job_{NUMBER}",
}
"""What the `id` of a model looks like, by the model's name."""

FIELDS: Json = {
    "task": "text-generation",
    "purpose": "fine-tune",
    "completion_window": "24h",
    "expires_at": TIME + 86_400,
    "index": 0,
    "prompt_tokens": 7,
    "completion_tokens": 1,
    "total_tokens": 8,
    "model": MODEL,
    "root": MODEL,
    "base": MODEL,
    "adapter": ADAPTER,
    "lane": f"inference:{MODEL}",
    "owner": "default",
    "owned_by": "tandem",
    "job_id": f"job_{NUMBER}",
    "file": f"file-{NUMBER}",
    "file_id": f"file-{NUMBER}",
    "input_file_id": f"file-{NUMBER}",
    "training_file": f"file-{NUMBER}",
    "upload_id": f"upload_{NUMBER}",
    "filename": "rows.jsonl",
    "bytes": 140,
    "created": TIME,
    "created_at": TIME,
    "started_at": TIME + 1,
    "finished_at": TIME + 3,
    "sequence": 17,
    "attempt": 1,
    "url": "https://example.com/hooks/tandem",
    "message": "Hello",
    "content": "Hello",
    "input": "a red apple",
    "inputs": "a red apple",
    "prompt": "Once upon a time",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "spec": {"kind": "inference", "task": "text-generation", "model": MODEL, "inputs": "Once upon a time"},
    "training_data": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
}
"""Values by the names of fields, taken where they fit the field's type."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


class Composer:
    """Makes examples from one document's schemas."""

    def __init__(self, schemas: dict[str, Json]) -> None:
        self._schemas = schemas

    def example(self, schema: Json, *, required_only: bool = False) -> Any:
        """A body of this schema; of a request with the fields alone that must be there."""
        return self._value(schema, "", "", required_only, MAX_DEPTH)

    def _value(self, schema: Json, field: str, model: str, required_only: bool, depth: int) -> Any:
        if "$ref" in schema:
            model = schema["$ref"].rpartition("/")[2]
            return self._value(self._schemas[model], field, model, required_only, depth)
        if schema.get("examples"):
            return schema["examples"][0]
        for given in ("example", "const"):
            if given in schema:
                return schema[given]
        known = IDS.get(model) if field == "id" else FIELDS.get(field)
        branches = schema.get("anyOf") or schema.get("oneOf") or [schema]
        if known is not None and any(self._fits(known, branch) for branch in branches):
            return known
        if "default" in schema:
            return schema["default"]
        if branches[0] is not schema:
            # A field that may be absent is shown absent, unless a value for it is known.
            chosen = next((branch for branch in branches if branch.get("type") == "null"), branches[0])
            return self._value(chosen, field, model, required_only, depth)
        return self._plain(schema, field, model, required_only, depth)

    def _fits(self, value: Any, schema: Json) -> bool:
        if "$ref" in schema:
            return False
        kind = _TYPES.get(schema.get("type", ""))
        return kind is not None and isinstance(value, kind) and value in schema.get("enum", [value])

    def _plain(self, schema: Json, field: str, model: str, required_only: bool, depth: int) -> Any:
        if "enum" in schema:
            return schema["enum"][0]
        match schema.get("type"):
            case "object" if "properties" in schema and depth:
                required = schema.get("required", ())
                made = {
                    name: self._value(inner, name, model, required_only, depth - 1)
                    for name, inner in schema["properties"].items()
                    if not required_only or name in required
                }
                if "last_id" in made:
                    made["first_id"] = made["last_id"] = made["data"][0].get("id")
                return made
            case "object":
                return {}
            case "array":
                items = schema.get("items")
                return [self._value(items, field, model, required_only, depth - 1)] if items and depth else []
            case "string":
                return "support"
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return False
            case _:
                return None
