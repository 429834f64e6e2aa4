"""Tools in chats: calls and definitions in several forms, converted to what chat templates take.

Templates write arguments with Jinja's `tojson`, so arguments that are JSON text become an object here.
"""

import json
from collections.abc import Mapping
from typing import Any

from loratune.data.conversation import get_function
from loratune.data.sources.values import is_blank
from loratune.system.read import parse_json

CALL_FORM = 'write {"name": ..., "arguments": {...}}'


def read_calls(message: Mapping[str, Any]) -> list[dict]:
    """Return the calls of a message: of its field `tool_calls`, or of the older `function_call`.

    Raises:
        ValueError: a call is unusable; the text names the field.
    """
    for name in ("tool_calls", "function_call"):
        if not is_blank(message.get(name)):
            return convert_calls(message[name], name)
    return []


def convert_calls(value: Any, name: str) -> list[dict]:
    """Convert a call or a list of calls, perhaps as JSON text, to OpenAI's form.

    Args:
        value: the calls.
        name: of their field, for messages.

    Raises:
        ValueError: the text is not JSON, or a call has no name.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not valid JSON ({describe_failure(error)}); {CALL_FORM}") from None
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise ValueError(f"{name} holds no call; {CALL_FORM}")
    converted = []
    for number, call in enumerate(calls, 1):
        try:
            converted.append(convert_call(call))
        except ValueError as error:
            raise ValueError(f"{name}, number {number}: {error}; {CALL_FORM}") from None
    return converted


def describe_failure(error: Exception) -> str:
    """Say in a few words why a text is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error) if isinstance(error, ValueError) else "nested too deeply"


def convert_call(call: Any) -> dict:
    """Convert a call, with or without the wrapper `function`, to OpenAI's form.

    Raises:
        ValueError: it has no name.
    """
    function = get_function(call)
    arguments = function.get("arguments", function.get("parameters"))
    call_id = {} if is_blank(call.get("id")) else {"id": str(call["id"])}
    return call_id | {
        "type": "function",
        "function": {"name": function["name"], "arguments": parse_arguments(arguments)},
    }


def parse_arguments(arguments: Any) -> Any:
    """Parse arguments that are the JSON text of an object; any other value stays."""
    if is_blank(arguments):
        return {}
    if isinstance(arguments, str):
        try:
            parsed = parse_json(arguments)
        except (ValueError, RecursionError):
            return arguments
        return parsed if isinstance(parsed, dict) else arguments
    return arguments


def read_tools(values: Mapping[str, Any], name: str) -> list[dict]:
    """Return the definitions of tools in a cell, a list of objects, perhaps as JSON text.

    A definition without OpenAI's wrapper `function` gets one, because some templates need it.

    Raises:
        ValueError: the cell holds something else.
    """
    tools = values.get(name)
    if is_blank(tools):
        return []
    if isinstance(tools, str):
        try:
            tools = parse_json(tools)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not valid JSON: {describe_failure(error)}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{name} must be a list of objects, each the JSON schema of a function")
    return [wrap_tool(tool) for tool in tools]


def wrap_tool(tool: dict) -> dict:
    is_function = "function" not in tool and isinstance(tool.get("name"), str)
    return {"type": "function", "function": tool} if is_function else tool
