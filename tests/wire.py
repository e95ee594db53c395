"""The wire formats of the paid providers beside OpenAI's chat API, as strict as the providers are.

Each is a `Wire` for `endpoints.Endpoint`. Rules and shapes follow the providers' public references, read in October and
November 2026; a rule that is known only from the error message is quoted with that message.

- Anthropic: platform.claude.com/docs/en/api/messages, …/api/errors, …/build-with-claude/streaming, and
  …/agents-and-tools/tool-use/handle-tool-calls (results first, in the very next message);
  …/about-claude/models/whats-new-claude-4-6 (the last message is the user's); …/prompt-caching (four markers).
- Gemini: ai.google.dev/api/generate-content, …/gemini-api/docs/function-calling and …/thought-signatures (the first
  call of each step since the user's last words carries one).
- OpenAI Responses: developers.openai.com/api/reference/resources/responses, …/guides/function-calling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from tests.endpoints import Answer, Event, Fault, Request, Wire

_PIECE_CHARS = 12


def pieces(text: str) -> Iterator[str]:
    """The text in pieces, as a stream brings it."""
    return (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))


class Refused(Exception):  # noqa: N818  # what a provider says, not an error of this program
    """A rule of the provider is broken; the message is what it says."""


def fault_of(check: Any, *arguments: Any) -> Fault | None:
    """What the check refuses, as a 400."""
    try:
        require(_is_json(arguments[0]), "The request body is not valid JSON")
        check(*arguments)
    except Refused as refused:
        return 400, str(refused)
    return None


def _is_json(body: Request) -> bool:
    """Whether it is JSON also for readers less lenient than Python's: no NaN, no half of a surrogate pair."""
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True


def require(condition: object, message: str) -> None:
    """Refuse with this message unless the condition holds."""
    if not condition:
        raise Refused(message)


def only(keys: Mapping[str, object], known: set[str], words: str) -> None:
    """Refuse a key that is not known; `words` has its name as {}."""
    for key in sorted(keys.keys() - known):
        raise Refused(words.format(key))


# Anthropic /v1/messages

_ANTHROPIC_KEYS = {"model", "messages", "max_tokens", "system", "tools", "tool_choice", "stream", "temperature"} | {
    "top_p",
    "top_k",
    "stop_sequences",
    "metadata",
    "thinking",
    "service_tier",
    "output_config",
    "cache_control",
}
_ANTHROPIC_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
_ANTHROPIC_BLOCK_KEYS = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
}
_TOOL_USE_ID = re.compile(r"^[a-zA-Z0-9_-]+$")
_ANTHROPIC_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")


def anthropic_fault(body: Request, _path: str, headers: Mapping[str, str], key: str | None) -> Fault | None:
    """What Anthropic would refuse in this request, as (status, message), or None."""
    if not headers.get("x-api-key"):
        return 401, "x-api-key header is required"
    if key is not None and headers["x-api-key"] != key:
        return 401, "invalid x-api-key"
    if not headers.get("anthropic-version"):
        return 400, "anthropic-version: header is required"
    return fault_of(_check_anthropic, body)


