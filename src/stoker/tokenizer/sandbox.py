"""Jinja templates from model files, run with deterministic limits.

A model file is data from a stranger and its chat template is a program. Jinja's sandbox keeps it from
reaching Python; it does not keep it from running for hours or filling memory. Here every loop item, call,
filter and comparison spends steps from a budget in proportion to what it handles, every operation that can
multiply sizes is checked before it runs, and only filters and methods that chat templates use exist.
The limits count work, not seconds, so that a template gives the same result on every machine.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from stoker.api.errors import TemplateError


@dataclass(frozen=True)
class TemplateLimits:
    """What one rendering may use. A step takes 1 to 3 microseconds."""

    max_steps: int = 300_000  # a conversation of 1 000 messages takes about 25 000
    max_chars: int = 1 << 22  # of the output and of any string on the way: longer than any context
    max_items: int = 100_000  # of any list on the way
    max_source_chars: int = 1 << 17  # the longest templates in use have about 20 000


# A string or list costs one step for so many characters or entries that an operation may touch: at that
# size the operation takes about as long as a step.
UNITS_PER_STEP = 256
MAX_INT_BITS = 4096
_SCALARS = (bool, int, float, type(None), range, jinja2.Undefined)

_STR_METHODS = frozenset(
    (
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
        "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
        "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
        "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    )
)  # fmt: skip
_CONTAINER_METHODS = frozenset(("copy", "count", "get", "index", "items", "keys", "values"))
# Filters that take a sequence one item at a time, and ones that make a list or need it whole.
_ITEM_FILTERS = ("map", "reject", "rejectattr", "select", "selectattr", "unique")
_LIST_FILTERS = ("first", "groupby", "last", "list", "max", "min", "reverse", "sort")
_VALUE_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "float", "int", "items", "length", "lower",
    "round", "title", "trim", "upper", "wordcount",
)  # fmt: skip
_TESTS = (
    "!=", "<", "<=", "==", ">", ">=", "boolean", "callable", "defined", "divisibleby", "eq", "equalto",
    "even", "false", "float", "ge", "gt", "greaterthan", "in", "integer", "iterable", "le", "lessthan",
    "lower", "lt", "mapping", "ne", "none", "number", "odd", "sameas", "sequence", "string", "true",
    "undefined", "upper",
)  # fmt: skip
# Jinja lets Python's errors through: "text" + 1 in a template is a TypeError.
_PYTHON_ERRORS = (
    TypeError, ValueError, LookupError, ArithmeticError, AttributeError, NotImplementedError,
)  # fmt: skip
_PLAIN_DIRECTIVES = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")
_PLAIN_FORMAT = re.compile(r"(?:[^%]|%%|%(?:\(\w+\))?[-+ 0#]?\d{0,3}(?:\.\d{1,2})?[A-Za-z])*")


class Budget:
    """Steps left for one rendering, and the checks that spend them. Used by one thread."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self.steps_left = limits.max_steps

    def spend(self, steps: int) -> None:
        """Take ``steps`` off. Raises TemplateError when none are left."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise TemplateError(
                f"the chat template took more than {self.limits.max_steps} steps",
                hint="it loops, or the conversation is far longer than any model's context",
            )

    def touch(self, value: object) -> None:
        """Spend for one operation on ``value``."""
        size = len(value) if isinstance(value, str | list | tuple | dict) else 0
        self.spend(1 + size // UNITS_PER_STEP)

    def allow_chars(self, count: int) -> None:
        """Check and spend for a text of ``count`` characters that is about to be made."""
        if count > self.limits.max_chars:
            raise TemplateError(
                f"the chat template makes a text of {count} characters; at most {self.limits.max_chars}"
            )
        self.spend(count // UNITS_PER_STEP)

    def allow_items(self, count: int) -> None:
        """Check and spend for a list of ``count`` entries that is about to be made."""
        if count > self.limits.max_items:
            raise TemplateError(
                f"the chat template makes a list of {count} entries; at most {self.limits.max_items}"
            )
        self.spend(count // UNITS_PER_STEP)

    def items(self, values: Iterable[Any]) -> Iterator[Any]:
        """``values`` one by one, a step each."""
        for value in values:
            self.spend(1)
            yield value

    def whole(self, values: Iterable[Any]) -> list[Any]:
        """All of ``values``, if they are not too many."""
        if isinstance(values, str | list | tuple | dict | range):
            self.allow_items(len(values))
            self.spend(len(values) // 4)  # sorting takes about a microsecond an entry
            return list(values)
        found: list[Any] = []
        for value in values:
            self.spend(1)
            if len(found) >= self.limits.max_items:
                self.allow_items(len(found) + 1)
            found.append(value)
        return found

    def measure(self, value: object) -> None:
        """Spend for every value inside ``value``, as often as it occurs: what writing it out would take.
        A list that holds itself twice, forty times over, is short in memory and endless on paper."""
        stack: list[Any] = [value]
        chars = 0
        while stack:
            self.spend(1)
            value = stack.pop()
            if isinstance(value, str):
                chars += len(value)
                self.allow_chars(chars)
            elif isinstance(value, Mapping):
                self.allow_items(len(stack) + 2 * len(value))
                stack += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                self.allow_items(len(stack) + len(value))
                stack += value
            elif not isinstance(value, _SCALARS):
                kind = type(value).__name__
                raise TemplateError(f"the chat template writes out a {kind}, which has no text")

    def text(self, value: object) -> str:
        """``str(value)``, bounded."""
        if isinstance(value, str):
            return value
        self.measure(value)
        return str(value)

    def concat(self, parts: Iterable[Any]) -> str:
        """The texts of ``parts`` in one, bounded."""
        texts = [self.text(part) for part in parts]
        self.allow_chars(sum(map(len, texts)))
        return "".join(texts)


class _Guards(NodeTransformer):
    """Puts the budget's checks into a parsed template, as filters whose names templates cannot write."""

    def _guard(self, node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, f"stoker:{name}", [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._guard(node.iter, "items")
        if node.recursive:  # calls of loop() bring their own items, so the body counts as well
            step = self._guard(nodes.Const("", lineno=node.lineno), "step")
            node.body = [nodes.Output([step], lineno=node.lineno), *node.body]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._guard(nodes.List(node.nodes, lineno=node.lineno), "concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = self._guard(operand.expr, "touch")
        if not isinstance(node.expr, nodes.Const):
            node.expr = self._guard(node.expr, "touch")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):  # Jinja compiles slices without asking the environment
            node.node = self._guard(node.node, "touch")
        return node

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or all(isinstance(i, nodes.Const) for i in node.items):
            return cast(nodes.Node, node)
        return self._guard(node, "measure")

    visit_List = visit_Tuple = visit_Dict = _literal


class _Generation(Extension):
    """``{% generation %}`` marks the model's part for training; for rendering it is its content."""

    tags = frozenset(("generation",))  # type: ignore[assignment]  # jinja2 only reads it

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """One rendering's sandbox. Jinja asks for its hooks by subclassing; nothing else inherits here."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            cache_size=0,
            optimized=False,
            finalize=pass_context(lambda context, value: _finalize(budget, value)),
        )
        self.budget = budget
        self.concat = budget.concat  # type: ignore[method-assign]
        self.filters = _filters(budget)
        self.tests = {name: _spending(budget, cast(Any, TESTS[name])) for name in _TESTS}
        self.globals = {"namespace": Namespace, "range": _range(budget), "dict": dict}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return cast(nodes.Template, _Guards().visit(tree))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, dict | list | tuple):
            return attr in _CONTAINER_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No str.format: its widths have no limit. It is then an attribute that is not safe."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_binop(self.budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        owner = getattr(__obj, "__self__", None)
        budget.touch(owner)
        for value in args:
            budget.touch(value)
        if isinstance(owner, str):
            named = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
            return _call_str_method(budget, owner, getattr(__obj, "__name__", ""), args, named)
        return super().call(__context, __obj, *args, **kwargs)


def _finalize(budget: Budget, value: Any) -> Any:
    budget.touch(value)
    return value if isinstance(value, str | jinja2.Undefined) else budget.text(value)


def _check_binop(budget: Budget, operator: str, left: Any, right: Any) -> None:
    budget.touch(left)
    budget.touch(right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 1)
        if operator in ("**", "*") and bits > MAX_INT_BITS:
            raise TemplateError(f"the chat template makes a number of {bits} bits; at most {MAX_INT_BITS}")
    if operator == "%" and isinstance(left, str):
        _check_format(budget, left, right)
    for value, other in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple):
            allow = budget.allow_chars if isinstance(value, str) else budget.allow_items
            if operator == "*" and isinstance(other, int):
                allow(len(value) * max(other, 0))
            elif operator == "+" and isinstance(other, str | list | tuple):
                allow(len(value) + len(other))


def _check_format(budget: Budget, pattern: str, values: Any) -> None:
    budget.touch(pattern)
    if _PLAIN_FORMAT.fullmatch(pattern) is None:
        raise TemplateError("the chat template formats with a width or a directive that is not allowed")
    budget.measure(values)
    # Each directive writes at most all of the values, or a width of three digits.
    total = len(values) if isinstance(values, str) else 0
    if isinstance(values, list | tuple):
        total = sum(len(value) for value in values if isinstance(value, str))
    budget.allow_chars(len(pattern) + pattern.count("%") * (total + 1000))


def _call_str_method(
    budget: Budget, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if name not in _STR_METHODS:
        raise TemplateError(f"the chat template calls str.{name}, which is not available")
    if name == "replace" and len(args) >= 2:
        return _replace(budget, text, *args[:3])
    if name == "join" and args:
        return _join(budget, args[0], text)
    if name in ("split", "rsplit"):
        separator = kwargs.get("sep", args[0] if args else None)
        most = kwargs.get("maxsplit", args[1] if len(args) > 1 else -1)
        limit = budget.limits.max_items
        parts = getattr(text, name)(separator, limit if most < 0 else min(most, limit))
        budget.allow_items(len(parts))
        return parts
    if name == "splitlines":
        budget.allow_items(text.count("\n") + text.count("\r"))
    return getattr(text, name)(*args, **kwargs)


def _replace(budget: Budget, text: Any, old: Any, new: Any, count: int | None = -1) -> str:
    text, old, new = budget.text(text), budget.text(old), budget.text(new)
    found = text.count(old)
    most = found if count is None or count < 0 else min(found, count)
    budget.allow_chars(len(text) + most * max(len(new) - len(old), 0))
    return str(text.replace(old, new, -1 if count is None else count))


def _join(budget: Budget, values: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise TemplateError("the chat template joins by attribute, which is not available")
    parts: list[Any] = budget.whole(values)
    budget.allow_chars(len(separator) * len(parts))
    return separator.join([budget.concat([part]) for part in _bounded(budget, parts)])


def _bounded(budget: Budget, parts: list[Any]) -> list[str]:
    texts, total = [], 0
    for part in parts:
        texts.append(budget.text(part))
        total += len(texts[-1])
        if total > budget.limits.max_chars:
            budget.allow_chars(total)
    return texts


def _range(budget: Budget) -> Callable[..., range]:
    def bounded_range(*args: int) -> range:
        values = range(*args)
        budget.allow_items(len(values))
        return values

    return bounded_range


def _spending(budget: Budget, test: Callable[..., Any]) -> Callable[..., Any]:
    """A test or filter that spends for its value and arguments; Jinja's calling marks are kept."""

    def spending(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            budget.touch(value)
        return test(*args, **kwargs)

    return _marked_like(test, spending)


def _marked_like(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja marks functions that take its context, environment or evaluation context first."""
    mark = getattr(original, "jinja_pass_arg", None)
    if mark is not None:
        replacement.jinja_pass_arg = mark  # type: ignore[attr-defined]
    return replacement


def _filters(budget: Budget) -> dict[str, Callable[..., Any]]:
    def over(name: str, take: Callable[[Any], Any]) -> Callable[..., Any]:
        original = FILTERS[name]
        at = 1 if hasattr(original, "jinja_pass_arg") else 0  # where the value stands

        def filtered(*args: Any, **kwargs: Any) -> Any:
            budget.touch(args[at])
            return original(*args[:at], take(args[at]), *args[at + 1 :], **kwargs)

        return _marked_like(original, filtered)

    def touched(value: Any) -> Any:
        budget.touch(value)
        return value

    def measured(value: Any) -> Any:
        budget.measure(value)
        return value

    found: dict[str, Callable[..., Any]] = {
        **{name: over(name, budget.items) for name in _ITEM_FILTERS},
        **{name: over(name, budget.whole) for name in _LIST_FILTERS},
        **{name: _spending(budget, FILTERS[name]) for name in _VALUE_FILTERS},
        "string": budget.text,
        "safe": budget.text,
        "join": lambda value, d="", attribute=None: _join(budget, value, d, attribute),
        "replace": lambda value, old, new, count=None: _replace(budget, value, old, new, count),
        "sum": lambda value, attribute=None: _sum(budget, value, attribute),
        "tojson": lambda value, **options: _tojson(budget, value, **options),
        "indent": lambda value, width=4, first=False, blank=False: _indent(
            budget, value, width, first, blank
        ),
        "format": lambda value, *args: _format(budget, value, args),
        "stoker:items": budget.items,
        "stoker:concat": budget.concat,
        "stoker:touch": touched,
        "stoker:measure": measured,
        "stoker:step": touched,
    }
    return found


def _sum(budget: Budget, values: Iterable[Any], attribute: str | None) -> float:
    total: float = 0
    for value in budget.whole(values):
        value = value.get(attribute, 0) if attribute is not None and isinstance(value, dict) else value
        if not isinstance(value, int | float):
            raise TemplateError(f"the chat template adds up a {type(value).__name__}; only numbers can be")
        total += value
    return total


def _tojson(
    budget: Budget,
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"tojson(indent={indent}); 0 to 16 are allowed")
    budget.measure(value)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.allow_chars(len(text))
    return text


def _indent(budget: Budget, value: Any, width: int | str, first: bool, blank: bool) -> str:
    text = budget.text(value)
    margin = width if isinstance(width, str) else " " * min(max(width, 0), 1000)
    budget.allow_chars(len(text) + (text.count("\n") + text.count("\r") + 1) * len(margin))
    lines = text.split("\n")
    rest = [margin + line if line or blank else line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *rest])


def _format(budget: Budget, pattern: Any, values: tuple[Any, ...]) -> str:
    text = budget.text(pattern)
    _check_format(budget, text, values)
    return text % values


# --- what is offered -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SandboxedTemplate:
    """A template compiled once and rendered under ``limits``."""

    source: str
    limits: TemplateLimits
    _code: CodeType

    def render(self, variables: Mapping[str, Any], *, now: datetime.datetime | None = None) -> str:
        """The text for ``variables`` (plain JSON-like values). ``strftime_now`` exists only with ``now``.

        Raises TemplateError for anything the template does wrong, and when it passes a limit.
        """
        budget = Budget(self.limits)
        environment = _Environment(budget)
        environment.globals["raise_exception"] = _raise_exception
        if now is not None:
            moment = now
            environment.globals["strftime_now"] = lambda pattern: _strftime(moment, pattern)

        def run() -> str:
            template = jinja2.Template.from_code(environment, self._code, environment.make_globals(None))
            parts: list[str] = []
            total = 0
            for part in template.generate(**variables):
                total += len(part)
                if total > self.limits.max_chars:
                    budget.allow_chars(total)
                parts.append(part)
            return "".join(parts)

        text: str = _mapping_errors(run)
        return text


def compile_template(source: str, limits: TemplateLimits | None = None) -> SandboxedTemplate:
    """Compile ``source``. Raises TemplateError when it is not a template, or too long."""
    limits = limits or TemplateLimits()
    if len(source) > limits.max_source_chars:
        raise TemplateError(
            f"the chat template has {len(source)} characters; at most {limits.max_source_chars} are allowed"
        )
    code = _mapping_errors(lambda: _Environment(Budget(limits)).compile(source))
    return SandboxedTemplate(source=source, limits=limits, _code=code)


def _mapping_errors(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        message, hint = f"does not parse: {error.message} (line {error.lineno})", None
        cause: Exception = error
    except jinja2.UndefinedError as error:
        message, cause = f"uses something that is not there: {error}", error
        hint = "pass now=" if "strftime_now" in str(error) else None
    except jinja2.TemplateError as error:
        message, hint, cause = f"failed: {error}", None, error
    except (RecursionError, MemoryError, SyntaxError) as error:
        message, hint, cause = f"nests too deeply ({type(error).__name__})", None, error
    except _PYTHON_ERRORS as error:
        message, hint, cause = f"failed: {type(error).__name__}: {error}", None, error
    raise TemplateError(f"the chat template {message}", hint=hint) from cause


def _raise_exception(message: object) -> None:
    raise TemplateError(f"the chat template refuses: {str(message)[:500]}")


def _strftime(now: datetime.datetime, pattern: str) -> str:
    # glibc pads "%999999999d" to that width, so only plain directives pass.
    if len(pattern) > 100 or _PLAIN_DIRECTIVES.fullmatch(pattern) is None:
        raise TemplateError(f"strftime_now({pattern!r:.40}); plain directives such as %d %b %Y are allowed")
    return now.strftime(pattern)
