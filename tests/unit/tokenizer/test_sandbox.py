"""Templates as strangers write them: what must work as elsewhere, and what must stop."""

# ruff: noqa: E501  (templates stand on one line each)

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stoker.api.errors import TemplateError
from stoker.tokenizer.sandbox import TemplateLimits, compile_template

VALUES: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi\nthere", "n": 1},
        {"role": "assistant", "content": "ok", "tools": [{"name": "f", "args": {"x": [1, None, True]}}]},
    ],
    "flag": True,
    "empty": [],
    "text": "a<b>é\"'",
}

ORDINARY = [
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ m.role }}{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ m['content'] }}{% else %}none{% endfor %}",
    "{% for x in empty %}{{ x }}{% else %}none{% endfor %}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a ~ b }}{{ loop.previtem }}{% endfor %}",
    "{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in messages[1] | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{{ messages[-1].tools[0].args | tojson }} {{ text | tojson }} {{ messages | tojson(indent=2) }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ text[1:3] }}{{ 'abc'[::-1] }}",
    "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro show(m, mark='*') %}{{ mark }}{{ m.content | trim }}{{ caller() if caller }}{% endmacro %}{{ show(messages[0]) }}",
    "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}in{% endcall %}",
    "{% set x %}{{ messages[0].content }}!{% endset %}{{ x.strip().upper().replace('BE', 'is').split() }}",
    "{{ 'x' if flag else 'y' }}{{ undefined_thing is defined }}{{ undefined_thing | default('d') }}{{ undefined_thing }}",
    "{{ 1 + 2 * 3 - 4 // 3 % 5 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ -3 | abs }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ [0] * 3 }}",
    "{{ '%s-%03d' % ('a', 7) }}{{ '%.2f' | format(3.14159) }}{{ 3.7 | int }}{{ '12' | int + 1 }}{{ 3 | string }}",
    "{{ 'role' in messages[0] }}{{ 'x' not in text }}{{ messages[0] is mapping }}{{ text is string }}{{ empty is iterable }}",
    "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i == 2 %}{% break %}{% endif %}{% endfor %}",
    "{% for t in [[1, [2]], [3]] recursive %}{{ loop(t) if t is not number else t }}{% endfor %}",
    "{%- if flag -%}  a  {%- endif %}\n  {% if flag %}\nb\n  {% endif %}\n{#- note -#}\n c",
    "{{ [3, 1, 2] | sort | list }}{{ [3, 1, 2] | max }}{{ [1, 1, 2] | unique | list }}{{ [1, 2] | reverse | list }}{{ [1, 2] | sum }}",
    "{{ 'line1\nline2' | indent(2) }}{{ 'one two' | wordcount }}{{ 'one' | capitalize }}{{ none }}{{ true }}{{ 1.50 }}",
    "{{ messages[0].content.startswith(' Be') and not messages[1].content.endswith('x') }}{{ 'a,b'.split(',')[-1] }}",
    "{{ {'a': flag, 'b': [flag]} }}{{ ('t', 1) }}{{ 'A' ~ 1 ~ none }}{{ messages[0].get('zz', 'none') }}",
    "{{ messages | groupby('role') | length }}{{ (messages | last).role }}{{ (messages | first).role }}{{ 'x' | safe }}",
]  # fmt: skip