def _check_anthropic(body: Request) -> None:
    only(body, _ANTHROPIC_KEYS, "{}: Extra inputs are not permitted")
    limit = body.get("max_tokens")
    require(isinstance(limit, int) and limit > 0, "max_tokens: Field required")
    require(isinstance(body.get("model"), str), "model: Field required")
    for block in _blocks(body.get("system", []), "system"):
        require(block["type"] == "text", "system: Input should be 'text'")
    _check_anthropic_tools(body.get("tools", []))
    _check_anthropic_messages(body.get("messages"), has_tools=bool(body.get("tools")))
    _check_anthropic_thinking(body)
    marks = json.dumps(body).count('"cache_control"')
    require(marks <= 4, f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")


def _check_anthropic_thinking(body: Request) -> None:
    asked = body.get("thinking") or {}
    # “Must be ≥1024 and less than `max_tokens`” (…/messages, `thinking.budget_tokens`).
    too_many = "`max_tokens` must be greater than `thinking.budget_tokens`."
    require(asked.get("budget_tokens", 0) < body["max_tokens"], too_many)
    # Up to Claude 4.5 (…/extended-thinking, “preserving thinking blocks”).
    if asked.get("type") != "enabled" or not re.search(r"-4-[0-5]\b", body["model"]):
        return
    said = [(place, one["content"]) for place, one in enumerate(body["messages"]) if one.get("role") == "assistant"]
    place, blocks = said[-1] if said else (0, "")
    kinds = [block["type"] for block in blocks] if isinstance(blocks, list) else []
    wanted = f"messages.{place}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`."
    require("tool_use" not in kinds or kinds[0] in {"thinking", "redacted_thinking"}, wanted)


def _check_anthropic_tools(tools: list[dict[str, Any]]) -> None:
    names = [tool.get("name") for tool in tools]
    require(len(set(names)) == len(names), "tools: Tool names must be unique.")
    for index, tool in enumerate(tools):
        where = f"tools.{index}.custom"
        known = {"name", "description", "input_schema", "cache_control", "type", "strict"}
        only(tool, known, f"{where}.{{}}: Extra inputs are not permitted")
        require(_ANTHROPIC_NAME.match(str(tool.get("name"))), f"{where}.name: String should match pattern")
        require(tool.get("type", "custom") == "custom", f"{where}.type: Input should be 'custom'")
        schema = tool.get("input_schema")
        require(
            isinstance(schema, dict) and schema.get("type") == "object", f"{where}.input_schema.type: Field required"
        )
        for word in sorted({"oneOf", "allOf", "anyOf"} & (schema or {}).keys()):
            raise Refused(f"{where}.input_schema: input_schema does not support {word} at the top level")
        check_schema(schema, f"{where}.input_schema: JSON schema is invalid. It must match JSON Schema draft 2020-12")


def check_schema(schema: Any, message: str) -> None:
    """Refuse what is no JSON Schema."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise Refused(message) from error


def _check_anthropic_messages(messages: Any, *, has_tools: bool) -> None:
    require(isinstance(messages, list) and messages, "messages: at least one message is required")
    require(messages[0].get("role") == "user", 'messages: first message must use the "user" role')
    # Since Claude 4.6.
    no_prefill = "This model does not support assistant message prefill. The conversation must end with a user message."
    require(messages[-1].get("role") == "user", no_prefill)
    awaited: list[str] = []
    seen: set[str] = set()
    role = None
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        only(message, {"role", "content"}, f"{where}.{{}}: Extra inputs are not permitted")
        require(message.get("role") in {"user", "assistant"}, f"{where}.role: Input should be 'user' or 'assistant'")
        # The API joins turns of one role; Bedrock's Claude says this instead.
        require(message["role"] != role, 'messages: roles must alternate between "user" and "assistant"')
        role = message["role"]
        blocks = _blocks(message.get("content"), where)
        require(blocks, f"{where}: all messages must have non-empty content")
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        uses = [block["id"] for block in blocks if block["type"] == "tool_use"]
        require(has_tools or not uses, "Requests which have `tool_use` blocks must define tools")
        require(role == "assistant" or not uses, f"{where}: `tool_use` blocks can only be in `assistant` messages")
        require(set(results) <= set(awaited), f"{where}: unexpected `tool_use_id` found in `tool_result` blocks")
        require(len(set(results)) == len(results), f"{where}: each tool_use must have a single result")
        missing = f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after"
        require(set(results) == set(awaited), missing)
        first = [block["type"] for block in blocks[: len(results)]]
        require(set(first) <= {"tool_result"}, f"{where}: `tool_result` blocks must come first")
        require(not seen & set(uses) and len(set(uses)) == len(uses), f"{where}: `tool_use` ids must be unique")
        seen |= set(uses)
        awaited = uses


def _blocks(content: Any, where: str) -> list[dict[str, Any]]:
    """The content as checked blocks."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    require(isinstance(content, list), f"{where}.content: Field required")
    for index, block in enumerate(content):
        _check_block(block, f"{where}.content.{index}")
    checked: list[dict[str, Any]] = content
    return checked


def _check_block(block: dict[str, Any], where: str) -> None:
    kind = str(block.get("type"))
    require(kind in _ANTHROPIC_BLOCK_KEYS, f"{where}: Input tag '{kind}' found does not match any of the expected tags")
    only(block, _ANTHROPIC_BLOCK_KEYS[kind], f"{where}.{kind}.{{}}: Extra inputs are not permitted")
    marker = block.get("cache_control", {"type": "ephemeral"})
    require(marker.get("type") == "ephemeral", f"{where}.{kind}.cache_control: Input should be 'ephemeral'")
    match kind:
        case "text":
            require(isinstance(block.get("text"), str), f"{where}.text.text: Field required")
            require(block["text"], "messages: text content blocks must be non-empty")
            require(block["text"].strip(), "messages: text content blocks must contain non-whitespace text")
        case "image":
            source = block.get("source") or {}
            media = {"image/jpeg", "image/png", "image/gif", "image/webp"}
            is_data = source.get("type") == "base64" and source.get("media_type") in media and source.get("data")
            require(is_data or (source.get("type") == "url" and source.get("url")), f"{where}.image.source: invalid")
        case "tool_use":
            require(_TOOL_USE_ID.match(str(block.get("id"))), f"{where}.tool_use.id: String should match pattern")
            require(
                _ANTHROPIC_NAME.match(str(block.get("name"))), f"{where}.tool_use.name: String should match pattern"
            )
            require(isinstance(block.get("input"), dict), f"{where}.tool_use.input: Input should be a valid dictionary")
        case _:
            require(_TOOL_USE_ID.match(str(block.get("tool_use_id"))), f"{where}.tool_result.tool_use_id: pattern")
            # An empty string is a result; an empty block is not.
            if isinstance(block.get("content"), list):
                _blocks(block["content"], f"{where}.tool_result")


def _anthropic_content(answer: Answer) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": answer.text}] if answer.text else []
    return [*text, *({"type": "tool_use", **use} for use in _uses(answer, "toolu_"))]


def _uses(answer: Answer, prefix: str) -> Iterator[dict[str, Any]]:
    for index, (name, arguments) in enumerate(answer.calls):
        yield {"id": f"{prefix}{index:024d}", "name": name, "input": arguments}


def _anthropic_usage(answer: Answer) -> dict[str, int]:
    # `input_tokens` leaves out what came from the cache (…/prompt-caching, “tracking cache performance”).
    return {
        "input_tokens": answer.usage[0] - answer.cached - answer.cache_written,
        "cache_creation_input_tokens": answer.cache_written,
        "cache_read_input_tokens": answer.cached,
        "output_tokens": answer.usage[1],
    }


def _stop_reason(answer: Answer) -> str:
    reasons = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}
    # Others go out as they are.
    return reasons.get(answer.finish_reason or "", answer.finish_reason or ("tool_use" if answer.calls else "end_turn"))


