"""Our tokenizer and template rendering say what transformers' would say."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  naïve café 🙂 <b> & 'x'  "},
    {"role": "assistant", "content": "Hm.\n"},
    {"role": "user", "content": ""},
]
TEMPLATE = Path(__file__).parents[2] / "shared" / "templates" / "smollm2.jinja"
PUBLISHED = (  # what SmolLM2 ships with, from the GGUF's metadata
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "<&'> é", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g"}},
]


def transformers_tokenizer(directory: Path):  # type: ignore[no-untyped-def]
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would replace a Qwen's tokenizer.json by its own

    return PreTrainedTokenizerFast.from_pretrained(directory)


def test_ids_equal_transformers(tiny_model: Path) -> None:
    ours, theirs = ChatTokenizer(tiny_model), transformers_tokenizer(tiny_model)
    for text in ["", " ", "The capital of France is", "naïve 🙂\n\n\tx<|im_end|>y", "1  23"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special=True) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen3"])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_equals_transformers(fixture: str, prompt: bool, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(fixture)
    ours, theirs = ChatTokenizer(directory), transformers_tokenizer(directory)
    expected = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=prompt)
    assert ours.render(CONVERSATION, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:], CONVERSATION[:1]])
def test_our_template_without_tools_is_the_published_one(tiny_llama: Path, tmp_path: Path, messages: list) -> None:
    for template in (PUBLISHED, TEMPLATE.read_text()):
        _copy(tiny_llama, tmp_path / str(len(template)), template)
    published, ours = (ChatTokenizer(tmp_path / str(len(t))) for t in (PUBLISHED, TEMPLATE.read_text()))
    for prompt in (True, False):
        expected = published.render(messages, add_generation_prompt=prompt)
        assert ours.render(messages, add_generation_prompt=prompt) == expected
        assert ours.render(messages, [], add_generation_prompt=prompt) == expected


def test_our_template_with_tools(tiny_llama: Path, tmp_path: Path) -> None:
    _copy(tiny_llama, tmp_path / "m", TEMPLATE.read_text())
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    text = ChatTokenizer(tmp_path / "m").render(messages, TOOLS)
    assert '"description": "<&\'> é"' in text  # unescaped, as json.dumps writes it
    assert text.count("<|im_start|>system") == 1
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    theirs = transformers_tokenizer(tmp_path / "m")
    assert text == theirs.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)


@given(text=st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_byte_spans_tile_the_text_and_streaming_equals_decoding(tiny_llama: Path, text: str) -> None:
    tokenizer = ChatTokenizer(tiny_llama)
    spans, raw = tokenizer.spans(text), text.encode()
    assert {b for _, (start, end) in spans for b in range(start, end)} == set(range(len(raw)))
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == raw
    stream = tokenizer.stream()
    assert "".join(stream(i) for i in ids) == text


def test_pieces_show_partial_characters_as_bytes(tiny_llama: Path) -> None:
    tokenizer = ChatTokenizer(tiny_llama)
    ids = tokenizer.encode("𝄞")  # not in the training text, so four single bytes
    assert [tokenizer.piece(i) for i in ids] == ["<0xF0>", "<0x9D>", "<0x84>", "<0x9E>"]
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(ids[0])


def test_clear_errors(tiny_qwen2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        ChatTokenizer(tmp_path)
    with pytest.raises(UserError, match="not valid Unicode"):
        ChatTokenizer(tiny_llama).encode("\udcff")
    with pytest.raises(UserError, match="no chat template"):
        ChatTokenizer(tiny_qwen2).render(CONVERSATION)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        ChatTokenizer(tmp_path)
    _copy(tiny_llama, tmp_path / "strict", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="roles must alternate"):
        ChatTokenizer(tmp_path / "strict").render(CONVERSATION)


def test_a_template_cannot_reach_python(tiny_llama: Path, tmp_path: Path) -> None:
    _copy(tiny_llama, tmp_path / "evil", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="unsafe"):
        ChatTokenizer(tmp_path / "evil").render(CONVERSATION)


def _copy(source: Path, target: Path, template: str) -> None:
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (target / name).write_text((source / name).read_text())
    (target / "chat_template.jinja").write_text(template)
