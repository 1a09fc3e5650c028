"""Aggregates as Python: what their states begin as, how a row changes them, and what they come to in the end."""

from __future__ import annotations

from voltpy.sql.bound import Aggregate


def first_states(aggregate: Aggregate) -> list[str]:
    """What an aggregate's states begin as."""
    if aggregate.distinct or aggregate.name in ("values", "values_merged"):
        return ["{}"]
    match aggregate.name:
        case "count" | "count_merged":
            return ["0"]
        case "avg" | "avg_merged":
            return ["0", "0"]
        case "string_agg" | "list" | "list_merged":
            return ["[]"]
    return ["None"]


def taken_in(aggregate: Aggregate, states: list[str], text: str, second: str) -> list[str]:
    """Lines that take a value, which is not NULL, into the states. `second`: how many an avg_merged is of."""
    state = states[0]
    match aggregate.name:
        case "values_merged":
            return [f"{state}.update(dict.fromkeys({text}))"]
        case "list_merged":
            return [f"{state}.extend({text})"]
        case "avg_merged":
            return [f"{state} += narrow({text})", f"{states[1]} += {second}"]
        case _ if aggregate.distinct:
            return [f"{state}[{text}] = None"]
        case "count":
            return [f"{state} += 1"]
        case "count_merged":
            return [f"{state} += {text}"]
        case "sum" | "sum_partial":
            return [f"{state} = {text} if {state} is None else {state} + {text}"]
        case "sum_merged":
            return [f"{state} = narrow({text}) if {state} is None else {state} + narrow({text})"]
        case "avg":
            return [f"{state} += {text}", f"{states[1]} += 1"]
        case "min" | "max":
            sign = "<" if aggregate.name == "min" else ">"
            return [f"if {state} is None or {text} {sign} {state}: {state} = {text}"]
        case "bool_and":
            return [f"{state} = {text} if {state} is None else {state} and {text}"]
        case "bool_or":
            return [f"{state} = {text} if {state} is None else {state} or {text}"]
        case "string_agg" | "list":
            return [f"{state}.append({text})"]
    raise AssertionError(aggregate.name)


def final_value(aggregate: Aggregate, states: list[str], separator: str) -> str:
    """What the states come to. `separator`: of string_agg."""
    state = states[0]
    name = aggregate.name
    if name in ("values_merged", "list_merged"):
        name = aggregate.merges
    if name in ("values", "list"):
        return f"tuple({state})"
    if name == "string_agg":
        return f"(bounded(({separator} or '').join({state})) if {state} else None)"
    if aggregate.distinct or aggregate.merges:
        return {
            "count": f"len({state})",
            "sum": f"number_sum(sum_of({state}))",
            "avg": f"average(sum_of({state}) or 0, len({state}))",
        }[name]
    if name in ("avg", "avg_merged"):
        return f"average({state}, {states[1]})"
    return f"number_sum({state})" if name in ("sum", "sum_merged") else state