def _anthropic_whole(body: Request, answer: Answer) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": _anthropic_content(answer),
        "stop_reason": _stop_reason(answer),
        "stop_sequence": None,
        "usage": _anthropic_usage(answer),
    }


def _anthropic_events(body: Request, answer: Answer) -> Iterator[Event]:
    def event(kind: str, piece: str = "", **data: Any) -> Event:
        return Event({"type": kind, **data}, piece, kind)

    usage = {**_anthropic_usage(answer), "output_tokens": 1}
    message = {**_anthropic_whole(body, answer), "content": [], "stop_reason": None, "usage": usage}
    yield event("message_start", message=message)
    yield event("ping")
    for index, block in enumerate(_anthropic_content(answer)):
        is_text = block["type"] == "text"
        start = {**block, "text": ""} if is_text else {**block, "input": {}}
        yield event("content_block_start", index=index, content_block=start)
        for piece in pieces(block["text"] if is_text else block["input"]):
            kind = ("text_delta", "text") if is_text else ("input_json_delta", "partial_json")
            yield event("content_block_delta", piece, index=index, delta={"type": kind[0], kind[1]: piece})
        yield event("content_block_stop", index=index)
    delta = {"stop_reason": _stop_reason(answer), "stop_sequence": None}
    yield event("message_delta", delta=delta, usage=_anthropic_usage(answer))
    yield event("message_stop")


ANTHROPIC = Wire(
    base="",
    serves=lambda path: path == "/v1/messages",
    fault=anthropic_fault,
    error=lambda status, error: {
        "type": "error",
        "error": {"type": _ANTHROPIC_ERRORS.get(status, "api_error"), "message": error["message"]},
        "request_id": "req_1",
    },
    streams=lambda body, _path: bool(body.get("stream")),
    whole=_anthropic_whole,
    events=_anthropic_events,
    error_event=Event(
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"},
        name="error",
    ),
)
"""Anthropic's /v1/messages."""


