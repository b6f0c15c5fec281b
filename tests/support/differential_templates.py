"""Chat templates in the styles of published models, written anew: the markers are theirs, the Jinja is not.

`STYLES` maps a style to (template, the markers that its tokenizer has as tokens, its BOS and EOS).
"""

from __future__ import annotations

_CHATML = """\
{% for turn in messages %}
<|im_start|>{{ turn.role }}
{{ turn['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""

_QWEN = """\
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {%- if m.role == 'tool' and (loop.first or loop.previtem.role != 'tool') -%}
        {{- '<|im_start|>user' -}}
    {%- endif -%}
    {%- if m.role == 'tool' -%}
        {{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
    {%- elif m.role == 'assistant' and m.tool_calls -%}
        {{- '<|im_start|>assistant' -}}
        {%- if m.content -%}{{- '\\n' + m.content -}}{%- endif -%}
        {%- for call in m.tool_calls -%}
            {%- set f = call.function if call.function is defined else call -%}
            {{- '\\n<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

_THINKING = """\
{%- set state = namespace(last_user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set state.last_user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set text = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in text %}
            {%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > state.last_user and thought %}
            {{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- text ~ '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

_LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}
    {% set preface = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set rest, preface = messages, '' %}
{% endif %}
{% for m in rest %}
    {% if (m['role'] == 'user') != (loop.index0 is even) %}
        {{ raise_exception('User and assistant must take turns, the user first') }}
    {% endif %}
    {% set text = preface + m['content'] if loop.first else m['content'] %}
    {% if m['role'] == 'user' %}
        {{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {% else %}
        {{ ' ' + text | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""

_LLAMA_3 = """\
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\\n\\n' ~ (m['content'] | trim) ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

_MISTRAL = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set talk = messages[1:] %}
{%- else %}{% set talk = messages %}{% endif %}
{{- bos_token }}
{%- for m in talk %}
    {%- if m.role == 'user' %}
        {%- if loop.last and system is defined %}
            {{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + m.content + '[/INST]' }}
        {%- endif %}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + m.content + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant may speak after the system, not ' + m.role) }}
    {%- endif %}
{%- endfor %}"""

_ZEPHYR = """\
{% for m in messages %}
{% if m['role'] in ['system', 'user', 'assistant'] %}
{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt and m['role'] != 'assistant' %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

_GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn, please') }}{% endif %}
{% for m in messages %}
{% set who = 'model' if m['role'] == 'assistant' else m['role'] %}
{{ '<start_of_turn>' + who + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

_PHI_3 = """\
{%- for m in messages -%}
{%- if m.role == 'system' and m.content -%}{{ '<|system|>\\n' + m.content + '<|end|>\\n' }}
{%- elif m.role == 'user' -%}{{ '<|user|>\\n' + m.content + '<|end|>\\n' }}
{%- elif m.role == 'assistant' -%}{{ '<|assistant|>\\n' + m.content + '<|end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""

_ALPACA = """\
{%- macro titled(title, text) -%}### {{ title }}:
{{ text }}

{% endmacro -%}
{%- for m in messages if m.content -%}
    {%- if m.role == 'system' -%}{{ m.content ~ '\\n\\n' }}
    {%- else -%}{{ titled({'user': 'Instruction', 'assistant': 'Response'}.get(m.role, m.role | title), m.content) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""

_VICUNA = """\
{% set opening = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | first | default('A chat.') %}
{{ bos_token if bos_token is defined }}{{ opening ~ ' ' }}
{% for m in messages | rejectattr('role', 'equalto', 'system') %}
{% if m.role == 'user' %}{{ 'USER: ' ~ m.content ~ ' ' }}
{% else %}{{ 'ASSISTANT: ' ~ m.content ~ eos_token }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

_DEEPSEEK = """\
{%- set ns = namespace(system='', first=true) -%}
{%- for m in messages if m['role'] == 'system' -%}
    {%- set ns.system = ns.system + ('' if ns.first else '\\n\\n') + m['content'] -%}
    {%- set ns.first = false -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages -%}
    {%- if m['role'] == 'user' -%}
        {{ '<｜User｜>' + m['content'] }}
    {%- elif m['role'] == 'assistant' and m['content'] is not none -%}
        {%- set text = m['content'] -%}
        {%- if '</think>' in text -%}{%- set text = text.split('</think>')[-1] -%}{%- endif -%}
        {{ '<｜Assistant｜>' + text + '<｜end▁of▁sentence｜>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}"""

_COMMAND_R = """\
{{ bos_token }}
{%- set begin, end = '<|START_OF_TURN_TOKEN|>', '<|END_OF_TURN_TOKEN|>' -%}
{%- set roles = dict(system='<|SYSTEM_TOKEN|>', user='<|USER_TOKEN|>', assistant='<|CHATBOT_TOKEN|>') -%}
{%- for m in messages -%}
    {%- if m.role not in roles -%}{{ raise_exception('Unknown role: ' ~ m.role) }}{%- endif -%}
    {{ begin + roles[m.role] + m.content.strip() + end }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ begin + roles['assistant'] }}{%- endif -%}"""

_TOOLS = """\
{%- if tools is not none and tools %}{{ raise_exception('tools were not asked for') }}{% endif %}
{%- if documents %}{{ 'documents' }}{% endif %}
{%- for m in messages %}
    {%- generation %}
    {{- '%s %d/%d: ' % (m.role | upper, loop.index, messages | length) }}
    {%- if m.content is mapping or m.content is sequence and m.content is not string %}
        {{- m.content | tojson(indent=2) }}
    {%- else %}
        {{- m.content | default('nothing', true) | replace('\\n', ' / ') }}
    {%- endif %}
    {%- for key, value in m.items() if key not in ('role', 'content') %}
        {{- ' ' ~ key ~ '=' ~ value | string }}
    {%- endfor %}
    {%- endgeneration %}
    {%- if loop.index > 4 %}{{ ' ...' }}{% break %}{% endif %}
    {{- '\\n' if not loop.last }}
{%- endfor %}
{{- eos_token ~ (pad_token or '') ~ unk_token }}"""

_PARTS = """\
{%- for m in messages -%}
    {{- '<|' ~ m.role ~ '|>' -}}
    {%- if m.content is string -%}{{- m.content -}}
    {%- else -%}
        {%- for part in m.content -%}
            {%- if part.type == 'text' -%}{{- part.text -}}{%- elif part is string -%}{{- part -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|end|>' -}}
{%- endfor -%}
{%- if messages[-1].role == 'assistant' -%}{{- raise_exception("the assistant's word was the last") -}}{%- endif -%}
{{- '<|assistant|>' if add_generation_prompt -}}"""

_DATED = """\
{%- set today = strftime_now('%Y') if strftime_now is defined else '2024' -%}
<|start_header_id|>system<|end_header_id|>

Year: {{ today }}{% for m in messages %}{% if m.role == 'system' %}
{{ m.content | trim | indent(2) }}{% endif %}{% endfor %}<|eot_id|>
{%- for m in messages if m.role != 'system' -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}"""

_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_SPEAKERS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
Style = tuple[str, tuple[str, ...], str, str]
STYLES: dict[str, Style] = {
    "chatml": (_CHATML, _IM, "<s>", "<|im_end|>"),
    "qwen": (_QWEN, (*_IM, "<tool_call>", "</tool_call>"), "<|endoftext|>", "<|im_end|>"),
    "thinking": (_THINKING, (*_IM, "<think>", "</think>"), "<|endoftext|>", "<|im_end|>"),
    "llama-2": (_LLAMA_2, (), "<s>", "</s>"),
    "llama-3": (_LLAMA_3, _HEADERS, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (_MISTRAL, ("[INST]", "[/INST]"), "<s>", "</s>"),
    "zephyr": (_ZEPHYR, (), "<s>", "</s>"),
    "gemma": (_GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
    "phi-3": (_PHI_3, _SPEAKERS, "<s>", "<|endoftext|>"),
    "alpaca": (_ALPACA, (), "<s>", "</s>"),
    "vicuna": (_VICUNA, (), "<s>", "</s>"),
    "deepseek": (
        _DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", "<think>"), "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
    ),
    "command-r": (
        _COMMAND_R, ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"), "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>",
    ),
    "tools": (_TOOLS, (), "<s>", "</s>"),
    "parts": (_PARTS, _SPEAKERS, "<s>", "<|endoftext|>"),
    "dated": (_DATED, _HEADERS, "<|begin_of_text|>", "<|eot_id|>"),
}  # fmt: skip