@pytest.mark.parametrize("source", ORDINARY)
def test_ordinary_templates_render_as_in_plain_jinja(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    expected = plain.from_string(source).render(**VALUES)
    template = compile_template(source)
    assert template.render(VALUES) == expected
    assert template.render(VALUES) == expected  # nothing stays behind from one rendering to the next


def test_generation_blocks_are_their_content() -> None:
    assert compile_template("a{% generation %}b{{ 1 }}{% endgeneration %}c").render({}) == "ab1c"


GROW = "{% set ns = namespace(x=SEED, y=SEED) %}{% for i in range(99) %}STEP{% endfor %}"


def _grow(seed: str, step: str, after: str = "") -> str:
    return GROW.replace("SEED", seed).replace("STEP", step) + after


ENDLESS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{{ k }}{% endfor %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{% set x = 'a' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}",
    "{{ 10**99999 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    _grow("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
    _grow("'ab'", "{% set ns.x = ns.x + ns.x %}"),
    _grow("'ab'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    _grow("'ab'", "{% set ns.x = ns.x | replace('', ns.x) %}"),
    _grow("'ab'", "{% set ns.x = [ns.x, ns.x] | join %}"),
    _grow("'ab'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    _grow("[1]", "{% set ns.x = ns.x + ns.x %}"),
    _grow("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}"),
    _grow("[1]", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{{ ns.x | tojson }}"),
    _grow("[1]", "{% set ns.x = [ns.x] * 2 %}", "{{ ns.x | tojson }}"),
    _grow("[1]", "{% set ns.x = [ns.x] * 2 %}", "{{ ns.x | string | length }}"),
    _grow("[1]", "{% set ns.x = [ns.x] * 2 %}{% set ns.y = [ns.y] * 2 %}", "{{ ns.x == ns.y }}"),
    _grow("3", "{% set ns.x = ns.x * ns.x %}"),
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ (['a' * 1000000] * 100000) | join }}",
    "{{ ('b' * 1000000).join('a' * 1000000) }}",
    "{{ ('a,' * 2000000).split(',') | length }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999s' | format('a') }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ ('\n' * 1000000) | indent(1000) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ -1 in l }}{% endfor %}",
    "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ l | sort | first }}{% endfor %}",
    "{% set l = range(99999) | list %}{% for i in range(99999) %}{% set q = l | map('string') | list %}{% endfor %}",
    "{% set l = range(99999) | list %}{% for i in range(99999) %}{% set q = l[1:] %}{% endfor %}",
    "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{% set q = s[1:] %}{% endfor %}",
    "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{% set q = s.upper() %}{% endfor %}",
    "{% set s = 'a' * 4000000 %}{% set t = s[1:] + 'b' %}{% for i in range(99999) %}{{ s == t }}{% endfor %}",
    "{{ lipsum(1000000) }}",
]  # fmt: skip


def _status_bytes(field: str) -> int:
    """A memory figure of this process as Linux tells it: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures memory through Linux's /proc"
)
@pytest.mark.parametrize("source", ENDLESS)
def test_what_does_not_end_is_stopped(source: str) -> None:
    """With a TemplateError, within about a second (five here, for busy machines) and little memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, not from the tests before
    resident = _status_bytes("VmRSS")
    start = time.perf_counter()
    with pytest.raises(TemplateError):
        compile_template(source).render(VALUES)
    assert time.perf_counter() - start < 5
    assert _status_bytes("VmHWM") - resident < 256 << 20


def test_limits_count_work_and_not_seconds() -> None:
    source = "{% for i in range(n) %}{{ i }}{% endfor %}"
    template = compile_template(source, TemplateLimits(max_steps=1000))
    assert template.render({"n": 100}) == "".join(map(str, range(100)))
    outcomes = set()
    for n in range(300, 600):
        try:
            outcomes.add((n, len(template.render({"n": n}))))
        except TemplateError:
            break
    first = n
    for _ in range(3):
        with pytest.raises(TemplateError, match="1000 steps"):
            template.render({"n": first})
        template.render({"n": first - 1})


FORBIDDEN = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
    "{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list | tojson }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ raise_exception.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self }}",
    "{{ range }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{ raise_exception('roles must alternate') }}",
    "{{ messages[0] + 1 }}",
    "{{ missing.attribute }}",
    "{{ 'a' | no_such_filter }}",
    "{{ 1 / 0 }}",
    "{% if %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "x" * 200_000,
]


@pytest.mark.parametrize("source", FORBIDDEN, ids=lambda source: source[:40])
def test_what_is_wrong_or_forbidden_is_a_template_error(source: str) -> None:
    values = {**VALUES, "messages": [dict(m) for m in VALUES["messages"]]}
    with pytest.raises(TemplateError):
        compile_template(source).render(values)
    assert values["messages"] == VALUES["messages"]


def test_messages_of_the_template_reach_the_caller() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        compile_template("{{ raise_exception('roles must alternate') }}").render({})
    with pytest.raises(TemplateError) as caught:
        compile_template("{% for %}").render({})
    assert isinstance(caught.value.__cause__, jinja2.TemplateError)