# Gemini :generateContent and :streamGenerateContent

_GEMINI_KEYS = {"contents", "tools", "toolConfig", "safetySettings", "systemInstruction", "generationConfig"} | {
    "cachedContent",
    "tool_config",
    "safety_settings",
    "system_instruction",
    "generation_config",
    "cached_content",
    "serviceTier",
    "labels",
}
_GEMINI_PART_KEYS = {"text", "inlineData", "fileData", "functionCall", "functionResponse"}
_CAMEL = {
    "inline_data": "inlineData",
    "file_data": "fileData",
    "function_call": "functionCall",
    "function_response": "functionResponse",
    "thought_signature": "thoughtSignature",
}
_GEMINI_SCHEMA_KEYS = {"type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems"} | {
    "properties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "example",
    "anyOf",
    "propertyOrdering",
    "default",
    "items",
    "minimum",
    "maximum",
}
_GEMINI_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_GEMINI_NAME = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}$")
_GEMINI_PATH = re.compile(r"^/(?:v1beta/)?models/[^/:]+:(?:streamG|g)enerateContent(?:\?.*)?$")


def gemini_fault(body: Request, path: str, headers: Mapping[str, str], key: str | None) -> Fault | None:
    """What the Gemini API would refuse in this request, as (status, message), or None."""
    in_path = re.search(r"[?&]key=([^&]*)", path)
    given = headers.get("x-goog-api-key") or (in_path.group(1) if in_path else None)
    if not given:
        return 403, "Method doesn't allow unregistered callers (callers without established identity)."
    if key is not None and given != key:
        # Not a 401: reason API_KEY_INVALID.
        return 400, "API key not valid. Please pass a valid API key."
    return fault_of(_check_gemini, body, bool(re.search(r"models/gemini-3", path)))


def _check_gemini(body: Request, needs_signatures: bool) -> None:  # noqa: FBT001  # one place calls it
    unknown = 'Invalid JSON payload received. Unknown name "{}": Cannot find field.'
    only(body, _GEMINI_KEYS, unknown)
    system = body.get("systemInstruction", body.get("system_instruction"))
    if system is not None:
        _check_parts(system.get("parts"), "GenerateContentRequest.system_instruction")
    declarations = [
        tool.get("functionDeclarations", tool.get("function_declarations")) for tool in body.get("tools", [])
    ]
    names: list[str] = []
    for index, declaration in enumerate(declaration for group in declarations for declaration in group or ()):
        where = f"GenerateContentRequest.tools[0].function_declarations[{index}]"
        only(
            declaration, {"name", "description", "parameters", "parametersJsonSchema", "behavior", "response"}, unknown
        )
        _check_gemini_name(declaration.get("name"), where)
        names.append(declaration["name"])
        if declaration.get("parameters") is not None:
            _check_gemini_schema(declaration["parameters"], f"{where}.parameters")
    require(len(set(names)) == len(names), "Duplicate function declaration found")
    contents = body.get("contents")
    require(isinstance(contents, list) and contents, "* GenerateContentRequest.contents: contents is not specified")
    turns = _check_contents(contents or [])
    if needs_signatures:
        _check_signatures(turns)


def _check_gemini_name(name: object, where: str) -> None:
    words = f"{where}.name: [FIELD_INVALID] Invalid function name. Must start with a letter or an underscore."
    require(isinstance(name, str) and _GEMINI_NAME.match(name), words)


def _check_gemini_schema(schema: Any, where: str) -> None:
    require(isinstance(schema, dict), f"{where}: not a Schema")
    only(
        schema,
        _GEMINI_SCHEMA_KEYS,
        f'Invalid JSON payload received. Unknown name "{{}}" at {where}: Cannot find field.',
    )
    kinds = {"STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"}
    require("type" not in schema or str(schema["type"]).upper() in kinds, f"{where}.type: Invalid value")
    properties = schema.get("properties", {})
    unheard = set(schema.get("required", ())) - properties.keys()
    require(not unheard, f"{where}.required[0]: property is not defined")
    require(str(schema.get("type")).upper() != "ARRAY" or "items" in schema, f"{where}.items: missing field.")
    require(all(isinstance(value, str) for value in schema.get("enum", ())), f"{where}.enum: only strings")
    for name, inner in properties.items():
        _check_gemini_schema(inner, f"{where}.properties[{name}]")
    for inner in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        _check_gemini_schema(inner, where)


