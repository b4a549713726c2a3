"""Chat templates that behave as those of real models do, small enough to read."""

# Renders tools in front, calls of tools, and a tool's result as a user's: as Qwen's.
TOOLS = """
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{{ '<|im_start|>user\\n<result>' + message.content + '</result><|im_end|>\\n' }}
    {%- else %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""  # noqa: E501

# Keeps the reasoning of the last message only, as Qwen 3's and DeepSeek's.
FORGETS_REASONING = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content and loop.last %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Merges the system message into the first user message, insists on turns, and ends only answers: as Llama 2's.
TAKES_TURNS = """
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
    {%- else %}{{ ' ' + message.content | trim + ' <|im_end|>' }}{% endif %}
{%- endfor %}
"""

# Ends messages with a marker that is not the end-of-sequence token: as Gemma's.
OWN_MARKER = """
{%- for message in messages %}{{ '<turn>' + message.role + '\\n' + message.content + '</turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>assistant\\n' }}{% endif %}
"""