def _check_contents(contents: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    calls: list[str] = []
    role = None
    for index, content in enumerate(contents):
        where = f"GenerateContentRequest.contents[{index}]"
        only(content, {"role", "parts"}, 'Invalid JSON payload received. Unknown name "{}"')
        require(content.get("role") in {"user", "model"}, "Please use a valid role: user, model.")
        parts = _check_parts(content.get("parts"), where)
        now = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
        answers = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        require(not now or content["role"] == "model", f"{where}: a function call is the model's")
        require(
            not now or role == "user",
            "Please ensure that function call turn comes immediately after a user turn or after a function response turn.",
        )
        require(
            not answers or calls,
            "Please ensure that function response turn comes immediately after a function call turn.",
        )
        require(
            len(answers) == len(calls),
            "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn.",
        )
        require(answers == calls, f"{where}: function responses are not those of the calls")
        calls, role = now, content["role"]
        turns.append((role, parts))
    require(role == "user", "Please ensure that single turn requests end with a user role or the role field is empty.")
    return turns


def _check_parts(parts: Any, where: str) -> list[dict[str, Any]]:
    require(isinstance(parts, list) and parts, f"* {where}.parts: contents.parts must not be empty.")
    # The API takes either spelling of a name.
    checked = [{_CAMEL.get(key, key): value for key, value in part.items()} for part in parts]
    for index, part in enumerate(checked):
        at = f"{where}.parts[{index}]"
        only(part, _GEMINI_PART_KEYS | {"thoughtSignature", "thought"}, f'{at}: Unknown name "{{}}"')
        data = part.keys() - {"thoughtSignature", "thought"}
        require(len(data) == 1, f"* {at}.data: required oneof field 'data' must have one initialized field")
        require(part.get("text", "x"), f"* {at}.data: required oneof field 'data' must have one initialized field")
        for key, inner in (("functionCall", "args"), ("functionResponse", "response")):
            if key in part:
                only(part[key], {"id", "name", inner}, f'{at}.{key}: Unknown name "{{}}"')
                _check_gemini_name(part[key].get("name"), at)
                require(isinstance(part[key].get(inner, {}), dict), f'Invalid value at "{at}.{key}.{inner}"')
    return checked


def _check_signatures(turns: list[tuple[str, list[dict[str, Any]]]]) -> None:
    words = "Function call is missing a thought_signature in functionCall parts."
    said = [
        index for index, (role, parts) in enumerate(turns) if role == "user" and any("text" in part for part in parts)
    ]
    for _, parts in turns[said[-1] if said else 0 :]:
        first = next((part for part in parts if "functionCall" in part), None)
        require(first is None or first.get("thoughtSignature"), words)


def _gemini_parts(answer: Answer) -> Iterator[tuple[dict[str, Any], str]]:
    for piece in pieces(answer.text or ""):
        yield {"text": piece}, piece
    for name, arguments in answer.calls:
        # The API sends calls whole, and their arguments as an object: there is no broken JSON in them.
        yield {"functionCall": {"name": name, "args": json.loads(arguments)}, "thoughtSignature": "c2lnbmVk"}, arguments


def _gemini_chunk(body: Request, answer: Answer, parts: list[dict[str, Any]], *, last: bool) -> dict[str, Any]:
    reasons = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = reasons.get(answer.finish_reason or "", answer.finish_reason or "STOP")
    usage = {
        "promptTokenCount": answer.usage[0],
        "candidatesTokenCount": answer.usage[1],
        "totalTokenCount": sum(answer.usage),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": answer.usage[0]}],
    }
    if answer.cached:
        usage["cachedContentTokenCount"] = answer.cached
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": body.get("model", "gemini"),
        "responseId": "resp-1",
    }


def _gemini_events(body: Request, answer: Answer) -> Iterator[Event]:
    for part, piece in _gemini_parts(answer):
        yield Event(_gemini_chunk(body, answer, [part], last=False), piece)
    yield Event(_gemini_chunk(body, answer, [{"text": ""}], last=True))


GEMINI = Wire(
    base="",
    serves=lambda path: bool(_GEMINI_PATH.match(path)),
    fault=gemini_fault,
    error=lambda status, error: {
        "error": {"code": status, "message": error["message"], "status": _GEMINI_STATUS.get(status, "UNKNOWN")}
    },
    streams=lambda _body, path: "stream" in path,
    whole=lambda body, answer: _gemini_chunk(body, answer, [part for part, _ in _gemini_parts(answer)], last=True),
    events=_gemini_events,
    error_event=Event({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
)
"""Gemini's generateContent and streamGenerateContent."""


# OpenAI /v1/responses

_RESPONSES_KEYS = {"model", "input", "instructions", "tools", "tool_choice", "stream", "stream_options"} | {
    "max_output_tokens",
    "temperature",
    "top_p",
    "reasoning",
    "text",
    "store",
    "include",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "user",
    "truncation",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
}
_ITEM_KEYS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "function_call_output": {"type", "id", "call_id", "output", "status"},
}
_PART_KEYS = {
    "input_text": {"type", "text"},
    "input_image": {"type", "image_url", "detail", "file_id"},
    "output_text": {"type", "text", "annotations", "logprobs"},
    "refusal": {"type", "refusal"},
}


def responses_fault(body: Request, _path: str, headers: Mapping[str, str], key: str | None) -> Fault | None:
    """What OpenAI's Responses API would refuse in this request, as (status, message), or None."""
    if key is not None and headers.get("authorization") != f"Bearer {key}":
        return 401, "Incorrect API key provided"
    return fault_of(_check_responses, body)


def _check_responses(body: Request) -> None:
    only(body, _RESPONSES_KEYS, "Unknown parameter: '{}'.")
    only(body.get("stream_options") or {}, {"include_obfuscation"}, "Unknown parameter: 'stream_options.{}'.")
    limit = body.get("max_output_tokens")
    require(
        limit is None or limit >= 16, "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16"
    )
    for index, tool in enumerate(body.get("tools") or ()):
        where = f"tools[{index}]"
        only(tool, {"type", "name", "description", "parameters", "strict"}, f"Unknown parameter: '{where}.{{}}'.")
        require(_ANTHROPIC_NAME.match(str(tool.get("name"))), f"Invalid '{where}.name': string does not match pattern.")
        require(tool.get("type") == "function", f"Invalid value: '{where}.type'")
        schema = tool.get("parameters")
        require(schema is None or schema.get("type") == "object", f"Invalid schema for function '{tool['name']}'")
        check_schema(schema or {}, f"Invalid schema for function '{tool['name']}'")
    _check_input(body.get("input"))


def _check_input(items: Any) -> None:
    require(isinstance(items, str) or (isinstance(items, list) and items), "Missing required parameter: 'input'.")
    calls: list[str] = []
    answered: list[str] = []
    for index, item in enumerate(items if isinstance(items, list) else ()):
        where = f"input[{index}]"
        kind = item.get("type", "message")
        require(kind in _ITEM_KEYS, f"Invalid value: '{kind}'. Supported values are: 'message', 'function_call', …")
        only(item, _ITEM_KEYS[kind], f"Unknown parameter: '{where}.{{}}'.")
        match kind:
            case "message":
                _check_item_content(item, where)
            case "function_call":
                own = item.get("id")
                require(
                    own is None or str(own).startswith("fc"),
                    f"Invalid '{where}.id': '{own}'. Expected an ID that begins with 'fc'.",
                )
                require(0 < len(str(item.get("call_id") or "")) <= 64, f"Invalid '{where}.call_id': empty or too long.")
                require(
                    _ANTHROPIC_NAME.match(str(item.get("name"))),
                    f"Invalid '{where}.name': string does not match pattern.",
                )
                require(
                    isinstance(item.get("arguments"), str), f"Invalid type for '{where}.arguments': expected a string."
                )
                calls.append(item["call_id"])
            case _:
                require(
                    item.get("call_id") in calls,
                    f"No tool call found for function call output with call_id {item.get('call_id')}.",
                )
                output = item.get("output")
                require(
                    isinstance(output, str) or _check_item_parts(output, where, {"input_text", "input_image"}),
                    f"Missing required parameter: '{where}.output'.",
                )
                answered.append(item["call_id"])
    require(len(set(calls)) == len(calls), "Duplicate function call id.")
    require(len(set(answered)) == len(answered), "Duplicate function call output.")
    for call_id in set(calls) - set(answered):
        raise Refused(f"No tool output found for function call {call_id}.")


def _check_item_content(item: dict[str, Any], where: str) -> None:
    role = item.get("role")
    require(role in {"user", "system", "developer", "assistant"}, f"Invalid value: '{role}' for '{where}.role'.")
    known = {"output_text", "refusal"} if role == "assistant" else {"input_text", "input_image"}
    content = item.get("content")
    require(
        isinstance(content, str) or _check_item_parts(content, where, known),
        f"Missing required parameter: '{where}.content'.",
    )


def _check_item_parts(parts: Any, where: str, known: set[str]) -> bool:
    if not isinstance(parts, list):
        return False
    for index, part in enumerate(parts):
        kind = part.get("type")
        require(
            kind in known,
            f"Invalid value: '{kind}'. Supported values are: {sorted(known)} at '{where}.content[{index}]'.",
        )
        only(part, _PART_KEYS[kind], f"Unknown parameter: '{where}.content[{index}].{{}}'.")
        require(
            kind != "input_image" or isinstance(part.get("image_url"), str),
            f"Invalid type for '{where}.content[{index}].image_url'.",
        )
        require(
            not kind.endswith("_text") or isinstance(part.get("text"), str),
            f"Missing required parameter: '{where}.content[{index}].text'.",
        )
    return True


def _output(answer: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if answer.text is not None:
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for use in _uses(answer, "call_"):
        call = {"call_id": use["id"], "name": use["name"], "arguments": use["input"]}
        items.append({"type": "function_call", "id": f"fc_{use['id']}", "status": "completed", **call})
    return items


def _response(body: Request, answer: Answer, status: str) -> dict[str, Any]:
    usage = {
        "input_tokens": answer.usage[0],
        "input_tokens_details": {"cached_tokens": answer.cached},
        "output_tokens": answer.usage[1],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sum(answer.usage),
    }
    ended = status in {"completed", "incomplete"}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": _INCOMPLETE[str(answer.finish_reason)]} if status == "incomplete" else None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "model": body["model"],
        "output": _output(answer) if ended else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "usage": usage if ended else None,
    }


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _end_status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason in _INCOMPLETE else "completed"


def _responses_events(body: Request, answer: Answer) -> Iterator[Event]:
    numbers = count()

    def event(kind: str, piece: str = "", **data: Any) -> Event:
        return Event({"type": kind, "sequence_number": next(numbers), **data}, piece, kind)

    yield event("response.created", response=_response(body, answer, "in_progress"))
    yield event("response.in_progress", response=_response(body, answer, "in_progress"))
    for index, item in enumerate(_output(answer)):
        at: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            part = item["content"][0]
            begun: dict[str, Any] = {**item, "status": "in_progress", "content": []}
            yield event("response.output_item.added", output_index=index, item=begun)
            yield event("response.content_part.added", **at, content_index=0, part={**part, "text": ""})
            for piece in pieces(part["text"]):
                yield event("response.output_text.delta", piece, **at, content_index=0, delta=piece, logprobs=[])
            yield event("response.output_text.done", **at, content_index=0, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **at, content_index=0, part=part)
        else:
            begun = {**item, "status": "in_progress", "arguments": ""}
            yield event("response.output_item.added", output_index=index, item=begun)
            for piece in pieces(item["arguments"]):
                yield event("response.function_call_arguments.delta", piece, **at, delta=piece)
            yield event("response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        yield event("response.output_item.done", output_index=index, item=item)
    status = _end_status(answer)
    yield event(f"response.{status}", response=_response(body, answer, status))


RESPONSES = Wire(
    base="/v1",
    serves=lambda path: path == "/v1/responses",
    fault=responses_fault,
    error=lambda _status, error: {"error": error},
    streams=lambda body, _path: bool(body.get("stream")),
    whole=lambda body, answer: _response(body, answer, _end_status(answer)),
    events=_responses_events,
    error_event=Event(
        {
            "type": "error",
            "sequence_number": 9,
            "code": "server_error",
            "message": "The server had an error",
            "param": None,
        },
        name="error",
    ),
)
"""OpenAI's /v1/responses."""
